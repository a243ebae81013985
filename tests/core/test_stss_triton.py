"""Owns: the fused kernels equal `stss_plain` and a Linear, values and gradients, and compile for an H100.

Without a GPU the kernels run in Triton's interpreter, which has to be chosen before triton is imported: one
test runs this file again in a process that does so, and the tests marked `interpreted` run there.
"""

import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor

from moss_vllm.core import MOSS, encoder, stss_plain
from moss_vllm.core.encoder import stss_path
from moss_vllm.core.stss_triton import available, fused_stss_linear

INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETER, reason="runs within test_in_the_interpreter")
# (B, T, H, W, C), (L, U, V), D; the interpreter's tiles are 4 x 4 positions and its blocks of channels 16.
CASES = [
    pytest.param((1, 2, 5, 9, 5), (3, 3, 5), 3, id="tiles"),
    pytest.param((2, 1, 3, 2, 18), (3, 7, 5), 17, id="one-frame-window-over-grid"),
    pytest.param((1, 2, 6, 3, 4), (5, 1, 3), 4, id="fewer-frames-than-offsets"),
]


def plain(x: Tensor, weight: Tensor, window: tuple[int, int, int]) -> Tensor:
    return rearrange(stss_plain(x, window), "b t h w l u v -> b t l h w (u v)") @ weight.float().T


def inputs(shape, window, d, dtype, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    x[0, 0, 0, 0] = 0  # a feature without a direction
    weight = torch.randn(d, window[1] * window[2], generator=generator)
    return (t.to(device, dtype).requires_grad_() for t in (x, weight))


def assert_equals_plain(x, weight, window, values, gradients):
    """Compare the fused values and their gradients; tolerances are shares of the largest entry."""
    z = fused_stss_linear(x, weight, window)
    grad_z = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)).to(z)
    actual = (z, *torch.autograd.grad(z, (x, weight), grad_z))
    exact = [t.detach().float().requires_grad_() for t in (x, weight)]
    z = plain(*exact, window)
    expected = (z, *torch.autograd.grad(z, exact, grad_z.float()))
    for a, e, share in zip(actual, expected, (values, gradients, gradients), strict=True):
        assert a.shape == e.shape
        assert a.is_contiguous()
        assert (a.float() - e).abs().max() <= share * e.abs().max()
    assert actual[0].dtype == x.dtype
    assert (actual[1][0, 0, 0, 0] == 0).all()


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETER, reason="this is the process it starts")
def test_in_the_interpreter():
    triton = pytest.importorskip("triton")
    if triton.__version__ < "3.7" and np.__version__ >= "2.4":
        pytest.skip("before 3.7 Triton's interpreter cannot count to a tensor under NumPy 2.4")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", __file__]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]


@interpreted
@pytest.mark.parametrize(
    "dtype, values, gradients",
    [(torch.float32, 1e-6, 1e-5), (torch.float16, 1e-3, 2e-3), (torch.bfloat16, 1e-2, 2e-2)],
)
@pytest.mark.parametrize("shape, window, d", CASES)
def test_equals_plain(shape, window, d, dtype, values, gradients):
    x, weight = inputs(shape, window, d, dtype)
    assert_equals_plain(x, weight, window, values, gradients)


@interpreted
def test_memory_order_does_not_matter():
    x, weight = inputs((1, 2, 3, 5, 4), (3, 3, 3), 4, torch.float32)
    turned = x.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    columns = weight.detach().t().contiguous().t().requires_grad_()
    assert_equals_plain(turned, columns, (3, 3, 3), 1e-6, 1e-5)


