"""Owns: points, ranges and the assignment of actions to points equal the authors'."""

import pytest
import torch
from golden_adatad import behind, read_golden

from moss_vllm.detection.points import assign_targets, decode_segments, pyramid_points, regression_ranges


def test_ranges_of_the_papers_six_levels():
    edges = [(0, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 10_000)]
    assert regression_ranges(6) == edges and regression_ranges(1) == [(0, 10_000)]
    assert len(pyramid_points([768, 384, 192, 96, 48, 24])) == 1512


@pytest.mark.parametrize("step", ["step1", "step2"])
def test_golden_points_and_targets(step):
    golden, settings = read_golden("targets_and_losses")
    points = pyramid_points(settings["lengths"])
    assert torch.equal(points, golden["points"])
    golden = behind(f"{step}.", golden)
    positives = 0
    for sample in range(3):
        segments, labels = golden[f"gt_segments{sample}"], golden[f"gt_labels{sample}"]
        targets = assign_targets(points, segments, labels, classes=5, radius=settings["centre_radius"])
        assert torch.equal(targets.classes, golden["target_cls"][sample])
        positive = targets.classes.any(dim=1)
        assert torch.equal(positive & golden["valid"][sample], golden["positive"][sample])
        distances = golden["target_reg"][sample][positive]
        torch.testing.assert_close(targets.distances[positive], distances, rtol=1e-5, atol=1e-5)
        back = decode_segments(points, targets.distances)[positive]
        assert all(any(torch.allclose(one, other) for other in segments) for one in back)
        positives += int(positive.sum())
    assert positives > 5


def test_equal_segments_give_both_labels_and_the_first_one_its_distances():
    points = pyramid_points([16])
    targets = assign_targets(
        points, torch.tensor([[2, 8.0], [2, 8.0], [4, 6.5]]), torch.tensor([3, 1, 0]), classes=4
    )
    assert targets.classes[4].tolist() == [0, 1, 0, 1]  # within 1.5 of the centre 5, before the short one
    assert targets.classes[5].tolist() == [1, 0, 0, 0]
    assert targets.distances[4].tolist() == [2, 4] and targets.distances[5].tolist() == [1, 1.5]
    assert not targets.classes[[3, 7]].any() and targets.classes[6].tolist() == [1, 0, 0, 0]


def test_segments_in_other_types():
    points = pyramid_points([16])
    targets = assign_targets(points, torch.tensor([[2, 8]]), torch.tensor([1], dtype=torch.int32), classes=2)
    assert targets.classes.dtype == torch.float32 and targets.classes[5].tolist() == [0, 1]


@pytest.mark.parametrize(
    "segments, labels, message",
    [
        (
            torch.zeros(2, 2),
            torch.tensor([0, 20]),
            r"labels \[20\] are outside the detector's 20 classes",
        ),
        (torch.zeros(1, 2), torch.tensor([-1]), r"labels \[-1\] are outside"),
        (torch.zeros(2, 2), torch.tensor([0]), r"\(2, 2\) and labels of shape \(1,\); give \(N, 2\)"),
        (torch.zeros(0), torch.zeros(0), r"for a window without actions \(0, 2\) and \(0,\)"),
    ],
)
def test_segments_and_labels_that_do_not_fit(segments, labels, message):
    with pytest.raises(ValueError, match=message):
        assign_targets(pyramid_points([4]), segments, labels, classes=20)
