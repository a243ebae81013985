"""Owns: STSS equals the authors' values and gradients, fast equals plain, odd inputs give sane numbers."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from moss_vllm.core import stss, stss_plain

GOLDEN = Path(__file__).parent / "golden"
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


@pytest.mark.parametrize(
    "shape, window",
    [
        ((2, 5, 3, 7, 6), (5, 3, 5)),
        ((1, 1, 4, 4, 3), (7, 11, 11)),
        ((1, 2, 1, 9, 4), (3, 1, 3)),
        ((3, 4, 5, 2, 1), (1, 1, 1)),
    ],
)
def test_fast_equals_plain(shape, window):
    torch.manual_seed(0)
    fast, plain = (torch.randn(shape, dtype=torch.float64).requires_grad_() for _ in range(2))
    with torch.no_grad():
        plain.copy_(fast)
    grad = torch.randn(*shape[:4], *window)
    for features, similarity in ((fast, stss), (plain, stss_plain)):
        similarity(features, window).backward(grad)
    assert stss(fast, window).shape == (*shape[:4], *window)
    torch.testing.assert_close(stss(fast, window), stss_plain(plain, window), atol=2e-6, rtol=0)
    torch.testing.assert_close(fast.grad, plain.grad, atol=1e-5, rtol=1e-5)


def test_frame_groups_do_not_change_values(monkeypatch):
    x = torch.randn(2, 7, 3, 4, 5)
    whole = stss(x, (5, 3, 3))
    monkeypatch.setattr(sys.modules[stss.__module__], "MAX_CORRELATION_ELEMENTS", 2 * 12**2 * 2)
    torch.testing.assert_close(stss(x, (5, 3, 3)), whole, atol=1e-6, rtol=0)


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
    x = torch.randn(1, 3, 3, 3, 16).bfloat16()
    expected = stss_plain(x.float(), (3, 3, 3))
    assert similarity(x, (3, 3, 3)).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(similarity(x, (3, 3, 3)), expected, atol=1e-6, rtol=0)


@BOTH
@pytest.mark.parametrize("window", [(2, 3, 3), (3, 0, 3), (3, 3), (3, 3, -1)])
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
