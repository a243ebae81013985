"""Owns: a step's gradient is AdaTAD's, however it is split; a batch without a window changes nothing."""

import pytest
import torch
from detection_layouts import CLASSES
from tiny_detector import PIXELS, WINDOWS, WITHOUT, detector

from moss_vllm.data.detection.datasets import read_detection
from moss_vllm.data.rows import Rejected
from moss_vllm.detection.batches import NO_ACTION, DetectionTrainingSet
from moss_vllm.detection.objective import DetectionObjective
from moss_vllm.training.average import WeightAverage
from moss_vllm.training.row_order import PlacedRow

TENSORS = ("clips", "mask", "segments", "labels")


@pytest.fixture(scope="module")
def dataset(thumos_root):
    split = read_detection("thumos14", thumos_root, "train")
    return DetectionTrainingSet(split, WINDOWS, PIXELS, seed=0, levels=3)


def tensors(batch):
    return {name: batch[name] for name in TENSORS}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_step_of_one_batch_is_the_authors_loss(dataset, encoder):
    model, other = detector(encoder).train(), detector(encoder).train()
    objective = DetectionObjective(model)
    for place in range(3):  # the normaliser moves on
        batch = dataset.collate([dataset[PlacedRow(index, place)] for index in range(2)])
        for one in (model, other):
            one.zero_grad()
        torch.manual_seed(place)  # of drop-path
        loss = objective(**tensors(batch)) / objective.divisor(batch["count"])
        loss.backward()
        real = batch["labels"] != NO_ACTION
        actions = ([v[r] for v, r in zip(batch[name], real, strict=True)] for name in ("segments", "labels"))
        torch.manual_seed(place)
        losses = other.loss(other(batch["clips"], batch["mask"]), *actions)
        (losses.classes + losses.segments).backward()
        assert loss.item() == pytest.approx((losses.classes + losses.segments).item(), rel=1e-6)
        assert torch.equal(model.loss.normaliser, other.loss.normaliser)
        found, expected = gradients(model), gradients(other)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    assert 73 < float(model.loss.normaliser) < 100  # 100 * 0.9^3, and what was found


def test_the_gradient_does_not_depend_on_how_a_step_is_split(dataset, encoder):
    rows = [dataset[PlacedRow(index, place)] for place in range(2) for index in range(2)]
    found = []
    for size in (4, 2, 1):
        model = detector(encoder, **WITHOUT, drop_path=0.0).train()
        for module in model.modules():  # drop-path of the detector, too
            if type(module).__name__ == "DropPath":
                module.drop_prob = 0.0
        objective = DetectionObjective(model)
        batches = [dataset.collate(rows[first : first + size]) for first in range(0, 4, size)]
        divisor = objective.divisor(sum(batch["count"] for batch in batches))
        for batch in batches:
            (objective(**tensors(batch)) / divisor).backward()
        found.append(gradients(model))
        assert float(model.loss.normaliser) == divisor
    for other in found[1:]:
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-3, atol=1e-5)


def test_a_batch_without_a_window_reaches_all_that_trains_and_changes_nothing(dataset, encoder):
    model = detector(encoder).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss = DetectionObjective(model)(**tensors(dataset.collate([Rejected("x", "torn")])))
    loss.backward()
    assert loss.item() == 0 and model.training
    found = gradients(model)
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(gradient.any() for gradient in found.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_window_of_background_alone_still_teaches_its_classes(dataset, encoder):
    model = detector(encoder).train()
    batch = dataset.collate([dataset[0]])
    batch["labels"] = torch.full_like(batch["labels"], NO_ACTION)
    loss = DetectionObjective(model)(**tensors(batch))
    loss.backward()
    assert loss.item() > 0
    assert model.detector.head.cls_out.weight.grad.any()
    assert model.detector.head.cls_out.weight.shape[0] == len(CLASSES)
    assert not model.detector.head.distance_out.weight.grad.any()


def test_the_average_follows_each_step(encoder):
    model = detector(encoder)
    average = WeightAverage(model.trained_state, decay=0.5)
    objective = DetectionObjective(model, average)
    before = model.detector.head.cls_out.bias.clone()
    with torch.no_grad():
        model.detector.head.cls_out.bias += 1
    objective.after_step()
    torch.testing.assert_close(average.average["detector.head.cls_out.bias"], before + 0.5)
