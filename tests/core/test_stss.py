"""Owns: STSS equals the authors' values and gradients, fast equals plain, odd inputs give sane numbers."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from moss_vllm.core import stss, stss_plain

GOLDEN = Path(__file__).parents[1] / "golden"
BOTH = pytest.mark.parametrize("similarity", [stss, stss_plain])


def assert_close(actual: torch.Tensor, expected: torch.Tensor, relative: float = 1e-4) -> None:
    assert (actual - expected).abs().max() <= relative * expected.abs().max()


@BOTH
@pytest.mark.parametrize("name", ["stss_odd", "stss_wide", "stss_window_over_grid"])
def test_golden_values_and_gradients(name, similarity):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        golden = {key: file.get_tensor(key) for key in file.keys()}
        window = tuple(json.loads(file.metadata()["window"]))
    features = golden["features"].requires_grad_()
    output = similarity(features, window)
    output.backward(golden["grad_stss"])
    assert_close(output.detach(), golden["stss"])
    assert_close(features.grad, golden["grad_features"])


def loops(x, window):
    """Eq. 1-2 read aloud, in double precision: one entry of S at a time."""
    batch, frames, height, width, _ = x.shape
    reach = [side // 2 for side in window]
    entries = []
    for b, t, h, w in itertools.product(*map(range, x.shape[:4])):
        for dt, u, v in itertools.product(*(range(-r, r + 1) for r in reach)):
            y = (t + dt, h + u, w + v)
            if all(0 <= position < size for position, size in zip(y, (frames, height, width), strict=True)):
                query, key = x[b, t, h, w], x[(b, *y)]
                entries.append(query @ key / (query.norm() * key.norm()))
            else:
                entries.append(x.new_zeros(()))
    return torch.stack(entries).view(batch, frames, height, width, *window)


ODD = pytest.mark.parametrize(
    "shape, window",
    [
        ((2, 3, 3, 7, 6), (5, 3, 5)),  # T < L, H != W
        ((1, 1, 4, 4, 3), (7, 11, 11)),  # T = 1, window over the grid
        ((1, 2, 1, 9, 4), (3, 1, 3)),
        ((2, 4, 5, 2, 1), (1, 1, 1)),
        ((1, 2, 9, 5, 2), (3, 5, 3)),  # more than two bands of rows
    ],
)


@ODD
def test_equals_four_loops_in_double_precision(shape, window):
    torch.manual_seed(0)
    exact = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected = loops(exact, window)
    grad = torch.randn_like(expected)
    expected.backward(grad)
    for similarity in (stss, stss_plain):
        single = exact.detach().float().requires_grad_()
        output = similarity(single, window)
        output.backward(grad.float())
        assert output.dtype == torch.float32
        torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(single.grad.double(), exact.grad, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(similarity(exact, window), expected, atol=1e-13, rtol=0)


@BOTH
@ODD
def test_gradcheck(shape, window, similarity):
    torch.manual_seed(0)
    x = torch.randn(1, *shape[1:4], 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: similarity(x, window), (x,), fast_mode=True)


def test_operator_is_well_registered():
    x = torch.randn(1, 3, 3, 4, 2, requires_grad=True)
    torch.library.opcheck(torch.ops.moss_vllm.stss, (x, [3, 3, 5]))


def test_keeps_only_the_unit_features():
    x = torch.randn(2, 4, 5, 6, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        stss(x, (5, 9, 9))
    assert sum(t.numel() for t in kept) == x.numel() + x.numel() // 8  # and their 1 / norm


@pytest.mark.parametrize("rows, elements", [(1, 1), (2, 700), (100, 2**26)])
def test_bands_and_frame_groups_do_not_change_values(monkeypatch, rows, elements):
    module = sys.modules[stss.__module__]
    monkeypatch.setattr(module, "BAND_ROWS", rows)
    monkeypatch.setattr(module, "PRODUCT_ELEMENTS", {"cpu": elements})
    module._grid.cache_clear()
    x, grad = torch.randn(2, 7, 5, 4, 6, requires_grad=True), torch.randn(2, 7, 5, 4, 5, 3, 3)
    plain = stss_plain(x, (5, 3, 3))
    plain.backward(grad)
    expected, x.grad = x.grad, None
    fast = stss(x, (5, 3, 3))
    fast.backward(grad)
    module._grid.cache_clear()
    torch.testing.assert_close(fast, plain, atol=2e-6, rtol=0)
    torch.testing.assert_close(x.grad, expected, atol=1e-5, rtol=1e-5)


def test_use_after_inference_mode():
    with torch.inference_mode():
        expected = stss(torch.ones(1, 2, 3, 11, 4), (3, 3, 3))
    x = torch.ones(1, 2, 3, 11, 4, requires_grad=True)
    output = stss(x, (3, 3, 3))
    output.sum().backward()
    assert torch.equal(output, expected) and torch.isfinite(x.grad).all()


@BOTH
def test_centre_is_one_and_outside_is_zero(similarity):
    s = similarity(torch.randn(1, 3, 4, 4, 8), (3, 3, 3))
    torch.testing.assert_close(s[..., 1, 1, 1], torch.ones(1, 3, 4, 4))
    assert s[:, 0, ..., 0, :, :].eq(0).all() and s[:, :, 0, :, :, 0].eq(0).all()


@BOTH
def test_zero_features_give_zero_and_finite_gradients(similarity):
    x = torch.randn(1, 2, 3, 3, 4)
    x[:, 0] = 0
    x.requires_grad_()
    s = similarity(x, (3, 3, 3))
    s.sum().backward()
    assert s[:, 0].eq(0).all()
    assert torch.isfinite(s).all() and x.grad.abs().max() < 1e3


@BOTH
def test_similarity_is_float32_under_bfloat16_and_autocast(similarity):
    x = torch.randn(1, 3, 3, 3, 16).bfloat16().requires_grad_()
    exact = x.detach().float().requires_grad_()
    expected = stss_plain(exact, (3, 3, 3))
    expected.square().sum().backward()
    assert similarity(x, (3, 3, 3)).dtype == torch.float32
    exact_again = exact.detach().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(similarity(x, (3, 3, 3)), expected, atol=1e-6, rtol=0)
        similarity(exact_again, (3, 3, 3)).square().sum().backward()
    torch.testing.assert_close(exact_again.grad, exact.grad, atol=1e-5, rtol=1e-5)


def test_forward_mode_is_refused_not_zero():
    x = torch.randn(1, 2, 3, 3, 4)
    with pytest.raises(NotImplementedError, match="use stss_plain"):
        torch.func.jvp(lambda x: stss(x, (3, 3, 3)), (x,), (x,))
    torch.func.jvp(lambda x: stss_plain(x, (3, 3, 3)), (x,), (x,))


@BOTH
def test_integers_of_any_kind_make_a_window(similarity):
    x = torch.randn(1, 2, 3, 3, 4)
    assert similarity(x, [np.int64(3)] * 3).shape == (1, 2, 3, 3, 3, 3, 3)


@BOTH
@pytest.mark.parametrize("window", [(2, 3, 3), (3, 0, 3), (3, 3), (3, 3, -1), (3.0, 3, 3), 3, None, "333"])
def test_bad_window_is_named(window, similarity):
    with pytest.raises(ValueError, match="positive odd"):
        similarity(torch.randn(1, 2, 3, 3, 4), window)


@BOTH
@pytest.mark.parametrize(
    "x", [torch.zeros(2, 3, 3, 4), torch.zeros(1, 2, 3, 3, 4).long(), torch.zeros(1, 0, 3, 3, 4)]
)
def test_bad_features_are_named(x, similarity):
    with pytest.raises(ValueError, match="stss takes"):
        similarity(x, (3, 3, 3))


@pytest.mark.parametrize(
    "frames, side, window",
    [(384, 14, (7, 11, 11)), (100, 28, (7, 11, 11)), (32, 32, (7, 11, 11)), (2, 300, (3, 9, 9))],
)
def test_products_stay_small_on_long_and_fine_clips(frames, side, window):
    module = sys.modules[stss.__module__]
    grid = module._grid(side, side, *window[1:], torch.device("cpu"))
    one_frame = max(band.neighbour.shape[0] * (band.reach.stop - band.reach.start) for band in grid.bands)
    assert one_frame <= module.BAND_ROWS * (module.BAND_ROWS + window[1] - 1) * side**2
    unit = torch.empty(1, frames, side**2, 1)
    limit = max(one_frame, module.PRODUCT_ELEMENTS["cpu"])
    pairs = list(module._frame_pairs(unit, window[0], grid))
    assert all((here.stop - here.start) * one_frame <= limit for _, here, _, _ in pairs)
    # Every pair of frames within the window once, as t and t + offset.
    found = [(t, offset) for _, here, _, offset in pairs for t in range(here.start, here.stop)]
    expected = [(t, offset) for offset in range(window[0] // 2 + 1) for t in range(frames - offset)]
    assert sorted(found) == sorted(expected)
