"""Clips and a classifier that several of these files use."""

import pytest
import torch
from action_layouts import moving_square, write_frames

from moss_vllm.data.actions.datasets import ActionClip, ActionSplit
from moss_vllm.recognition.build import build_classifier

CLASSES = ("left", "right, fast", "up", "down", "still", "round", "gone")
LABELS = (0, 1, 1, 1, 5, 6, 2)


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """Seven clips of different lengths and shapes; not to be changed."""
    root = tmp_path_factory.mktemp("clips")
    clips = []
    for index, label in enumerate(LABELS):
        height, width = ((24, 40), (48, 32))[index % 2]
        write_frames(root / f"clip {index}", moving_square(index, 3 + index, height, width))
        clips.append(ActionClip(f"clip {index}", str(root / f"clip {index}"), label))
    return ActionSplit("list", "test", CLASSES, tuple(clips), (), None, "list.txt")


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    how = {"variant": "mini", "classes": 7, "weights": "random", "frames": 2, "image_size": 14}
    return build_classifier(**how)
