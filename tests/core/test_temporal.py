"""Owns: the compared modules meet the paper's budgets, see only what they should, start at zero if asked.

Attention products and similarities are counted by hand where they pass a fused kernel or a custom operator.
"""

import itertools
import math
from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moss_vllm.core import attention, temporal
from moss_vllm.core.attention import FactorisedAttention, LocalAttention, window_attention, window_mask
from moss_vllm.core.temporal import (
    ATM,
    SECOND_ENCODERS,
    SELFY,
    TEMPORAL_MODULES,
    R2Plus1D,
    UVConvolutions,
    frame_differences,
)

# Constructor arguments that make each module small.
SMALL = {
    "selfy": {"window": (3, 5, 7), "d_hidden": 32},
    "atm": {"window": (3, 5, 7), "d_hidden": 16},
    "r2plus1d": {"d_hidden": 8, "depth": 2},
    "factorised_attention": {"d_hidden": 8, "depth": 2, "heads": 2},
    "local_attention": {"window": (3, 5, 7), "d_hidden": 8, "heads": 2},
    "difference": {"length": 3, "d_hidden": 8},
}
EACH = pytest.mark.parametrize("name", TEMPORAL_MODULES)


def small(name, d_in=6, d_out=5, **options):
    torch.manual_seed(0)
    return TEMPORAL_MODULES[name](d_in, d_out, **SMALL[name], **options)


def settled(module, x):
    """`module` in eval mode with the BatchNorm statistics of `x`; fresh ones would let the signal vanish."""
    for layer in module.modules():
        if hasattr(layer, "momentum"):
            layer.momentum = 1.0
    module.train()(x)
    return module.eval()


def multiply_adds(module, d_in, monkeypatch):
    """For one clip of 8 frames of 14 x 14; an STSS counts as L products of whole frames, as in the paper."""
    counted = Counter()

    def count_stss(x, window):
        counted["stss"] += window[0] * 8 * 196**2 * x.shape[-1]
        return x.new_zeros(*x.shape[:4], *window)

    def count_window_attention(q, k, v, *, length, mask):
        counted["window"] += 2 * math.prod(module.window) * q.numel()
        return q

    monkeypatch.setattr(temporal, "stss", count_stss)
    monkeypatch.setattr(attention, "window_attention", count_window_attention)
    with FlopCounterMode(display=False) as counter:
        module(torch.empty(1, 8, 14, 14, d_in, device="meta"))
    return counter.get_total_flops() / 2 + counted.total()


@pytest.mark.parametrize(
    "make, d_in, parameters_m, multiply_adds_g, paper_m, paper_g",
    [
        (SELFY, 768, 0.6146, 2.620, 0.6, 2.7),
        (ATM, 768, 1.5228, 4.410, 1.5, 4.8),
        (R2Plus1D, 768, 1.8960, 2.967, 1.9, 3.0),
        (FactorisedAttention, 768, 1.9617, 3.432, 2.1, 3.4),
        (LocalAttention, 768, 1.0733, 2.164, 1.1, 2.2),
        (SECOND_ENCODERS["r2plus1d"], 192, 0.7221, 1.130, 0.7, 1.1),
        (SECOND_ENCODERS["factorised_attention"], 192, 0.6664, 1.163, 0.7, 1.2),
        (SECOND_ENCODERS["difference"], 192, 0.5296, 1.522, 0.5, 1.5),
    ],
)
def test_budgets(make, d_in, parameters_m, multiply_adds_g, paper_m, paper_g, monkeypatch):
    with torch.device("meta"):
        module = make(d_in, 192)
    counted_m = sum(p.numel() for p in module.parameters()) / 1e6
    counted_g = multiply_adds(module, d_in, monkeypatch) / 1e9
    assert counted_m == pytest.approx(parameters_m, abs=1e-4)
    assert counted_g == pytest.approx(multiply_adds_g, abs=1e-3)
    # The paper prints differences of rounded sums. Farthest off: ATM (4.41 of 4.8 G), attention (0.14 M).
    assert counted_m == pytest.approx(paper_m, abs=0.15)
    assert counted_g == pytest.approx(paper_g, rel=0.09)


