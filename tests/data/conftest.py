"""Datasets of a few clips for the tests of their readers."""

import pytest
from action_layouts import DATASETS, write_layout


@pytest.fixture(scope="session")
def layouts(tmp_path_factory):
    """The folder of each dataset; not to be changed."""
    root = tmp_path_factory.mktemp("action")
    for data in DATASETS:
        write_layout(data, root / data)
    return root


@pytest.fixture
def make(tmp_path):
    def make(data):
        write_layout(data, tmp_path / data)
        return tmp_path / data

    return make
