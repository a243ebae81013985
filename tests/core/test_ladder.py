"""Owns: the ladder equals the authors' temporal encoder, takes any clip, and puts modules where it should."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from moss_vllm.core import MOSS, presets
from moss_vllm.core.ladder import Ladder, TemporalBlock, Tokeniser, shift_in_time

GOLDEN = Path(__file__).parents[1] / "golden" / "ladder_every_second_layer.safetensors"


def small_ladder(temporal=None, grid=(4, 4), layers=(2, 3)):
    torch.manual_seed(0)
    sizes = {"heads": 2, "classes": 5, "patch_size": 2}
    return Ladder(6, 8, layers=layers, grid=grid, temporal=temporal, **sizes).eval()


def clip(batch=2, frames=3, height=4, width=4, layers=2, patch=2):
    generator = torch.Generator().manual_seed(1)
    taps = torch.randn(layers, batch, frames, 1 + height * width, 6, generator=generator)
    return taps, torch.randn(batch, frames, 3, height * patch, width * patch, generator=generator)


class Probe(nn.Module):
    """Remembers what it reads and returns a constant."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        self.read = x
        return x.new_full((*x.shape[:-1], 8), self.value)


def test_golden_values_and_every_weight_gets_a_gradient():
    with safe_open(GOLDEN, "pt") as file:
        golden = {key: file.get_tensor(key) for key in file.keys()}
        settings = {key: json.loads(value) for key, value in file.metadata().items()}
    layers = [layer + 1 for layer in settings["tapped_layers_zero_based"]]
    at = [layer + 1 for layer in settings["moss_after_layer_zero_based"]]
    moss = MOSS(48, 64, window=tuple(settings["window"]), d_hidden=16, d_similarity=8)
    ladder = Ladder(
        48, 64, heads=1, layers=layers, classes=3, patch_size=2, grid=(5, 5), temporal={at[0]: moss}
    ).eval()
    weights = {key.removeprefix("weights."): value for key, value in golden.items() if "weights." in key}
    missing, unexpected = ladder.load_state_dict(weights, strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} == {"stem", "norm", "head"}

    output = ladder.encode(golden["taps"][[layer - 1 for layer in layers]], golden["video_tokens"])
    assert (output - golden["output"]).abs().max() <= 1e-5 * golden["output"].abs().max()
    ladder.head(ladder.pool(output)).square().sum().backward()
    without = {name for name, p in ladder.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {name for name, _ in ladder.named_parameters() if name.startswith("stem.")}  # not run


@pytest.mark.parametrize("frames, height, width", [(1, 4, 4), (5, 4, 4), (3, 2, 7), (2, 6, 3), (2, 1, 1)])
@pytest.mark.parametrize("with_moss", [True, False])
def test_any_frame_count_and_grid(frames, height, width, with_moss):
    moss = MOSS(6, 8, window=(3, 5, 5), d_hidden=4, d_similarity=4) if with_moss else None
    ladder = small_ladder({2: moss} if moss else None)
    taps, video = clip(2, frames, height, width)
    scores = ladder(taps, video)
    assert scores.shape == (2, 5) and torch.isfinite(scores).all()
    torch.testing.assert_close(ladder(list(taps[:, 1:]), video[1:]), scores[1:])


def test_position_table_is_resized_to_another_grid_only():
    ladder = small_ladder(grid=(3, 4))
    with torch.no_grad():
        ladder.position_embedding.copy_(torch.arange(12.0)[:, None].expand(12, 8))
    assert ladder._position(3, 4) is ladder.position_embedding
    resized = ladder._position(6, 8).view(6, 8, 8)
    rows = torch.tensor([[0.0, 4.0, 8.0]]).view(1, 1, 3, 1)
    expected = nn.functional.interpolate(rows.expand(1, 1, 3, 4), size=(6, 8), mode="bicubic")[0, 0]
    assert (resized.diff(dim=0) > 0).all() and (resized.diff(dim=1) > 0).all()  # still in reading order
    torch.testing.assert_close(resized.mean(dim=(1, 2)) - 1.5, expected.mean(dim=1), atol=1e-5, rtol=0)


def test_a_module_reads_its_layers_patches_and_is_added_there():
    baseline, (taps, video) = small_ladder(), clip(height=2, width=3)
    probes = {2: Probe(0.0), 3: Probe(0.0)}
    ladder = small_ladder(probes)
    ladder.load_state_dict(baseline.state_dict())
    assert torch.equal(ladder(taps, video), baseline(taps, video))
    for index, probe in enumerate(probes.values()):
        assert torch.equal(probe.read.flatten(2, 3), taps[index, :, :, 1:])
        assert probe.read.shape == (2, 3, 2, 3, 6)
    assert ladder.moss is probes[2] and ladder.moss2 is probes[3]
    probes[3].value = 1.0
    assert not torch.equal(ladder(taps, video), baseline(taps, video))


def test_first_half_comes_from_the_next_frame_second_from_the_previous():
    token = torch.arange(12.0).view(1, 3, 1, 4)
    expected = torch.tensor([[4.0, 5, 0, 0], [8, 9, 2, 3], [0, 0, 6, 7]]).view(1, 3, 1, 4)
    assert torch.equal(shift_in_time(token), expected)
    assert shift_in_time(token[:, :1]).eq(0).all()


def test_a_token_is_made_of_its_own_patch_in_its_frame_and_the_two_beside_it():
    stem, (_, video) = small_ladder().stem, clip(1, 5)
    before = stem(video)
    video[0, 1, :, 2:4, 4:6] += 1  # the patch in row 1, column 2 of frame 1
    changed = (stem(video) - before).abs().amax(dim=-1)[0] > 1e-6
    assert changed.nonzero().tolist() == [[0, 1, 2], [1, 1, 2], [2, 1, 2]]


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_bfloat16_gradient_of_the_stem_is_float32s(frames):
    torch.manual_seed(0)
    stem, video = Tokeniser(16, patch_size=16).eval(), torch.randn(2, frames, 3, 32, 32)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            loss = stem(video).float().square().sum()
        # A part of the gradient that nothing writes would be what is left in memory: NaN from here.
        left = [torch.full((size,), float("nan")) for size in (1000, 5000, 20_000, 12_288, 36_864, 50_000)]
        del left
        gradients.append(torch.autograd.grad(loss, stem.conv.weight)[0])
    assert (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()


def test_block_mixes_half_of_each_and_attends_to_the_neighbours_class_token():
    ladder, (taps, video) = small_ladder(layers=(2,)), clip(1, 3, 2, 2, layers=1)
    block = ladder.block0
    tokens = ladder.stem(video)
    for name in ("conv_out", "attn.out_proj", "mlp.out"):  # nothing but the mix is left
        nn.init.zeros_(block.get_submodule(name).weight)
        nn.init.zeros_(block.get_submodule(name).bias)
    mixed = 0.5 * tokens + 0.5 * block.adapter(block.adapter_norm(taps[0, :, :, 1:])).view_as(tokens)
    torch.testing.assert_close(ladder.encode(taps, tokens), mixed)

    nn.init.eye_(block.attn.out_proj.weight)
    before = ladder.encode(taps, tokens)
    taps[0, 0, 1, 0] += torch.randn(6)  # the middle frame's class token reaches the frames beside it only
    changed = (ladder.encode(taps, tokens) - before).abs().amax(dim=(0, 2, 3, 4)) > 1e-6
    assert changed.tolist() == [True, False, True]


def test_errors_name_what_does_not_fit():
    ladder, (taps, video) = small_ladder(), clip()
    with pytest.raises(ValueError, match=r"got 1 taps; the ladder reads layers \(2, 3\)"):
        ladder(taps[:1], video)
    with pytest.raises(ValueError, match=r"layer 2 has shape \(2, 3, 16, 6\).* needs \(2, 3, 17\)"):
        ladder(taps[:, :, :, 1:], video)
    with pytest.raises(ValueError, match=r"layers \[4\] would never run: the ladder taps layers \(2, 3\)"):
        small_ladder({2: Probe(0.0), 4: Probe(0.0)})
    for layers in ((), (3, 2), (2, 2), (0, 2)):
        with pytest.raises(ValueError, match="increasing layers counted from 1"):
            small_ladder(layers=layers)


@pytest.mark.parametrize("preset", [presets.MOSS_S, presets.MOSS_B], ids=["s", "b"])
def test_first_weights_are_spread_as_the_authors(preset):
    """Their adapters keep torch's default whatever the width; what is fixed by width is the rest."""
    torch.manual_seed(0)
    block = TemporalBlock(768, preset.d_out, heads=preset.d_out // 64)
    bound = 768**-0.5
    assert block.adapter.weight.abs().max() <= bound and block.adapter.bias.abs().max() <= bound
    spreads = {
        "adapter": (block.adapter.weight, 0.0208),
        "attn in": (block.attn.in_proj_weight, preset.d_out**-0.5),
        "attn out": (block.attn.out_proj.weight, (24 * preset.d_out) ** -0.5),
        "mlp in": (block.mlp.get_submodule("in").weight, (2 * preset.d_out) ** -0.5),
        "mlp out": (block.mlp.get_submodule("out").weight, (24 * preset.d_out) ** -0.5),
    }
    for name, (weight, spread) in spreads.items():
        assert weight.std().item() == pytest.approx(spread, rel=0.01), name