@EACH
@pytest.mark.parametrize("shape", [(2, 5, 3, 7, 6), (3, 1, 4, 2, 6), (1, 2, 1, 9, 6)])
@pytest.mark.parametrize("training", [True, False])
def test_any_clip_shape(name, shape, training):
    module = small(name).train(training)
    output = module(torch.randn(shape))
    assert output.shape == (*shape[:4], 5) and torch.isfinite(output).all()


@EACH
def test_clips_of_a_batch_do_not_mix(name):
    clips = torch.randn(3, 4, 3, 5, 6)
    module = settled(small(name), clips)
    with torch.no_grad():
        alone = torch.cat([module(clip) for clip in clips.split(1)])
        torch.testing.assert_close(module(clips), alone, rtol=1e-4, atol=1e-5)
        assert (alone[0] - alone[1]).abs().max() > 0.1


@pytest.mark.parametrize("make", [*TEMPORAL_MODULES.values(), *SECOND_ENCODERS.values()])
def test_zero_init_is_zero_and_learns(make):
    module = make(6, 5, zero_init=True)
    output = module(torch.randn(1, 3, 4, 5, 6))
    assert torch.count_nonzero(output) == 0
    (output - torch.randn_like(output)).square().sum().backward()
    assert module.out_proj.weight.grad.abs().max() > 0 and module.out_proj.bias.grad.abs().max() > 0


@EACH
def test_every_parameter_gets_a_gradient(name):
    module = small(name)
    module(torch.randn(2, 4, 5, 6, 6)).square().sum().backward()
    assert [key for key, p in module.named_parameters() if p.grad is None] == []


@EACH
def test_autocast_and_bfloat16(name):
    x = torch.randn(2, 4, 5, 6, 6)
    module = small(name)
    expected = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (module(x).float() - expected).abs().max() < 0.15 * expected.abs().max()
    output = module.bfloat16()(x.bfloat16())
    assert output.dtype == torch.bfloat16 and torch.isfinite(output).all()


def reached(module, d_in=6, shape=(5, 5, 6), at=(2, 2, 3)):
    """Positions (T, H, W) whose change moves the output at `at`."""
    x = torch.randn(1, *shape, d_in, requires_grad=True)
    module.eval()(x)[(0, *at)].sum().backward()
    return x.grad[0].abs().sum(-1) > 1e-9


def expected_reach(t, y, x, shape=(5, 5, 6)):
    positions = torch.zeros(shape, dtype=torch.bool)
    positions[t, y, x] = True
    return positions


@pytest.mark.parametrize(
    "still, reach",
    [
        ("none", (slice(1, 4), slice(1, 4), slice(2, 5))),
        ("time", (2, slice(1, 4), slice(2, 5))),
        ("space", (slice(1, 4), 2, 3)),
    ],
)
def test_r2plus1d_convolves_space_then_time(still, reach):
    torch.manual_seed(0)
    module = R2Plus1D(6, 5, d_hidden=16, depth=1)
    space, time = module.blocks[0][0].weight, module.blocks[0][3].weight
    assert space.shape == (36, 16, 1, 3, 3) and time.shape == (16, 36, 3, 1, 1)
    with torch.no_grad():
        if still == "time":
            time[:, :, [0, 2]] = 0
        if still == "space":
            space[..., [0, 2], :] = 0
            space[..., [0, 2]] = 0
    assert torch.equal(reached(module), expected_reach(*reach))


def test_r2plus1d_adds_to_what_it_convolves():
    module, x = small("r2plus1d"), torch.randn(2, 3, 4, 5, 6)
    for block in module.blocks:
        torch.nn.init.zeros_(block[3].weight)
    torch.testing.assert_close(module(x), module.out_proj(module.in_proj(x).relu()))


