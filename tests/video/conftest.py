"""A cache of frames, and a switch after which nothing can be decoded."""

import pytest

from moss_vllm.video import cache as cache_module
from moss_vllm.video import cache_pieces
from moss_vllm.video.cache import FrameCache


@pytest.fixture
def cache(tmp_path):
    return FrameCache(tmp_path / "frames")


@pytest.fixture
def no_decoder(monkeypatch):
    """A switch: from then on nothing can be decoded."""

    def refuse(*args, **kwargs):
        raise AssertionError("decoded")

    def switch():
        monkeypatch.setattr(cache_module, "read_clip", refuse)
        monkeypatch.setattr(cache_module, "read_frames", refuse)
        monkeypatch.setattr(cache_pieces, "read_frames", refuse)

    return switch
