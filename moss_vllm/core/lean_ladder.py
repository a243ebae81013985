"""The layers of a ladder's block with less memory kept for backward; values and gradients equal autograd's.

Of a block, forward leaves six tensors: what the norms of its three branches read, queries, keys with values,
and what attention returns. BatchNorm, LayerNorm, GELU, the convolution in time, the one before it and
the wide hidden layer of the MLP are computed again in backward: a tenth of the multiply-adds of a step of
the block. They are paid for by one product less for the adapter (see `_NormLinear` in `lean.py`), by linear
layers in place of 1x1x1 convolutions, and by keys and values that are not copied.

Layers that are wrapped or hooked, and all layers under torch.compile, are called as in `lean.py`.
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

from moss_vllm.core.lean import autocast_dtype, count_batch, norm_queries, unwrapped


def norm_attention(x: Tensor, norm: nn.LayerNorm, attention: nn.MultiheadAttention) -> Tensor:
    """Self-attention of `norm(x)` in which all tokens but the first ask, keeping `x`, q, k, v and the output.

    Shape:
        (N, 1 + P, C) -> (N, P, C).
    """
    own = unwrapped(attention, nn.MultiheadAttention)
    if not own or not unwrapped(attention.out_proj, NonDynamicallyQuantizableLinear):
        tokens = norm(x)
        return cast(Tensor, attention(tokens[:, 1:], tokens, tokens, need_weights=False)[0])
    q, k_v = norm_queries(x, norm, attention.in_proj_weight, attention.in_proj_bias)
    q = rearrange(q, "n p (head c) -> n head p c", head=attention.num_heads)
    k, v = rearrange(k_v, "n p (two head c) -> two n head p c", two=2, head=attention.num_heads)
    attended = F.scaled_dot_product_attention(q, k, v)
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
        middle = middle.flatten(2).unsqueeze(-1)
        frames = F.conv2d(frames, middle, middle_bias, padding=(1, 0), groups=y.shape[-1])
        return rearrange(frames, "b c t p -> b t p c").view_as(y)

    weights = (norm.weight, norm.bias, conv_in.weight, conv_in.bias, conv_time.weight, conv_time.bias)
    return _recomputed_linear(convolve, conv_out.weight.flatten(1), conv_out.bias, x, *weights)


def norm_mlp(x: Tensor, norm: nn.BatchNorm3d, mlp: nn.Sequential) -> Tensor:
    """`mlp(norm(x))` for an MLP of linear layer, GELU, linear layer, keeping only `x`; statistics move once.

    Shape:
        (B, T, H, W, C) -> (B, T, H, W, C).
    """
    own = unwrapped(norm, nn.BatchNorm3d) and unwrapped(mlp, nn.Sequential)
    own = own and all(map(unwrapped, mlp, (nn.Linear, nn.GELU, nn.Linear)))
    if torch.compiler.is_compiling() or not own or norm.weight is None:
        normed = norm(rearrange(x, "b t h w c -> b c t h w"))
        return cast(Tensor, mlp(rearrange(normed, "b c t h w -> b t h w c")))
    normalise = _BatchNorm(norm)
    first, last = cast(nn.Linear, mlp[0]), cast(nn.Linear, mlp[2])

    def widen(x: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(F.linear(normalise(x, gamma, beta), weight, bias))

    weights = (norm.weight, norm.bias, first.weight, first.bias)
    return _recomputed_linear(widen, last.weight, last.bias, x, *weights)


class _BatchNorm:
    """A BatchNorm over all axes but the last, to be called twice; its running statistics move the first time.

    Shape:
        (..., C) -> (..., C).
    """

    def __init__(self, norm: nn.BatchNorm3d) -> None:
        self.running = (norm.running_mean, norm.running_var)
        self.training = norm.training or norm.running_mean is None
        self.momentum, self.eps = count_batch(norm), norm.eps

    def __call__(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        mean, var = self.running
        rows = x.flatten(0, -2)
        y = F.batch_norm(rows, mean, var, gamma, beta, self.training, self.momentum, self.eps)
        if self.training and mean is not None and var is not None:
            self.running = (mean.clone(), var.clone())
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
        ctx.function, ctx.autocast = function, autocast_dtype(x)
        return F.linear(function(*tensors), weight, bias)

    @staticmethod
    @once_differentiable  # a second derivative would miss how the result depends on the weights
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *saved = ctx.saved_tensors
        needs_weight, needs_bias, *needs = ctx.needs_input_grad[1:]
        # Leaves of their own: their gradients reach the weights through the graph of the whole step.
        pairs = list(zip(saved, needs, strict=True))
        leaves: list[Any] = [t if t is None else t.detach().requires_grad_(need) for t, need in pairs]
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


def _autocast(x: Tensor, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Autocast to `dtype` on the device of `x`, or none whatever is set around."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    return torch.autocast(kind, dtype, enabled=dtype is not None)