@pytest.mark.parametrize(
    "still, reach",
    [
        ("none", (slice(None), slice(None), slice(None))),
        ("time", (2, slice(None), slice(None))),
        ("space", (slice(None), 2, 3)),
    ],
)
def test_factorised_attention_attends_in_space_then_time(still, reach):
    torch.manual_seed(0)
    module = FactorisedAttention(6, 5, d_hidden=8, depth=1, heads=2)
    if still != "none":
        torch.nn.init.zeros_(getattr(module, still)[0].proj.weight)
    assert torch.equal(reached(module), expected_reach(*reach))


def test_factorised_attention_commutes_with_the_order_of_frames():
    module, x, order = small("factorised_attention"), torch.randn(2, 5, 3, 4, 6), [3, 0, 4, 1, 2]
    torch.testing.assert_close(module(x[:, order]), module(x)[:, order])


def brute_force_attention(q, k, v, shape, window):
    """One query at a time over an explicit list of its neighbours; q, k, v (B, heads, T*H*W, D)."""
    positions = list(itertools.product(*map(range, shape)))
    output = []
    for query, here in enumerate(positions):
        near = [
            key
            for key, there in enumerate(positions)
            if all(abs(a - b) <= side // 2 for a, b, side in zip(here, there, window, strict=True))
        ]
        scores = torch.einsum("nhd,nhkd->nhk", q[:, :, query], k[:, :, near]) / math.sqrt(q.shape[-1])
        output.append(torch.einsum("nhk,nhkd->nhd", scores.softmax(-1), v[:, :, near]))
    return torch.stack(output, dim=2)


@pytest.mark.parametrize(
    "shape, window",
    [((4, 3, 5), (3, 3, 3)), ((6, 4, 3), (5, 1, 3)), ((2, 3, 4), (7, 9, 11)), ((1, 5, 2), (1, 3, 1))],
)
def test_window_attention_equals_brute_force(shape, window):
    torch.manual_seed(0)
    tokens = math.prod(shape)
    qkv = torch.randn(3, 2, 2, tokens, 4, dtype=torch.float64, requires_grad=True)
    mask = window_mask(*shape, window, qkv.device)
    actual = window_attention(*qkv, length=window[0], mask=mask)
    expected = brute_force_attention(*qkv, shape, window)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)
    grad = torch.randn_like(actual)
    torch.testing.assert_close(
        *(torch.autograd.grad(output, qkv, grad)[0] for output in (actual, expected)), rtol=0, atol=1e-6
    )


def test_local_attention_sees_its_window_alone():
    torch.manual_seed(0)
    module = LocalAttention(6, 5, window=(3, 3, 5), d_hidden=8, depth=1, heads=2)
    assert torch.equal(reached(module), expected_reach(slice(1, 4), slice(1, 4), slice(1, 6)))
    at_the_corner = reached(module, at=(0, 0, 5))
    assert torch.equal(at_the_corner, expected_reach(slice(0, 2), slice(0, 2), slice(3, 6)))


def test_local_attention_with_the_whole_clip_in_its_window_is_attention():
    module = LocalAttention(6, 5, window=(9, 9, 11), d_hidden=8, depth=1, heads=2)
    x = torch.randn(2, 4, 3, 5, 6)
    tokens = module.in_proj(x).flatten(1, 3)
    tokens = tokens + module.attention[0](tokens)
    expected = module.out_proj(tokens + module.mlp[0](tokens)).view(2, 4, 3, 5, 5)
    torch.testing.assert_close(module(x), expected)


def test_frame_differences():
    x = torch.randn(2, 4, 2, 3, 5)
    differences = frame_differences(x, 5)
    assert differences.shape == (2, 4, 2, 3, 5, 5)
    for t, index in itertools.product(range(4), range(5)):
        there = t + index - 2
        expected = x[:, there] - x[:, t] if 0 <= there < 4 else torch.zeros(2, 2, 3, 5)
        assert torch.equal(differences[:, t, :, :, index], expected)


