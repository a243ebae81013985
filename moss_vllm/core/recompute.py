"""Checkpointing of one block: it keeps its inputs for backward, and is computed again there."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Any], *inputs: Any, layers: Sequence[nn.Module]) -> Any:
    """`function(*inputs)`, of which only the inputs stay until backward, where it runs a second time.

    Values and gradients are those of a plain call, random numbers too. Running statistics move once. A change
    between training and evaluation mode before backward changes nothing. Under torch.compile what has running
    statistics is computed once.

    Args:
        layers: the modules that `function` calls.

    Raises:
        RuntimeError: in backward, if a weight, or a statistic that evaluation mode reads, has changed since.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    if torch.compiler.is_compiling():  # it takes no contexts
        has_statistics = any(True for layer in layers for _ in layer.buffers())
        return function(*inputs) if has_statistics else checkpoint(function, *inputs, use_reentrant=False)
    contexts = (nullcontext(), _Again(layers))
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


class _Again:
    """Runs modules in the mode they had when this was made, training or evaluation; running statistics stay.

    It is a class, because a graph that is retained is gone through several times.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = layers
        self.modes = [(module, module.training) for layer in layers for module in layer.modules()]
        self.read = [
            (module, name, tensor, tensor._version)
            for module, training in self.modes
            for name, tensor in (
                module._parameters if training else module._parameters | module._buffers
            ).items()
            if tensor is not None and not tensor.is_inference()  # such a tensor counts no changes
        ]

    def __enter__(self) -> None:
        for module, name, tensor, version in self.read:
            now = getattr(module, name)
            if tensor._version != version if now is tensor else not torch.equal(now, tensor):
                raise RuntimeError(
                    f"{type(module).__name__}.{name} has changed since the forward pass, which is computed "
                    "again for backward(): call backward() before the optimiser or anything else changes it"
                )
        self._undo = ExitStack()
        for module, training in self.modes:
            self._undo.callback(setattr, module, "training", module.training)
            module.training = training
        self._undo.enter_context(kept_statistics(self.layers))

    def __exit__(self, *error: object) -> None:
        self._undo.close()
