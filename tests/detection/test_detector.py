"""Owns: the detector equals the authors' ActionFormer, has its size and its start, and takes any length."""

import math
import re

import pytest
import torch
from golden_adatad import DETECTOR_NAMES, assert_near, behind, detector_weights, read_golden, renamed
from torch import nn

from moss_vllm.detection.detector import ChannelNorm, Detector, ScaledDropPath
from moss_vllm.detection.points import pyramid_points

SMALL = {"dim": 24, "heads": 4, "levels": 4}


@pytest.fixture
def golden():
    return read_golden("detector")[0]


def golden_detector(golden):
    detector = Detector(20, 5, **SMALL).eval()
    detector.load_state_dict(detector_weights(golden))
    return detector


def test_golden_values_of_every_level(golden):
    detector = golden_detector(golden)
    pyramid = detector.pyramid(golden["features"], golden["mask"])
    outputs = detector(golden["features"], golden["mask"])
    points = pyramid_points([len(output.mask[0]) for output in outputs]).split(
        [len(output.mask[0]) for output in outputs]
    )
    assert len(outputs) == len(pyramid) == 4
    for level, output in enumerate(outputs):
        expected = behind(f"level{level}.", golden)
        assert torch.equal(output.mask, expected["mask"]) and torch.equal(points[level], expected["points"])
        assert_near(pyramid[level][0], expected["projection"])
        assert_near(detector.neck[level](pyramid[level][0]), expected["neck"])
        assert_near(output.cls_logits, expected["cls_logits"])
        assert_near(output.distances, expected["reg"])


def test_golden_gradients(golden):
    detector, features = golden_detector(golden), golden["features"].requires_grad_()
    total = 0
    for level, output in enumerate(detector(features, golden["mask"])):
        gradients = behind(f"level{level}.grad_", golden)
        total = total + (output.cls_logits * gradients["cls_logits"]).sum()
        total = total + (output.distances * gradients["reg"]).sum()
    total.backward()
    assert_near(features.grad, golden["grad_features"])
    gradients = behind("grad_weights.", golden)
    assert len(gradients) == 6
    for name, gradient in gradients.items():
        if level := re.fullmatch(r"rpn_head\.scale\.(\d)\.scale", name):
            own = detector.head.level_scales.grad[int(level[1])]
        else:
            own = detector.get_parameter(renamed(name, DETECTOR_NAMES)).grad
        assert_near(own.reshape(gradient.shape), gradient)


@pytest.mark.parametrize("d_in, millions", [(384, 26.70), (768, 27.29), (1024, 27.68)])
def test_parameters(d_in, millions):
    with torch.device("meta"):
        assert round(sum(p.numel() for p in Detector(d_in, 20).parameters()) / 1e6, 2) == millions


def test_it_starts_as_the_authors_does():
    torch.manual_seed(0)
    detector = Detector(40, 3, dim=32)
    for name, module in detector.named_modules():
        if isinstance(module, nn.Conv1d):
            bound = (module.in_channels // module.groups * module.kernel_size[0]) ** -0.5
            assert 0.8 * bound < module.weight.abs().max().item() <= bound
            if module.bias is not None and not name.startswith("head."):
                assert not module.bias.any()
        if isinstance(module, ChannelNorm):
            assert (module.weight == 1).all() and not module.bias.any()
        if isinstance(module, ScaledDropPath):
            assert (module.scale == 1e-4).all()
    assert (detector.head.level_scales == 1).all() and detector.head.distance_out.bias.all()
    assert torch.allclose(detector.head.cls_out.bias, torch.tensor(-math.log(99)))
    scores = torch.cat([level.cls_logits.sigmoid().flatten() for level in detector(*window(1, 64, 40))])
    assert 0.005 < scores.mean().item() < 0.02
    assert {module.eps for name, module in detector.named_modules() if isinstance(module, ChannelNorm)} == {
        1e-5, 1e-6
    }  # fmt: skip


def window(batch, length, d_in=20, valid=None):
    features = torch.randn(batch, d_in, length, generator=torch.Generator().manual_seed(length))
    return features, torch.arange(length).expand(batch, -1) < (valid or length)


@pytest.mark.parametrize("length, lengths", [(1, [1, 1, 1, 1]), (13, [13, 7, 4, 2]), (32, [32, 16, 8, 4])])
def test_any_length(length, lengths):
    levels = Detector(20, 5, **SMALL).eval()(*window(2, length))
    assert [level.mask.shape for level in levels] == [(2, steps) for steps in lengths]
    assert [level.cls_logits.shape for level in levels] == [(2, 5, steps) for steps in lengths]
    assert all(level.distances.shape[1] == 2 and (level.distances >= 0).all() for level in levels)
    assert len(pyramid_points(lengths)) == sum(lengths)


def test_windows_do_not_see_each_other_and_far_padding_does_not_count():
    torch.manual_seed(0)
    detector = Detector(20, 5, **SMALL).eval()
    features, mask = window(2, 32, valid=20)
    alone = detector(features[1:], mask[1:])
    changed = features.clone()
    changed[:, :, 22:] = 9  # the first convolution sees one padded step
    for one, own, other in zip(detector(features, mask), alone, detector(changed, mask), strict=True):
        torch.testing.assert_close(one.cls_logits[1:], own.cls_logits)
        real = int(one.mask[0].sum())
        assert torch.equal(one.cls_logits[..., :real], other.cls_logits[..., :real])
    changed[:, :, 20] = 9
    assert not torch.equal(detector(changed, mask)[0].cls_logits, alone[0].cls_logits)


def test_drop_path_in_training_alone():
    torch.manual_seed(0)
    detector = Detector(20, 5, **SMALL, drop_path=0.5)
    for module in detector.modules():
        if isinstance(module, ScaledDropPath):
            nn.init.ones_(module.scale)
    features, mask = window(2, 32)
    first, second = (detector(features, mask)[0].cls_logits for _ in range(2))
    assert not torch.equal(first, second)
    detector.eval()
    assert torch.equal(detector(features, mask)[0].cls_logits, detector(features, mask)[0].cls_logits)


def test_bfloat16_autocast_is_near_float32(golden):
    detector = golden_detector(golden)
    with torch.autocast("cpu", torch.bfloat16):
        level = detector(golden["features"], golden["mask"])[0]
    assert_near(level.cls_logits.float(), golden["level0.cls_logits"], 0.05)


@pytest.mark.parametrize(
    "features, mask, message",
    [
        (torch.ones(1, 19, 8), torch.ones(1, 8) > 0, r"\(B, 20, T\), got \(1, 19, 8\); build it"),
        (torch.ones(1, 20, 8), torch.ones(1, 9) > 0, r"of shape \(1, 9\); .* True on real steps"),
        (torch.ones(1, 20, 8), torch.ones(1, 8), "the mask is torch.float32 .* need torch.bool"),
    ],
)
def test_sizes_that_do_not_fit(features, mask, message):
    with pytest.raises(ValueError, match=message):
        Detector(20, 5, **SMALL)(features, mask)


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(ValueError, match="heads=5 do not divide the detector's width 512"):
        Detector(20, 5, heads=5)