@interpreted
def test_half_precision_cosines_are_not_of_rounded_unit_features():
    # Each entry is right to its own rounding; with rounded unit features small ones would be off by 1e-3 too.
    x = torch.randn(1, 1, 3, 4, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    s = fused_stss_linear(x, torch.eye(9).bfloat16(), (1, 3, 3)).float()
    expected = rearrange(stss_plain(x, (1, 3, 3)), "b t h w l u v -> b t l h w (u v)")
    assert ((s - expected).abs() <= 2**-7 * expected.abs() + 1e-6).all()


@interpreted
def test_autocast_converts_the_weight_alone():
    x, weight = inputs((1, 1, 4, 3, 4), (1, 3, 3), 4, torch.float32)
    half = x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        z = fused_stss_linear(half, weight, (1, 3, 3))
        z.sum().backward()  # matrix products of the backward are not autocast either
        exact = fused_stss_linear(x, weight, (1, 3, 3))
    assert (z.dtype, half.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    torch.testing.assert_close(exact, plain(x, weight, (1, 3, 3)), atol=1e-5, rtol=1e-5)


@interpreted
def test_compile_equals_eager():
    x, weight = inputs((1, 2, 3, 2, 4), (3, 3, 3), 4, torch.float32)

    def step(x, weight):
        return torch.tanh(fused_stss_linear(x * 2, weight, (3, 3, 3)))

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    actual, expected = (torch.autograd.grad(f(x, weight).sum(), (x, weight)) for f in (compiled, step))
    torch.testing.assert_close(actual, expected)


@interpreted
def test_operators_are_registered_as_pytorch_expects():
    x, weight = inputs((1, 1, 2, 3, 4), (1, 3, 3), 4, torch.float32)
    torch.library.opcheck(torch.ops.moss_vllm.stss_linear.default, (x, weight, [1, 3, 3]))
    x, weight = x.detach(), weight.detach()
    z, scale = torch.ops.moss_vllm.stss_linear(x, weight, [1, 3, 3])
    torch.library.opcheck(torch.ops.moss_vllm.stss_linear_backward.default, (z, x, scale, weight, [1, 3, 3]))


@interpreted
@pytest.mark.parametrize("training", [True, False])
def test_moss_equals_its_banded_path(training, monkeypatch):
    torch.manual_seed(0)
    moss = MOSS(6, 5, window=(3, 3, 5), d_hidden=4, d_similarity=4).train(training)
    x = torch.randn(1, 2, 3, 4, 6)
    assert stss_path(x.device, (3, 3, 5)) == ("fused", "Triton's interpreter")
    results = []
    for path in ("fused", "banded"):
        monkeypatch.setattr(encoder, "stss_path", lambda *_, path=path: (path, ""))
        features = x.clone().requires_grad_()
        module = copy.deepcopy(moss)
        output = module(features)
        output.square().sum().backward()
        results.append([output, features.grad, *(p.grad for p in module.parameters())])
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-3)


@interpreted
def test_a_window_beyond_the_kernels_is_named():
    with pytest.raises(RuntimeError, match="a window of 19 x 19 is too large"):
        fused_stss_linear(torch.randn(1, 1, 2, 2, 4), torch.randn(4, 19 * 19), (1, 19, 19))


def test_available_says_why_not(monkeypatch):
    if not INTERPRETER:
        assert available(torch.device("cpu"), (5, 9, 9)) == (False, "no CUDA device")
        with pytest.raises(RuntimeError, match="cannot run on cpu: no CUDA device; use stss"):
            fused_stss_linear(torch.randn(1, 1, 2, 2, 4), torch.randn(4, 9), (1, 3, 3))
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert available(torch.device("cpu"), (5, 9, 9)) == (False, "triton is not installed")


@pytest.mark.parametrize(
    "x, weight, message",
    [
        (torch.ones(1, 1, 2, 2, 4).double(), torch.ones(4, 9).double(), "float64 and torch.float64"),
        (torch.ones(1, 1, 2, 2, 4).half(), torch.ones(4, 9), "float16 and torch.float32"),
        (torch.ones(1, 1, 2, 2, 4), torch.ones(9, 4), r"\(D, U\*V\) = \(D, 9\), got \(9, 4\)"),
        (torch.ones(1, 2, 2, 4), torch.ones(4, 9), "shape"),
    ],
)
def test_bad_input_is_named(x, weight, message):
    with pytest.raises(ValueError, match=message):
        fused_stss_linear(x, weight, (1, 3, 3))


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETER, reason="interpreted kernels have nothing to compile")
@pytest.mark.parametrize("kernel", ["forward", "backward_unit", "backward_weight"])
def test_first_choice_compiles_for_h100(kernel, monkeypatch, tmp_path):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from moss_vllm.core import stss_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tuner = getattr(stss_kernels, kernel)
    choice, function = tuner.configs[0], tuner.fn
    constants = {"C": 256, "D": 256, "L": 7, "U": 11, "V": 11, "UPCAST": False, "PRECISION": "ieee"}
    constants |= choice.kwargs
    if kernel != "backward_unit":
        constants |= {name: derive(constants) for name, derive in function.values.items()}
        function = function.fn
    types = dict.fromkeys(("frames", "T", "H", "W"), "i32") | dict.fromkeys(("partial", "grad_unit"), "*fp32")
    signature = {
        name: "constexpr" if name in constants else types.get(name, "*bf16") for name in function.arg_names
    }
    compiled = triton.compile(
        ASTSource(function, signature, constants),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": choice.num_warps, "num_stages": choice.num_stages},
    )
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 227 * 1024
    # A gather by shuffles has hundreds; the few there are share the number of a warp.
    assert compiled.asm["ptx"].count("shfl.sync") < 16


@pytest.mark.gpu
@pytest.mark.parametrize(
    "dtype, values, gradients", [(torch.float32, 1e-4, 1e-4), (torch.bfloat16, 1e-2, 2e-2)]
)
@pytest.mark.parametrize(
    "window, c, d", [((5, 9, 9), 128, 64), ((7, 11, 11), 256, 256), ((3, 5, 7), 100, 60)]
)
def test_equals_plain_on_a_gpu(window, c, d, dtype, values, gradients):
    runs, reason = available(torch.device("cuda"), window)
    if not runs:
        pytest.skip(reason)
    x, weight = inputs((2, 5, 14, 20, c), window, d, dtype, "cuda")
    assert_equals_plain(x, weight, window, values, gradients)
