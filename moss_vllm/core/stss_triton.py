"""STSS and the Linear over its (U, V) in one GPU kernel: S, larger than the features, is never stored.

`fused_stss_linear` equals `stss` followed by a bias-free Linear, and keeps its inputs and 1 / norm for
backward. Backward recomputes S tile by tile for the weight's gradient, but stores dS = dZ @ weight, U*V / D
of dZ's size, while it runs: both positions of a pair read the entry, and recomputing it in each tile that
reads it would cost four times the arithmetic.
"""

import os
from typing import Any

import torch
from torch import Tensor

from moss_vllm.core.stss import Window, check, inverse_norm, normalise_backward


def fused_stss_linear(x: Tensor, weight: Tensor, window: Window) -> Tensor:
    """`stss(x, window)`, then `weight` over each U x V map, without storing the maps.

    Cosines are float32 and are rounded to x's dtype before the product with the weight, as in a Linear under
    autocast. Float32 products have full precision unless `torch.set_float32_matmul_precision` allows TF32.

    Shape:
        x: (B, T, H, W, C) features in float32, float16 or bfloat16.
        weight: (D, U*V), row-major in (u, v), in x's type; under autocast it is converted.
        returns: (B, T, L, H, W, D) in x's type.

    Raises:
        ValueError: as `stss`; dtypes or shapes other than above.
        RuntimeError: the kernels cannot run on the device, or the window is too large, see `available`.

    Reference: Eq. 1-2; Sec. 3.3, "flattening the (U, V) dimensions and applying a fully connected layer".
    """
    check(x, window)
    if torch.is_autocast_enabled(x.device.type):
        weight = weight.to(x.dtype)
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16) or weight.dtype != x.dtype:
        raise ValueError(
            "fused_stss_linear takes x and weight both in float32, float16 or bfloat16, got "
            f"{x.dtype} and {weight.dtype}; convert them, or use stss and a Linear"
        )
    if weight.dim() != 2 or 0 in weight.shape or weight.shape[1] != window[1] * window[2]:
        raise ValueError(
            f"weight needs the shape (D, U*V) = (D, {window[1] * window[2]}), got {tuple(weight.shape)}"
        )
    z, _ = torch.ops.moss_vllm.stss_linear(x, weight, list(window))
    return z


def available(device: torch.device, window: Window) -> tuple[bool, str]:
    """Whether `fused_stss_linear` runs with `window` on `device`, and the reason in a few words."""
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and (device.type != "cuda" or not torch.cuda.is_available()):
        return False, "no CUDA device"
    try:
        import triton

        from moss_vllm.core.stss_kernels import fits
    except ImportError:
        return False, "triton is not installed"

    if not fits(window[1], window[2]):
        return False, f"a window of {window[1]} x {window[2]} is too large for it, 17 x 17 is not"
    if interpreted:
        return True, "Triton's interpreter"
    if (capability := torch.cuda.get_device_capability(device)) < (8, 0):
        return False, "compute capability {}.{} is below 8.0".format(*capability)
    return True, f"CUDA device with triton {triton.__version__}"


@torch.library.custom_op("moss_vllm::stss_linear", mutates_args=())
def _stss_linear(x: Tensor, weight: Tensor, window: list[int]) -> tuple[Tensor, Tensor]:
    """Z, and 1 / norm in float32."""
    kernels = _kernels(x.device, window)
    scale = inverse_norm(x).contiguous()
    z = x.new_empty(*x.shape[:2], window[0], *x.shape[2:4], len(weight))
    with torch.cuda.device_of(x):
        kernels.forward[lambda a: (_tiles(x, a), window[0])](
            x.contiguous(), scale, weight.contiguous(), z, **_sizes(x, weight, window), **_arithmetic(kernels)
        )
    return z, scale


@torch.library.custom_op("moss_vllm::stss_linear_backward", mutates_args=())
def _stss_linear_backward(
    grad: Tensor, x: Tensor, scale: Tensor, weight: Tensor, window: list[int]
) -> tuple[Tensor, Tensor]:
    """Gradients to the features and to the weight from that to Z."""
    kernels = _kernels(x.device, window)
    arguments = {**_sizes(x, weight, window), **_arithmetic(kernels)}
    x, grad = x.contiguous(), grad.contiguous()
    with torch.autocast(x.device.type, enabled=False):
        grad_similarity = grad @ weight
    grad_unit = torch.empty_like(x, dtype=torch.float32)
    # One program per multiprocessor sums its share of all positions: more programs would add partial sums
    # only.
    programs = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 2
    partial = x.new_empty(programs, *weight.shape, dtype=torch.float32)
    with torch.cuda.device_of(x):
        kernels.backward_unit[lambda a: (_tiles(x, a), _ceil(x.shape[-1], a["BC"]))](
            x, scale, grad_similarity, grad_unit, **arguments
        )
        kernels.backward_weight[lambda a: (programs, _ceil(len(weight), a["BD"]))](
            x, scale, grad, partial, frames=x.shape[0] * x.shape[1], **arguments
        )
    grad_x = normalise_backward(grad_unit, x * scale, scale)
    return grad_x.to(x.dtype), partial.sum(0).to(weight.dtype)


@_stss_linear.register_fake
def _(x: Tensor, weight: Tensor, window: list[int]) -> tuple[Tensor, Tensor]:
    z = x.new_empty(*x.shape[:2], window[0], *x.shape[2:4], weight.shape[0])
    return z, x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)


@_stss_linear_backward.register_fake
def _(grad: Tensor, x: Tensor, scale: Tensor, weight: Tensor, window: list[int]) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _save_features(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, ctx.window = inputs
    ctx.save_for_backward(x, output[1], weight)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_stss_linear_backward(grad, *ctx.saved_tensors, ctx.window), None


_stss_linear.register_autograd(_differentiate, setup_context=_save_features)


def _kernels(device: torch.device, window: list[int]) -> Any:
    """The module with the kernels, imported on use because it needs triton."""
    runs, reason = available(device, (window[0], window[1], window[2]))
    if not runs:
        raise RuntimeError(f"the fused STSS cannot run on {device}: {reason}; use stss and a Linear")
    from moss_vllm.core import stss_kernels

    return stss_kernels


def _sizes(x: Tensor, weight: Tensor, window: list[int]) -> dict[str, int]:
    _, frames, height, width, channels = x.shape
    features = {"T": frames, "H": height, "W": width, "C": channels, "D": len(weight)}
    return features | dict(zip("LUV", window, strict=True))


def _tiles(x: Tensor, a: dict[str, int]) -> int:
    batch, frames, height, width, _ = x.shape
    return batch * frames * _ceil(height, a["BY"]) * _ceil(width, a["BX"])


def _ceil(size: int, block: int) -> int:
    return -(-size // block)


def _arithmetic(kernels: Any) -> dict[str, Any]:
    # Reading the older `allow_tf32` raises after its replacement was set (torch 2.9).
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    # On bfloat16 the interpreter's dot returns garbage without an error (triton 3.7.1).
    return {"PRECISION": "tf32" if tf32 else "ieee", "UPCAST": kernels.INTERPRETED}
