"""Checkpointing of one block: it keeps its inputs for backward, and is computed again there."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Any], *inputs: Any, layers: Sequence[nn.Module]) -> Any:
    """`function(*inputs)`, of which only the inputs stay until backward, where it runs a second time.

    Values and gradients are those of a plain call, random numbers too. Running statistics move once.

    Args:
        layers: the modules that `function` calls.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    contexts = (nullcontext(), kept_statistics(layers))
    return checkpoint(function, *inputs, use_reentrant=False, context_fn=lambda: contexts)


@contextmanager
def kept_statistics(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Buffers inside are copies, such as BatchNorm's: what moves there is not kept."""
    modules = [module for layer in layers for module in layer.modules()]
    kept = [(module, name, buffer) for module in modules for name, buffer in module._buffers.items()]
    try:
        for module, name, buffer in kept:
            module._buffers[name] = None if buffer is None else buffer.clone()
        yield
    finally:
        for module, name, buffer in kept:
            module._buffers[name] = buffer
