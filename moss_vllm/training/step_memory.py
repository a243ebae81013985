"""The memory of a training step, counted before the run on a model whose tensors have sizes but no data.

Every tensor that is alive at once is counted, so a count holds for each encoder, temporal module and head
there is. The operators are a CPU's, which compute self-similarity in torch: the GPU kernel keeps less. Leave
room for what no count of tensors sees:

- the CUDA context, cuBLAS and cuDNN workspaces, NCCL's buffers, DDP's buckets (as large as the gradients);
- temporaries inside one kernel, and memory that an allocator cannot reuse.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from moss_vllm.training.alive import AliveBytes


@dataclass(frozen=True)
class CountedStep:
    """Bytes of a forward and a backward pass, without the optimizer."""

    frozen_weights: int
    trained_weights: int
    batch: int
    encoder: int  # kept for backward by what precedes the head
    temporal: int  # kept for backward by the modules in MOSS's place
    head: int  # kept for backward
    at_work: int  # what backward computes again, and gradients under way


def count_step(
    model: Any,
    *,
    head: str,
    make_batch: Callable[[], Sequence[Tensor]],
    outputs: Callable[[Any], Sequence[Tensor]],
    dtype: torch.dtype | None,
) -> CountedStep:
    """Count a step of a model with `temporal_names`, which stays as it is. The losses are left out.

    Args:
        head: the name of the module behind the encoder.
        make_batch: the inputs of the model.
        outputs: the tensors that a loss would read, of what the model returns.
        dtype: of autocast, or None.
    """
    mode = FakeTensorMode()
    twin = _without_data(model, mode).train()
    with mode:
        trained = [parameter for parameter in twin.parameters() if parameter.requires_grad]
        for parameter in trained:  # so that they count once, and not with what a layer at work takes
            parameter.grad = torch.empty_like(parameter)
        batch = make_batch()
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        alive = AliveBytes(*twin.parameters(), *twin.buffers(), *batch, *gradients)
        temporal = [twin.get_submodule(name) for name in model.temporal_names.values()]
        kept = _KeptByPart(twin.get_submodule(head), temporal, alive)
        with alive:
            with torch.autocast("cpu", dtype) if dtype else nullcontext():
                found = outputs(twin(*batch))
            after = alive.now
            torch.autograd.backward(list(found), [torch.ones_like(one) for one in found])
        weights = sum(parameter.nbytes for parameter in trained)
        return CountedStep(
            frozen_weights=sum(parameter.nbytes for parameter in twin.parameters()) - weights,
            trained_weights=weights,
            batch=batch[0].nbytes,
            encoder=kept.before_head - kept.temporal,
            temporal=kept.temporal,
            head=after - kept.before_head,
            at_work=alive.peak - after,
        )


class _KeptByPart:
    """Reads `alive` where the encoder ends, and around each temporal module."""

    def __init__(self, head: nn.Module, temporal: Sequence[nn.Module], alive: AliveBytes) -> None:
        self.alive, self.temporal, self.before_head = alive, 0, 0
        head.register_forward_pre_hook(self._start_head)
        for module in temporal:
            module.register_forward_pre_hook(self._start_temporal)
            module.register_forward_hook(self._end_temporal)

    def _start_head(self, module: nn.Module, inputs: Any) -> None:
        self.before_head = self.alive.now

    def _start_temporal(self, module: nn.Module, inputs: Any) -> None:
        self.temporal -= self.alive.now

    def _end_temporal(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.temporal += self.alive.now - output.nbytes  # the sum with the encoder's features replaces it


def _without_data(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy of the model whose parameters and buffers have no data; they call themselves a CPU's."""
    empty: dict[int, Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        with mode:
            made = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            is_weight = isinstance(tensor, nn.Parameter)
            empty[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if is_weight else made
    return copy.deepcopy(model, empty)  # which takes these instead of copying tensors


def parts_table(columns: Mapping[str, Any], *, title: str) -> Table:
    """A row per part and a column per estimate, in GiB; an estimate is a dataclass of bytes with `total`."""
    table = Table("GiB", title=title)
    for name in columns:
        table.add_column(name, justify="right")
    names = [field.name for field in fields(next(iter(columns.values())))]
    for name in (*names, "total"):
        cells = [f"{getattr(memory, name) / 2**30:.2f}" for memory in columns.values()]
        table.add_row(name.replace("_", " "), *cells, end_section=name == names[-1])
    return table
