"""Counts the bytes of the tensors that are alive at once, also of tensors without data."""

import weakref
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class AliveBytes(TorchDispatchMode):
    """Bytes of the tensors made inside `with` that are alive `now`, and `peak`, the most at once.

    A storage counts once, however many tensors view it. Fake tensors count as if they had data. What a kernel
    takes for itself while it runs is not seen.

    Args:
        given: tensors from before, which never count.
    """

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        storages = [tensor.untyped_storage() for tensor in given]
        self._storages = {storage._cdata: weakref.ref(storage) for storage in storages}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return made

    def _add(self, storage: UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            self._storages[key] = weakref.ref(storage, lambda _: self._remove(key, size))
            self.now += size

    def _remove(self, key: int, size: int) -> None:
        self.now -= size
        del self._storages[key]
