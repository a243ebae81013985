"""The memory of a training step, counted before the run on a model whose tensors have sizes but no data.

Every tensor that is alive at once is counted, so a count holds for each encoder, temporal module and head
there is. The operators are a CPU's, which compute self-similarity in torch: the GPU kernel keeps less. Leave
room for what no count of tensors sees:

- the CUDA context, cuBLAS and cuDNN workspaces, NCCL's buffers, DDP's buckets (as large as the gradients);
- temporaries inside one kernel, and memory that an allocator cannot reuse.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from moss_vllm.runtime.precision import AUTOCAST
from moss_vllm.training.alive import AliveBytes

GIB = 2**30


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one process at the peak of a step, by part."""

    frozen_weights: int
    trained_weights: int
    average: int  # a moving average of what trains
    gradients: int
    optimizer_states: int
    pixels: int  # as the batch holds them
    encoder: int  # kept for backward by what precedes the head
    temporal: int  # kept for backward by the modules in MOSS's place
    head: int  # kept for backward
    at_work: int  # what backward computes again, and gradients under way

    @property
    def kept(self) -> int:
        """Bytes that the forward pass keeps for backward."""
        return self.encoder + self.temporal + self.head

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(getattr(self, field.name) for field in fields(self))


def estimate_step(
    model: Any,
    *,
    head: str,
    make_batch: Callable[[], Sequence[Tensor]],
    outputs: Callable[[Any], Sequence[Tensor]],
    precision: str,
    copies: int = 2,
    average: bool = False,
) -> StepMemory:
    """The memory of a training step of a model with `temporal_names`, which stays as it is.

    The losses are left out.

    Args:
        head: the name of the module behind the encoder.
        make_batch: the inputs of the model, pixels first.
        outputs: the tensors that a loss would read, of what the model returns.
        precision: "fp32", "bf16" or "fp16"; the last two are autocast. Weights are float32 in each.
        copies: numbers that the optimizer keeps of each weight: SGD's momentum is 1, AdamW has 2.
        average: a moving average of what trains is held.

    Raises:
        ValueError: an unknown precision, or a batch that the model does not take.
    """
    if precision not in AUTOCAST:
        raise ValueError(f"unknown precision '{precision}'; choose one of {', '.join(AUTOCAST)}")
    dtype, mode = AUTOCAST[precision], FakeTensorMode()
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
            after, kept.is_forward = alive.now, False
            torch.autograd.backward(list(found), [torch.ones_like(one) for one in found])
        weights = sum(parameter.nbytes for parameter in trained)
        return StepMemory(
            frozen_weights=sum(parameter.nbytes for parameter in twin.parameters()) - weights,
            trained_weights=weights,
            average=weights if average else 0,
            gradients=weights,
            optimizer_states=copies * weights,
            pixels=batch[0].nbytes,
            encoder=kept.before_head - kept.temporal,
            temporal=kept.temporal,
            head=after - kept.before_head,
            at_work=alive.peak - after,
        )


class _KeptByPart:
    """Reads `alive` where the encoder ends, and around each temporal module."""

    def __init__(self, head: nn.Module, temporal: Sequence[nn.Module], alive: AliveBytes) -> None:
        self.alive, self.before_head, self.is_forward = alive, 0, True
        self._kept: dict[nn.Module, int] = defaultdict(int)
        head.register_forward_pre_hook(self._start_head)
        for module in temporal:
            module.register_forward_pre_hook(self._start_temporal)
            module.register_forward_hook(self._end_temporal)

    @property
    def temporal(self) -> int:
        """Bytes that the temporal modules keep; after backward, where those in a checkpoint run again."""
        return sum(self._kept.values())

    def _start_head(self, module: nn.Module, inputs: Any) -> None:
        torch.clear_autocast_cache()  # which holds weights in half precision that nothing keeps
        self.before_head = self.alive.now

    def _start_temporal(self, module: nn.Module, inputs: Any) -> None:
        if self.is_forward:
            self._kept[module] -= self.alive.now
        else:  # it is computed again: nothing of the first time was kept
            self._kept[module] = 0

    def _end_temporal(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if self.is_forward:
            self._kept[module] += self.alive.now - output.nbytes  # the sum with the features replaces it


def _without_data(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy of the model whose parameters and buffers have no data; they call themselves a CPU's."""
    empty: dict[int, Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        with mode:
            made = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            is_weight = isinstance(tensor, nn.Parameter)
            empty[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if is_weight else made
    return copy.deepcopy(model, empty)  # which takes these instead of copying tensors


def parts_table(columns: Mapping[str, StepMemory], *, title: str) -> Table:
    """A row per part that is not empty and a column per estimate, in GiB."""
    table = Table("GiB", title=title)
    for name in columns:
        table.add_column(name, justify="right")
    parts = [field.name for field in fields(StepMemory)]
    names = [name for name in parts if any(getattr(memory, name) for memory in columns.values())]
    for name in (*names, "total"):
        cells = [f"{getattr(memory, name) / GIB:.2f}" for memory in columns.values()]
        table.add_row(name.replace("_", " "), *cells, end_section=name == names[-1])
    return table
