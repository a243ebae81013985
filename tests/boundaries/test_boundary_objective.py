"""Owns: a step's gradient is that of the mean over frames that count; without any, it changes nothing."""

import pytest
import torch
import torch.nn.functional as F
from tiny_boundaries import WITHOUT, gebd

from moss_vllm.boundaries.objective import BoundaryObjective


def batch(clips=4):
    torch.manual_seed(1)
    return {
        "clips": torch.randint(256, (clips, 12, 3, 32, 32), dtype=torch.uint8),
        "labels": torch.rand(clips, 12),
        "mask": torch.rand(clips, 12) < 0.7,
    }


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_it_is_the_mean_over_the_frames_that_count():
    model, given = gebd().train(), batch()
    objective = BoundaryObjective(model)
    loss = objective(**given) / objective.divisor(int(given["mask"].sum()))
    logits = gebd().train()(given["clips"])
    expected = F.binary_cross_entropy_with_logits(logits[given["mask"]], given["labels"][given["mask"]])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_gradient_does_not_depend_on_how_a_step_is_split():
    found, given = [], batch()
    for size in (4, 2, 1):
        model = gebd(**WITHOUT).train()
        model.head.eval()  # its BatchNorms normalise each micro-batch by itself
        objective = BoundaryObjective(model)
        divisor = objective.divisor(int(given["mask"].sum()))
        for first in range(0, 4, size):
            part = {name: value[first : first + size] for name, value in given.items()}
            (objective(**part) / divisor).backward()
        found.append(gradients(model))
    for other in found[1:]:
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-3, atol=1e-5)


def test_a_batch_without_a_clip_reaches_all_that_trains_and_changes_nothing():
    model = gebd().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = batch(1)
    given["mask"][:] = False
    loss = BoundaryObjective(model)(**given)
    loss.backward()
    assert loss.item() == 0 and all(module.training for module in model.modules())
    found = gradients(model)
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(gradient.any() for gradient in found.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_autocast_leaves_the_loss_in_float32():
    loss = BoundaryObjective(gebd().train(), torch.bfloat16)(**batch())
    assert loss.dtype == torch.float32 and loss.isfinite()
