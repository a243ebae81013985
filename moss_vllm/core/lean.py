"""Layers with less memory kept for backward; values and gradients equal autograd's.

Between two convolutions autograd keeps the inputs of BatchNorm, of GELU and of the convolution. Here only the
first is kept, and backward computes the others from it again, as well as the LayerNorm before a linear layer.
No convolution or linear layer is done twice; self-similarity is, whose L*U*V numbers of each position would
be a fourth of all that MOSS keeps. Layers that are wrapped (adapters, quantisation) or hooked (pruning,
sharding) are called unchanged, and so are all layers under torch.compile, which plans this itself.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moss_vllm.core.stss import (
    Window,
    check,
    similarity_of_units,
    stss_backward,
    stss_by_offset,
    stss_with_units,
)

aten = torch.ops.aten


def norm_linear(x: Tensor, norm: nn.LayerNorm, linear: nn.Linear) -> Tensor:
    """`linear(norm(x))`, keeping only `x`.

    Shape:
        (..., C) -> (..., D).
    """
    if not unwrapped(linear, nn.Linear) or not _is_lean(norm, linear.bias):
        return cast(Tensor, linear(norm(x)))
    inputs = (x, norm.weight, norm.bias, linear.weight, linear.bias, norm.eps, autocast_dtype(x), 0)
    return cast(Tensor, _NormLinear.apply(*inputs))  # type: ignore[no-untyped-call]


def norm_queries(x: Tensor, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Queries of all tokens of `norm(x)` but the first, and keys with values of all, keeping only `x`.

    Shape:
        (N, 1 + P, C), weight (3C, C) -> (N, P, C) and (N, 1 + P, 2C).
    """
    width = x.shape[-1]
    if not _is_lean(norm, bias):
        y, biases = norm(x), (None, None) if bias is None else (bias[:width], bias[width:])
        return F.linear(y[:, 1:], weight[:width], biases[0]), F.linear(y, weight[width:], biases[1])
    inputs = (x, norm.weight, norm.bias, weight, bias, norm.eps, autocast_dtype(x), width)
    return cast(tuple[Tensor, Tensor], _NormLinear.apply(*inputs))  # type: ignore[no-untyped-call]


def norm_gelu_conv(x: Tensor, norm: nn.Module, conv: nn.Conv2d | None, *, offsets: int = 1) -> Tensor:
    """`conv(gelu(norm(x)))`, keeping only `x`; in training the running statistics move once.

    Args:
        x: input of BatchNorm, channels-last in memory.
        norm: an `nn.BatchNorm2d`; another class (SyncBatchNorm) is called unchanged.
        conv: a 3x3 convolution without bias; None returns its input, `gelu(norm(x))`.
        offsets: this many neighbours along N become channels side by side, offset-major, before `conv`.

    Shape:
        (N, D, H, W) -> (N / offsets, D', H, W), channels-last in memory.

    Raises:
        ValueError: training on a single value per channel, which BatchNorm cannot normalise.
    """
    own = unwrapped(norm, nn.BatchNorm2d) and (conv is None or unwrapped(conv, nn.Conv2d))
    if torch.compiler.is_compiling() or not own or norm.weight is None:
        y = _side_by_side(F.gelu(norm(x)), offsets)
        return y if conv is None else cast(Tensor, conv(y))
    norm = cast(nn.BatchNorm2d, norm)
    training = norm.training or norm.running_mean is None
    if training and x.numel() == x.shape[1]:
        raise ValueError(
            f"BatchNorm cannot train on one value per channel, got {tuple(x.shape)}; give more clips, more "
            "frames or a larger grid, or call eval()"
        )
    momentum = count_batch(norm)
    weight = None if conv is None else conv.weight
    settings = (training, momentum, norm.eps, offsets, autocast_dtype(x))
    inputs = (x, norm.weight, norm.bias, weight, norm.running_mean, norm.running_var)
    return cast(Tensor, _NormGeluConv.apply(*inputs, *settings))  # type: ignore[no-untyped-call]


