"""Datasets of a few clips for the tests of their readers."""

import shutil

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
def make(layouts, tmp_path):
    def make(data):
        return shutil.copytree(layouts / data, tmp_path / data)

    return make
