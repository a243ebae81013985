"""Counts multiply-adds as the paper counts its FLOPs: matrix products, convolutions, attention, norms."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import moss_vllm.core.stss  # noqa: F401 - its operator is in the table below


class MacCounter(TorchDispatchMode):
    """Counts the multiply-adds of all operators inside `with`, by the rules of `MACS`."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = MACS.get(func.overloadpacket)
        if count is None and func.namespace == "moss_vllm":
            raise NotImplementedError(f"the cost of operator {func} is unknown; add it to MACS")
        self.macs += 0 if count is None else count(out, *args)
        return out


def _norm_macs(out: Any, x: Tensor, *_: Any) -> int:
    return 5 * x.numel()


def _attention_macs(out: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> int:
    return query.numel() * key.shape[-2] + query.shape[:-1].numel() * value.shape[-2:].numel()


def correlation_macs(out: Any, x: Tensor, window: Sequence[int], *_: Any) -> int:
    """Of one order's similarity: whole frames against whole frames at every offset, as the paper counts."""
    batch, frames, height, width, channels = x.shape
    return batch * window[0] * frames * (height * width) ** 2 * channels


aten = torch.ops.aten
MACS: dict[Any, Callable[..., int]] = {
    aten.mm: lambda out, a, b: out.numel() * a.shape[-1],
    aten.bmm: lambda out, a, b: out.numel() * a.shape[-1],
    aten.addmm: lambda out, bias, a, b: out.numel() * a.shape[-1],
    aten.convolution: lambda out, x, weight, *_: out.numel() * weight[0].numel(),
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_macs,
    aten.native_layer_norm: _norm_macs,
    aten.native_batch_norm: _norm_macs,
    torch.ops.moss_vllm.stss: correlation_macs,
}


if __name__ == "__main__":
    raise SystemExit("experiments/multiply_adds.py is a part of other commands, not a command")
