"""A small THUMOS-14 with videos, and a tiny detector's encoder; neither is to be changed."""

import pytest
from tiny_detector import write_encoder, write_videos

from moss_vllm.data.detection.datasets import read_detection


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("videomae"))


@pytest.fixture(scope="session")
def thumos_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("thumos") / "thumos-14"
    write_videos(root)
    return root


@pytest.fixture(scope="session")
def split(thumos_root):
    return read_detection("thumos14", thumos_root, "test")
