"""Owns: BasicGEBD's head equals the authors' in both modes, gradients and BatchNorm's statistics included."""

import pytest
import torch
import torch.nn.functional as F
from golden_adatad import assert_near, behind
from golden_gebd import as_here, load_head, read_golden, soften
from torch import nn

from moss_vllm.boundaries.head import BoundaryHead
from moss_vllm.boundaries.loss import boundary_losses
from moss_vllm.boundaries.map_encoder import MapEncoder


class GoldenHead(BoundaryHead):
    """The head of the golden case, whose input is features after the projection; it keeps what is inside."""

    def __init__(self, golden, settings):
        super().__init__(settings["C"], d_frame=settings["C"], map_widths=settings["map_widths"])
        load_head(self, behind("weights.", golden))
        self.map_encoder.register_forward_hook(lambda _, maps, out: setattr(self, "seen", (maps[0], out)))
        self.project = nn.Identity()


@pytest.fixture(scope="module")
def golden():
    return read_golden("window_head")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_head(golden, mode):
    golden, settings = golden
    expected = behind(f"{mode}.", golden)
    head = GoldenHead(golden, settings).train(mode == "train")
    features = golden["features"].clone().requires_grad_()  # not negative: its ReLU changes nothing
    logits = head(features)
    assert_near(logits, expected["logits"])
    maps, encoded = head.seen
    assert_near(encoded, expected["encoded"].flatten(0, 1))
    if mode == "eval":
        assert_near(maps.reshape(expected["similarity"].shape), expected["similarity"])
        assert_near(logits.sigmoid(), expected["scores"])
    else:
        assert_near(boundary_losses(logits, soften(golden["hard_targets"])).mean(), expected["loss_gaussian"])
    logits.backward(golden["grad_logits"])
    assert_near(features.grad, expected["grad_features"])
    gradients = as_here(behind("grad_weights.", expected))
    assert len(gradients) == 5
    for name, gradient in gradients.items():
        assert_near(head.get_parameter(name.removeprefix("head.")).grad, gradient)
    for name, statistic in as_here(behind("after.", expected)).items():
        assert_near(head.get_buffer(name.removeprefix("head.")), statistic)


def test_a_clip_shorter_than_the_window(golden):
    golden, settings = golden
    head = GoldenHead(golden, settings).eval()
    assert_near(head(golden["short.features"]), golden["short.eval.logits"])
    assert head(torch.rand(2, 1, settings["C"])).shape == (2, 1)


def test_a_window_repeats_the_end_frames_of_its_own_clip():
    torch.manual_seed(0)
    head = BoundaryHead(4, d_frame=6, map_widths=(4, 4, 4, 4, 4), reach=2)
    nn.init.zeros_(head.temporal_conv.weight)
    nn.init.constant_(head.temporal_conv.bias, -1.0)  # its ReLU gives 0: frames are compared as they are
    frames = torch.rand(2, 4, 6)
    maps = head.compare(frames)
    for clip in range(2):
        for middle in range(4):
            window = frames[clip, [min(max(middle + step, 0), 3) for step in (-2, -1, 0, 1, 2)]]
            expected = F.cosine_similarity(window[:, None], window[None], dim=2)
            torch.testing.assert_close(maps[clip, middle], expected)


def test_frames_without_features_resemble_nothing_and_give_finite_gradients():
    torch.manual_seed(0)
    head = BoundaryHead(4, d_frame=6, map_widths=(4, 4, 4, 4, 4))
    nn.init.constant_(head.project.bias, -9.0)  # its ReLU gives 0 everywhere
    nn.init.constant_(head.temporal_conv.bias, -9.0)
    features = torch.rand(1, 5, 4, requires_grad=True)
    assert not head.compare(F.relu(head.project(features))).any()
    head(features).sum().backward()
    assert torch.isfinite(features.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())


def test_it_computes_in_float32_under_autocast():
    torch.manual_seed(0)
    head = BoundaryHead(4, d_frame=6, map_widths=(4, 4, 4, 4, 4)).eval()
    features = torch.rand(1, 9, 4)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(features)
    assert torch.equal(logits, head(features))


def test_a_map_encoder_has_five_widths():
    with pytest.raises(ValueError, match=r"map widths \(4, 4\); give 5: of the stem and of each block"):
        MapEncoder((4, 4))
