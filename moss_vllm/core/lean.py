"""Layers of MOSS and of the ladder with less memory kept for backward; values and gradients equal autograd's.

What is cheap is not kept but computed again in backward: every LayerNorm, BatchNorm and GELU, in the encoder
between two 3x3 convolutions without any convolution or matrix product. In the ladder's blocks the
convolution in front of the temporal one, the temporal one and the wide hidden layer of the MLP are computed
again too: a twelfth of the multiply-adds of a block's step. What pays for it is that the LayerNorm of tokens
that need no gradient takes one matrix product less in backward (see `_NormLinear`), that the 1x1x1
convolutions are linear layers, and that queries, keys and values come from one product.

Layers that are wrapped (adapters, quantisation) or hooked (pruning, sharding) are called unchanged, and so
are all layers under torch.compile, which plans this itself.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

aten = torch.ops.aten


def norm_linear(x: Tensor, norm: nn.LayerNorm, linear: nn.Linear) -> Tensor:
    """`linear(norm(x))`, keeping only `x`.

    Shape:
        (..., C) -> (..., D).
    """
    if not unwrapped(linear, nn.Linear):
        return cast(Tensor, linear(norm(x)))
    return _norm_linear(x, norm, linear.weight, linear.bias)


def _norm_linear(x: Tensor, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None) -> Tensor:
    own = unwrapped(norm, nn.LayerNorm) and norm.bias is not None and bias is not None
    if torch.compiler.is_compiling() or not own:
        return F.linear(norm(x), weight, bias)
    parameters = (norm.weight, norm.bias, weight, bias)
    return cast(Tensor, _NormLinear.apply(x, *parameters, norm.eps, _autocast_dtype(x)))  # type: ignore[no-untyped-call]


def norm_attention(x: Tensor, norm: nn.LayerNorm, attention: nn.MultiheadAttention) -> Tensor:
    """Self-attention of `norm(x)` in which all tokens but the first ask, keeping `x`, q, k, v and the output.

    Shape:
        (N, 1 + P, C) -> (N, P, C).
    """
    own = unwrapped(attention, nn.MultiheadAttention)
    if not own or not unwrapped(attention.out_proj, NonDynamicallyQuantizableLinear):
        tokens = norm(x)
        return cast(Tensor, attention(tokens[:, 1:], tokens, tokens, need_weights=False)[0])
    qkv = _norm_linear(x, norm, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = rearrange(qkv, "n p (three head c) -> three n head p c", three=3, head=attention.num_heads)
    attended = F.scaled_dot_product_attention(q[:, :, 1:], k, v)
    return cast(Tensor, attention.out_proj(rearrange(attended, "n head p c -> n p (head c)")))


def norm_time_conv(
    x: Tensor, norm: nn.BatchNorm3d, conv_in: nn.Conv3d, conv_time: nn.Conv3d, conv_out: nn.Conv3d
) -> Tensor:
    """`conv_out(conv_time(conv_in(norm(x))))`, keeping only `x`; the running statistics move once.

    Args:
        x: input of BatchNorm.
        norm: over all but the channels.
        conv_in: 1x1x1.
        conv_time: over 3 frames, each channel alone, with a frame of zeros past each end of the clip.
        conv_out: 1x1x1.

    Shape:
        (B, T, H, W, C) -> (B, T, H, W, C).
    """
    convs = (conv_in, conv_time, conv_out)
    own = unwrapped(norm, nn.BatchNorm3d) and all(unwrapped(conv, nn.Conv3d) for conv in convs)
    if torch.compiler.is_compiling() or not own or norm.weight is None:
        y = conv_out(conv_time(conv_in(norm(rearrange(x, "b t h w c -> b c t h w")))))
        return rearrange(y, "b c t h w -> b t h w c")
    normalise = _BatchNorm(norm)

    def convolve(x: Tensor, gamma: Tensor, beta: Tensor, *weights: Tensor) -> Tensor:
        first, first_bias, middle, middle_bias = weights
        y = F.linear(normalise(x, gamma, beta), first.flatten(1), first_bias)
        frames = rearrange(y, "b t h w c -> b c t (h w)")
        frames = F.conv2d(
            frames, middle.flatten(2).unsqueeze(-1), middle_bias, padding=(1, 0), groups=y.shape[-1]
        )
        return rearrange(frames, "b c t p -> b t p c").view_as(y)

    weights = (norm.weight, norm.bias, conv_in.weight, conv_in.bias, conv_time.weight, conv_time.bias)
    return _recomputed_linear(convolve, conv_out.weight.flatten(1), conv_out.bias, x, *weights)


def norm_mlp(x: Tensor, norm: nn.BatchNorm3d, mlp: nn.Sequential) -> Tensor:
    """`mlp(norm(x))` for an MLP of linear layer, GELU, linear layer, keeping only `x`; statistics move once.

    Shape:
        (B, T, H, W, C) -> (B, T, H, W, C).
    """
    own = unwrapped(norm, nn.BatchNorm3d) and unwrapped(mlp, nn.Sequential) and norm.weight is not None
    if (
        torch.compiler.is_compiling()
        or not own
        or not all(map(unwrapped, mlp, (nn.Linear, nn.GELU, nn.Linear)))
    ):
        normed = norm(rearrange(x, "b t h w c -> b c t h w"))
        return cast(Tensor, mlp(rearrange(normed, "b c t h w -> b t h w c")))
    normalise = _BatchNorm(norm)
    first, last = cast(nn.Linear, mlp[0]), cast(nn.Linear, mlp[2])

    def widen(x: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(F.linear(normalise(x, gamma, beta), weight, bias))

    return _recomputed_linear(
        widen, last.weight, last.bias, x, norm.weight, norm.bias, first.weight, first.bias
    )


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
    momentum = _count_batch(norm)
    weight = None if conv is None else conv.weight
    settings = (training, momentum, norm.eps, offsets, _autocast_dtype(x))
    inputs = (x, norm.weight, norm.bias, weight, norm.running_mean, norm.running_var)
    return cast(Tensor, _NormGeluConv.apply(*inputs, *settings))  # type: ignore[no-untyped-call]


def unwrapped(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether computing with the layer's weights equals calling it."""
    before, after = layer._forward_pre_hooks, layer._forward_hooks
    hooked = before or after or layer._backward_pre_hooks or layer._backward_hooks
    return type(layer) is kind and not hooked and "forward" not in vars(layer)