def stss_linear(x: Tensor, linear: nn.Linear, window: Window) -> Tensor:
    """`linear(stss_by_offset(x, window))`, keeping unit features and norms in place of similarities.

    Shape:
        (B, T, H, W, C) -> (B, T, L, H, W, D).

    Raises:
        ValueError: as `stss`.
    """
    weight = linear.weight
    if torch.compiler.is_compiling() or not unwrapped(linear, nn.Linear) or linear.bias is not None:
        # The similarity is float32; the encoder then works in the parameters' own type.
        return cast(Tensor, linear(stss_by_offset(x, window).to(weight.dtype)))
    dtype = autocast_dtype(x) or weight.dtype
    return cast(Tensor, _StssLinear.apply(x, weight, check(x, window), dtype))


def unwrapped(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether computing with the layer's weights equals calling it."""
    before, after = layer._forward_pre_hooks, layer._forward_hooks
    hooked = before or after or layer._backward_pre_hooks or layer._backward_hooks
    return type(layer) is kind and not hooked and "forward" not in vars(layer)


def _is_lean(norm: nn.LayerNorm, bias: Tensor | None) -> bool:
    own = unwrapped(norm, nn.LayerNorm) and norm.bias is not None and bias is not None
    return own and not torch.compiler.is_compiling()


def count_batch(norm: nn.BatchNorm2d | nn.BatchNorm3d) -> float:
    """Count a batch of training; returns the momentum with which it moves the running statistics."""
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            return 1.0 / norm.num_batches_tracked.item()
    return norm.momentum or 0.0


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        autocast: torch.dtype | None,
        queries: int,
    ) -> Tensor | tuple[Tensor, Tensor]:
        with _no_autocast(x):
            read = x if autocast is None else x.float()  # autocast runs LayerNorm in float32
            normed, mean, rstd = torch.native_layer_norm(read, gamma.shape, gamma, beta, eps)
            dtype = normed.dtype if autocast is None else autocast
            ctx.save_for_backward(x, gamma, beta, mean, rstd, weight)
            ctx.read_dtype, ctx.dtype, ctx.eps = read.dtype, dtype, eps
            y, w, b = normed.to(dtype), weight.to(dtype), bias.to(dtype)
            if not queries:
                return F.linear(y, w, b)
            return F.linear(y[:, 1:], w[:queries], b[:queries]), F.linear(y, w[queries:], b[queries:])

    @staticmethod
    @once_differentiable  # a second derivative would miss how the statistics depend on x
    def backward(ctx: Any, grad: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
        if others:  # the first token has no query
            grad = torch.cat([F.pad(grad, (0, 0, 1, 0)), *others], dim=-1)
        x, gamma, beta, mean, rstd, weight = ctx.saved_tensors
        read, grad = x.to(ctx.read_dtype), grad.to(ctx.dtype)
        needs_x, needs_norm, _, needs_weight, needs_bias = ctx.needs_input_grad[:5]
        if not needs_x:
            # With z = (x - mean) / std, y = (gamma z + beta) W^T: all gradients follow from grad^T z, so the
            # product grad W, as large as x, is not needed.
            grad, plain = grad.flatten(0, -2), F.layer_norm(read, gamma.shape, eps=ctx.eps).to(ctx.dtype)
            product, total = (grad.t() @ plain.flatten(0, -2)).to(weight.dtype), grad.sum(0).to(weight.dtype)
            grad_weight = product * gamma + total[:, None] * beta
            return None, (product * weight).sum(0), total @ weight, grad_weight, total, None, None, None
        grad_x = grad_gamma = grad_beta = grad_weight = grad_bias = None
        if needs_weight:
            normed = F.layer_norm(read, gamma.shape, gamma, beta, ctx.eps).to(ctx.dtype)
            grad_weight = (grad.flatten(0, -2).t() @ normed.flatten(0, -2)).to(weight.dtype)
            del normed
        if needs_bias:
            grad_bias = grad.flatten(0, -2).sum(0).to(weight.dtype)
        if needs_x or needs_norm:
            grad_normed = (grad @ weight.to(ctx.dtype)).to(ctx.read_dtype)
            grad_x, grad_gamma, grad_beta = aten.native_layer_norm_backward(
                grad_normed, read, gamma.shape, mean, rstd, gamma, beta, [needs_x, needs_norm, needs_norm]
            )
            del read, grad_normed
            grad_x = None if grad_x is None else grad_x.to(x.dtype)
        return grad_x, grad_gamma, grad_beta, grad_weight, grad_bias, None, None, None


class _StssLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, window: Window, dtype: torch.dtype) -> Tensor:
        similarity, unit, scale = stss_with_units(x, window)
        ctx.save_for_backward(unit, scale, weight)
        ctx.window, ctx.dtype, ctx.size, ctx.x_dtype = list(window), dtype, list(x.shape[2:4]), x.dtype
        with _no_autocast(x):
            y = F.linear(similarity.to(dtype), weight.to(dtype))
        return y.view(*x.shape[:2], window[0], *x.shape[2:4], -1)

    @staticmethod
    @once_differentiable  # self-similarity has first derivatives only
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        unit, scale, weight = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        grad, grad_x, grad_weight = grad.flatten(3, 4).to(ctx.dtype), None, None
        if needs_weight:
            similarity = similarity_of_units(unit, ctx.size, ctx.window).to(ctx.dtype)
            grad_weight = (grad.flatten(0, -2).t() @ similarity.flatten(0, -2)).to(weight.dtype)
            del similarity
        if needs_x:
            grad_similarity = (grad @ weight.to(ctx.dtype)).to(unit.dtype)
            grad_x = stss_backward(grad_similarity, unit, scale, ctx.size, ctx.window).to(ctx.x_dtype)
            grad_x = grad_x.view(*grad_x.shape[:2], *ctx.size, -1)
        return grad_x, grad_weight, None, None


