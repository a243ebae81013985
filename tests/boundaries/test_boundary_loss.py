"""Owns: the loss of boundaries equals the authors', for hard and Gaussian targets, with masks and without."""

import math

import pytest
import torch
from golden_adatad import assert_near
from golden_gebd import read_golden, soften

from moss_vllm.boundaries.loss import boundary_losses


@pytest.mark.parametrize("kind", ["gaussian", "gaussian_masked", "hard", "hard_masked"])
def test_golden_loss(kind):
    golden, _ = read_golden("loss")
    logits = golden["logits"].clone().requires_grad_()
    targets = golden["hard_targets"]
    if kind.startswith("gaussian"):
        targets = soften(targets)
        assert_near(targets, golden["gaussian_targets"])
    mask = golden["frame_masks"] if kind.endswith("_masked") else None
    loss = boundary_losses(logits, targets, mask).mean()
    loss.backward()
    assert_near(loss, golden[f"loss.{kind}"], 1e-6)
    assert_near(logits.grad, golden[f"grad_logits.{kind}"], 1e-6)


def test_the_mask_decides_which_frames_count():
    logits, targets = torch.tensor([[0.0, 50.0, -1.0]]), torch.tensor([[0, 0, 1]])
    kept = boundary_losses(logits, targets, torch.tensor([[True, False, True]]))
    assert kept.tolist() == pytest.approx([math.log(2), math.log(1 + math.e)])
    assert boundary_losses(logits.half(), targets).dtype == torch.float32
