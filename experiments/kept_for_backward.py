"""Measures the memory that autograd keeps from forward for backward."""

from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from moss_vllm.core import recompute


class KeptForBackward(torch.autograd.graph.saved_tensors_hooks):
    """Adds up the tensors saved inside `with`, each storage once, without parameters, buffers and inputs.

    Of a block that is computed again, these are its inputs.
    """

    def __init__(self, module: nn.Module, inputs: Iterable[Tensor]) -> None:
        super().__init__(self._pack, lambda tensor: tensor)
        tensors = (*module.parameters(), *module.buffers(), *inputs)
        self._given = {tensor.untyped_storage()._cdata for tensor in tensors}
        self._kept: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is used twice
        self._excluded: dict[int, torch.UntypedStorage] = {}  # kept alive too

    def exclude(self, tensors: Iterable[Tensor]) -> None:
        """Treat these tensors as inputs, such as the outputs of a frozen part."""
        storages = {storage._cdata: storage for storage in map(Tensor.untyped_storage, tensors)}
        self._given |= set(storages)
        self._excluded |= storages

    def __enter__(self) -> "KeptForBackward":
        super().__enter__()
        self._checkpoint = recompute.checkpoint
        self._patch = patch.object(recompute, "checkpoint", self._keep_inputs)
        self._patch.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._patch.stop()
        super().__exit__(*error)

    def _keep_inputs(self, function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        for tensor in inputs:
            if isinstance(tensor, Tensor):
                self._pack(tensor)
        return self._checkpoint(function, *inputs, **options)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._given:
            self._kept[storage._cdata] = storage
        return tensor

    def total_bytes(self) -> int:
        """Bytes kept so far."""
        return sum(storage.nbytes() for storage in self._kept.values())


if __name__ == "__main__":
    raise SystemExit("experiments/kept_for_backward.py is a part of other commands, not a command")