class _NormGeluConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        weight: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        offsets: int,
        autocast: torch.dtype | None,
    ) -> Tensor:
        with _no_autocast(x):
            normed, mean, rstd = torch.native_batch_norm(
                x, gamma, beta, running_mean, running_var, training, momentum, eps
            )
            dtype = x.dtype if autocast is None else autocast
            if not training:
                mean, rstd = cast(Tensor, running_mean), (cast(Tensor, running_var) + eps).rsqrt()
            ctx.save_for_backward(x, gamma, beta, weight, mean, rstd)
            ctx.training, ctx.eps, ctx.offsets = training, eps, offsets
            y = _side_by_side(F.gelu(normed), offsets)
            return y if weight is None else F.conv2d(y.to(dtype), weight.to(dtype), padding=1)

    @staticmethod
    @once_differentiable  # a second derivative would miss how the statistics depend on x
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta, weight, mean, rstd = ctx.saved_tensors
        var = rstd.pow(-2) - ctx.eps
        normed = F.batch_norm(x, mean, var, gamma, beta, training=False, eps=ctx.eps)
        grad_weight = None
        if weight is not None:
            y = _side_by_side(F.gelu(normed), ctx.offsets).to(grad.dtype)
            mask = [True, ctx.needs_input_grad[3], False]
            grad, grad_weight, _ = aten.convolution_backward(
                grad, y, weight.to(grad.dtype), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
            )
            del y
            grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        grad_normed = aten.gelu_backward(_one_by_one(grad, ctx.offsets).to(x.dtype), normed)
        del grad, normed
        gradients = aten.native_batch_norm_backward(
            grad_normed, x, gamma, mean, var, mean, rstd, ctx.training, ctx.eps, [True, True, True]
        )
        return *gradients, grad_weight, *[None] * 7


def _side_by_side(x: Tensor, offsets: int) -> Tensor:
    """(n*l, D, H, W) -> (n, l*D, H, W), both channels-last in memory."""
    if offsets == 1:
        return x
    return rearrange(rearrange(x, "(n l) d h w -> n h w (l d)", l=offsets), "n h w d -> n d h w")


def _one_by_one(x: Tensor, offsets: int) -> Tensor:
    """The inverse of `_side_by_side`."""
    if offsets == 1:
        return x
    return rearrange(rearrange(x, "n (l d) h w -> (n l) h w d", l=offsets), "n h w d -> n d h w")


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype in which autocast computes convolutions of `x`; None if it leaves them alone."""
    kind = x.device.type
    available = torch.amp.is_autocast_available(kind)  # not for "meta"
    if x.dtype == torch.float64 or not available or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def _no_autocast(x: Tensor) -> AbstractContextManager[object]:
    return nullcontext() if autocast_dtype(x) is None else torch.autocast(x.device.type, enabled=False)