@pytest.mark.parametrize("training", [True, False])
def test_a_still_clip_has_no_difference(training):
    module = small("difference").train(training)
    still = torch.randn(2, 1, 4, 5, 6).expand(2, 5, 4, 5, 6)
    assert torch.equal(module(still), module.out_proj.bias.expand(2, 5, 4, 5, 5))
    moving = torch.stack([still[:, 0].roll(t, dims=2) for t in range(5)], dim=1)
    assert (module(moving) - module.out_proj.bias).abs().amax(dim=(0, 2, 3, 4)).min() > 1e-3


def test_selfy_reads_similarity_alone():
    # Turning all features by one rotation leaves every cosine as it is.
    x = torch.randn(2, 3, 4, 5, 6)
    module = settled(small("selfy"), x)
    before = module(x)
    rotation = torch.linalg.qr(torch.randn(32, 32)).Q
    with torch.no_grad():
        module.in_proj.weight.copy_(rotation @ module.in_proj.weight)
        module.in_proj.bias.copy_(rotation @ module.in_proj.bias)
    torch.testing.assert_close(module(x), before, rtol=1e-3, atol=1e-4)
    assert before.std() > 0.1


def test_atm_takes_differences_of_what_similarity_changed():
    module = small("atm")
    still = torch.randn(1, 1, 4, 5, 6).expand(1, 5, 4, 5, 6)
    with torch.no_grad():
        module.out_proj.weight[:, :16] = 0  # the second branch alone
    assert (module(still) - module.out_proj.bias).abs().max() < 1e-5
    # At the ends of the clip there is nothing to be similar to, so there the first branch moves a still clip.
    torch.nn.init.normal_(module.similarity_out.weight)
    assert (module(still) - module.out_proj.bias).abs().max() > 0.1


@pytest.mark.parametrize(
    "rows, columns, left", [(9, 9, (3, 3)), (1, 1, (1, 1)), (5, 11, (2, 3)), (7, 21, (2, 6))]
)
def test_uv_convolutions_end_in_one_position(rows, columns, left):
    maps = torch.randn(2, 3, 2, 4, 5, rows, columns)
    module = settled(UVConvolutions(16, rows=rows, columns=columns), maps)
    assert module.layers[9].kernel_size == left
    encoded = module(maps)
    assert encoded.shape == (2, 3, 2, 4, 5, 16)
    one = module(maps[1:, 2:, 1:, 3:, 4:])
    torch.testing.assert_close(encoded[1, 2, 1, 3, 4], one[0, 0, 0, 0, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("selfy", {"window": (5, 8, 9)}, r"odd sizes .* got \(5, 8, 9\)"),
        ("atm", {"window": (5, 9)}, r"odd sizes .* got \(5, 9\)"),
        ("local_attention", {"window": (0, 9, 9)}, r"odd sizes .* got \(0, 9, 9\)"),
        ("difference", {"length": 4}, r"odd sizes .* got \(4, 1, 1\)"),
        ("selfy", {"d_hidden": 40}, "go to 20 channels .* multiple of 16"),
        ("atm", {"d_hidden": 8}, "go to 8 channels .* multiple of 16"),
        ("local_attention", {"d_hidden": 160}, "heads=3 does not divide d_hidden=160"),
        ("factorised_attention", {"heads": 0}, "heads=0 does not divide d_hidden=192"),
        ("factorised_attention", {"depth": 0}, "depth=0"),
        ("local_attention", {"depth": 0}, "depth=0"),
        ("r2plus1d", {"depth": -1}, "depth=-1"),
    ],
)
def test_bad_arguments(name, options, message):
    with pytest.raises(ValueError, match=message):
        TEMPORAL_MODULES[name](6, 5, **options)


def test_bfloat16_gradients_of_two_frames_are_whole():
    # oneDNN leaves a part of them unwritten if it pads two frames itself: they hold what lay there before.
    module = small("r2plus1d").bfloat16()
    for _ in range(5):
        torch.full((2**16,), float("nan"), dtype=torch.bfloat16)
        module.zero_grad()
        module(torch.randn(2, 2, 3, 4, 6).bfloat16()).sum().backward()
        assert all(p.grad.isfinite().all() for p in module.parameters())
