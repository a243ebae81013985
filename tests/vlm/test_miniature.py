"""Owns: the miniature in the package is a real, small, plain-file VideoLLaMA3 that reads appearance."""

import json
from pathlib import Path

import make_miniature
import numpy as np
import pytest
import torch
from transformers import VideoLlama3ForConditionalGeneration, VideoLlama3Processor

from moss_vllm.data.world import appearance
from moss_vllm.vlm.checkpoint import load
from moss_vllm.vlm.places import MINIATURE

RECORD = json.loads((MINIATURE / "miniature.json").read_text())


@pytest.fixture(scope="module")
def miniature():
    return load("miniature")


def test_it_is_of_the_real_classes_and_small(miniature):
    assert type(miniature.model) is VideoLlama3ForConditionalGeneration
    assert type(miniature.processor) is VideoLlama3Processor
    files = {path.name: path.stat().st_size for path in MINIATURE.iterdir()}
    assert sum(files.values()) < 8 * 2**20
    assert {Path(name).suffix for name in files} <= {".json", ".jinja", ".safetensors"}


def test_appearance_accuracy_is_what_the_record_says(miniature):
    """On fewer and other sights than the record's: within four standard errors, and far above guessing."""
    recorded = RECORD["appearance_accuracy_percent"]
    found = make_miniature.measure(miniature.model, miniature.processor, sights=40, seed=123)
    error = 100 * np.sqrt(0.25 / (40 * 3))
    assert abs(found["all"] - recorded["all"]) < 4 * error
    assert recorded["all"] > 50  # guessing gives 20 to 33


def test_labels_of_pre_training_do_not_depend_on_motion():
    """Sights drawn from one seed say the same, however fast time runs in them."""
    for seed in range(20):
        slow, fast = (appearance.draw_sight(np.random.default_rng(seed), frames=8, fps=fps) for fps in (2, 8))
        assert slow.caption == fast.caption and slow.choices == fast.choices
        assert not np.array_equal(slow.frames, fast.frames) or np.array_equal(slow.frames[0], slow.frames[-1])


def test_answer_weights_give_every_answer_the_same_share():
    labels = torch.tensor(
        [[-100, 5, 6, -100, 7, 8, 9, 9, -100], [-100, -100, 3, -100, -100, -100, -100, -100, 4]]
    )
    weights = make_miniature.answer_weights(labels)
    third = torch.tensor([[0, 0.5, 0.5, 0, 0.25, 0.25, 0.25, 0.25, 0], [0, 0, 1, 0, 0, 0, 0, 0, 1]])
    torch.testing.assert_close(weights, third)