def _count_batch(norm: nn.BatchNorm2d | nn.BatchNorm3d) -> float:
    """Count a batch of training; returns the momentum with which it moves the running statistics."""
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            return 1.0 / norm.num_batches_tracked.item()
    return norm.momentum or 0.0


class _BatchNorm:
    """A BatchNorm over all axes but the last, to be called twice; its running statistics move the first time.

    Shape:
        (..., C) -> (..., C).
    """

    def __init__(self, norm: nn.BatchNorm3d) -> None:
        self.running = (norm.running_mean, norm.running_var)
        self.settings = (norm.training or norm.running_mean is None, _count_batch(norm), norm.eps)

    def __call__(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        y = F.batch_norm(x.flatten(0, -2), *self.running, gamma, beta, *self.settings)
        if self.settings[0]:
            mean, var = self.running
            self.running = (None if mean is None else mean.clone(), None if var is None else var.clone())
        return y.view(x.shape)


def _recomputed_linear(
    function: Callable[..., Tensor], weight: Tensor, bias: Tensor | None, *tensors: Tensor | None
) -> Tensor:
    """`F.linear(function(*tensors), weight, bias)`, keeping `tensors`; backward calls `function` again."""
    return cast(Tensor, _RecomputedLinear.apply(function, weight, bias, *tensors))  # type: ignore[no-untyped-call]


class _RecomputedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., Tensor],
        weight: Tensor,
        bias: Tensor | None,
        *tensors: Tensor | None,
    ) -> Tensor:
        x = cast(Tensor, tensors[0])
        ctx.save_for_backward(weight, *tensors)
        ctx.function, ctx.autocast = function, _autocast_dtype(x)
        return F.linear(function(*tensors), weight, bias)

    @staticmethod
    @once_differentiable  # a second derivative would miss how the result depends on the weights
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *saved = ctx.saved_tensors
        needs_weight, needs_bias, *needs = ctx.needs_input_grad[1:]
        # Leaves of their own: their gradients reach the weights through the graph of the whole step.
        leaves = [
            t if t is None else t.detach().requires_grad_(need) for t, need in zip(saved, needs, strict=True)
        ]
        with torch.enable_grad(), _autocast(leaves[0], ctx.autocast):
            y = ctx.function(*leaves)
        flat, grad_weight = grad.flatten(0, -2), None
        if needs_weight:
            grad_weight = flat.t() @ y.detach().flatten(0, -2).to(grad.dtype)
        grad_bias = flat.sum(0) if needs_bias else None
        wanted = [leaf for leaf, need in zip(leaves, needs, strict=True) if need]
        grad_y = (grad @ weight.to(grad.dtype)).to(y.dtype)
        found = iter(torch.autograd.grad(y, wanted, grad_y) if wanted else ())
        return None, grad_weight, grad_bias, *(next(found) if need else None for need in needs)


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
    ) -> Tensor:
        with _no_autocast(x):
            read = x if autocast is None else x.float()  # autocast runs LayerNorm in float32
            normed, mean, rstd = torch.native_layer_norm(read, gamma.shape, gamma, beta, eps)
            dtype = normed.dtype if autocast is None else autocast
            ctx.save_for_backward(x, gamma, beta, mean, rstd, weight)
            ctx.read_dtype, ctx.dtype, ctx.eps = read.dtype, dtype, eps
            return F.linear(normed.to(dtype), weight.to(dtype), bias.to(dtype))

    @staticmethod
    @once_differentiable  # a second derivative would miss how the statistics depend on x
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta, mean, rstd, weight = ctx.saved_tensors
        read, grad = x.to(ctx.read_dtype), grad.to(ctx.dtype)
        needs_x, needs_norm, _, needs_weight, needs_bias = ctx.needs_input_grad[:5]
        if not needs_x:
            # With z = (x - mean) / std, y = (gamma z + beta) W^T: all gradients follow from grad^T z, so the
            # product grad W, as large as x, is not needed.
            grad, plain = grad.flatten(0, -2), F.layer_norm(read, gamma.shape, eps=ctx.eps).to(ctx.dtype)
            product, total = (grad.t() @ plain.flatten(0, -2)).to(weight.dtype), grad.sum(0).to(weight.dtype)
            grad_weight = product * gamma + total[:, None] * beta
            return None, (product * weight).sum(0), total @ weight, grad_weight, total, None, None
        grad_x = grad_gamma = grad_beta = grad_weight = grad_bias = None
        if needs_weight:
            normed = F.layer_norm(read, gamma.shape, gamma, beta, ctx.eps).to(ctx.dtype)
            grad_weight = (grad.flatten(0, -2).t() @ normed.flatten(0, -2)).to(weight.dtype)
        if needs_bias:
            grad_bias = grad.flatten(0, -2).sum(0).to(weight.dtype)
        if needs_x or needs_norm:
            grad_normed = (grad @ weight.to(ctx.dtype)).to(ctx.read_dtype)
            grad_x, grad_gamma, grad_beta = aten.native_layer_norm_backward(
                grad_normed, read, gamma.shape, mean, rstd, gamma, beta, [needs_x, needs_norm, needs_norm]
            )
            grad_x = None if grad_x is None else grad_x.to(x.dtype)
        return grad_x, grad_gamma, grad_beta, grad_weight, grad_bias, None, None


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


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype in which autocast computes convolutions of `x`; None if it leaves them alone."""
    kind = x.device.type
    available = torch.amp.is_autocast_available(kind)  # not for "meta"
    if x.dtype == torch.float64 or not available or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def _autocast(x: Tensor, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Autocast to `dtype` on the device of `x`, or none whatever is set around."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    return torch.autocast(kind, dtype, enabled=dtype is not None)


def _no_autocast(x: Tensor) -> AbstractContextManager[object]:
    return nullcontext() if _autocast_dtype(x) is None else torch.autocast(x.device.type, enabled=False)
