"""Owns: both losses and the moving normaliser equal the authors', in values and gradients."""

import pytest
import torch
from golden_adatad import assert_near, behind, read_golden
from torchvision.ops import sigmoid_focal_loss

from moss_vllm.detection.detector import LevelOutput
from moss_vllm.detection.loss import DetectionLoss, diou_loss
from moss_vllm.detection.points import count_positives


@pytest.fixture(scope="module")
def golden():
    return read_golden("targets_and_losses")[0]


def batch(golden):
    """Levels, whose predictions ask for gradients, and the actions of each window."""
    lengths = [golden[f"level{level}.reg"].shape[2] for level in range(4)]
    masks = golden["valid"].split(lengths, dim=1)
    levels = [
        LevelOutput(
            golden[f"level{level}.cls_logits"].clone().requires_grad_(),
            golden[f"level{level}.reg"].clone().requires_grad_(),
            masks[level],
        )
        for level in range(4)
    ]
    return levels, *([golden[f"gt_{kind}{i}"] for i in range(3)] for kind in ("segments", "labels"))


def test_golden_losses_and_gradients_of_two_steps(golden):
    loss = DetectionLoss()
    for step in ("step1", "step2"):
        expected = behind(f"{step}.", golden)
        assert_near(loss.normaliser, expected["normaliser_before"])
        levels, segments, labels = batch(expected)
        losses = loss.train()(levels, segments, labels)
        assert int(losses.positives) == int(expected["num_positive"])
        assert_near(losses.classes, expected["cls_loss"])
        assert_near(losses.segments, expected["reg_loss"])
        assert_near(loss.normaliser, expected["normaliser_after"])
        assert_near(losses.classes * loss.normaliser, expected["cls_sum"])
        assert_near(losses.segments * loss.normaliser, expected["reg_sum"])
        (losses.classes + losses.segments).backward()
        for level, output in enumerate(levels):
            assert_near(output.cls_logits.grad, expected[f"level{level}.grad_cls_logits"])
            assert_near(output.distances.grad, expected[f"level{level}.grad_reg"])


def test_golden_sums_and_divisors_of_two_steps_split_in_windows(golden):
    loss = DetectionLoss()
    for step in ("step1", "step2"):
        expected = behind(f"{step}.", golden)
        levels, segments, labels = batch(expected)
        parts = [
            loss.sums([LevelOutput(*(t[n : n + 1] for t in level)) for level in levels], [one], [kinds])
            for n, (one, kinds) in enumerate(zip(segments, labels, strict=True))
        ]
        assert_near(sum(part.classes for part in parts), expected["cls_sum"])
        assert_near(sum(part.segments for part in parts), expected["reg_sum"])
        positives = sum(int(part.positives) for part in parts)
        assert positives == int(expected["num_positive"])
        assert_near(loss.next_divisor(positives), expected["normaliser_after"])


@pytest.mark.parametrize("step", ["step1", "step2"])
def test_golden_positives_need_no_prediction(golden, step):
    expected = behind(f"{step}.", golden)
    length, classes = expected["level0.reg"].shape[2], expected["level0.cls_logits"].shape[1]
    counts = [
        count_positives(
            expected["valid"][n, :length],
            expected[f"gt_segments{n}"],
            expected[f"gt_labels{n}"],
            classes=classes,
            levels=4,
        )
        for n in range(3)
    ]
    assert sum(counts) == int(expected["num_positive"])


@pytest.mark.parametrize("step", ["step1", "step2"])
def test_golden_losses_in_evaluation(golden, step):
    expected, loss = behind(f"{step}.", golden), DetectionLoss().eval()
    losses = loss(*batch(expected))
    assert_near(losses.classes, expected["eval.cls_loss"])
    assert_near(losses.segments, expected["eval.reg_loss"])
    assert float(loss.normaliser) == 100


def test_golden_focal_and_diou_element_by_element(golden):
    logits = golden["focal.logits"].clone().requires_grad_()
    focal = sigmoid_focal_loss(logits, golden["focal.targets"], alpha=0.25, gamma=2.0)
    focal.sum().backward()
    assert_near(focal, golden["focal.loss"])
    assert_near(logits.grad, golden["focal.grad_logits"])
    predicted = golden["diou.predicted"].clone().requires_grad_()
    diou = diou_loss(predicted, golden["diou.target"])
    diou.sum().backward()
    assert_near(diou, golden["diou.loss"])
    assert_near(predicted.grad[2:], golden["diou.grad_predicted_from_row2"])


def test_without_any_action_there_is_no_segment_loss_but_a_gradient_of_zero(golden):
    levels, _, _ = batch(behind("step1.", golden))
    losses = DetectionLoss()(levels, [torch.zeros(0, 2)] * 3, [torch.zeros(0, dtype=torch.long)] * 3)
    assert int(losses.positives) == 0 and losses.segments.item() == 0 < losses.classes.item()
    losses.segments.backward()
    assert all(torch.equal(level.distances.grad, torch.zeros_like(level.distances)) for level in levels)


def test_the_normaliser_is_saved_and_half_precision_is_computed_in_float32(golden):
    loss = DetectionLoss()
    levels, segments, labels = batch(behind("step1.", golden))
    losses = loss([LevelOutput(a.bfloat16(), b.bfloat16(), mask) for a, b, mask in levels], segments, labels)
    assert losses.classes.dtype == losses.segments.dtype == torch.float32
    other = DetectionLoss()
    other.load_state_dict(loss.state_dict())
    assert float(other.normaliser) == float(loss.normaliser) != 100 and loss.normaliser.dtype == torch.float32


def test_a_list_for_each_window(golden):
    levels, segments, labels = batch(behind("step1.", golden))
    with pytest.raises(ValueError, match="2 lists of segments and 3 of labels for 3 windows; give one"):
        DetectionLoss()(levels, segments[:2], labels)
