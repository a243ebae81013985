"""What the benchmarks' tests run under."""

import gc

import pytest


@pytest.fixture(autouse=True)
def no_collection(monkeypatch):
    """Benchmarks collect garbage between steps: seconds in a process that has run other tests."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)
