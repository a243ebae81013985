"""The memory that a training step takes, before the run and without its memory.

    memory = estimate_memory(model, windows=1, frames=768, size_px=160, precision="bf16")
    Screen().print(memory_table({"160 px": memory}, title="a training step"))

A copy of the model, whose tensors have sizes but no data, runs a step, and every tensor that is alive at once
is counted: so the estimate holds for each encoder, temporal module and detector there is. The losses are left
out; they take some megabytes. The operators are a CPU's, which compute self-similarity in torch: the GPU
kernel keeps less. Leave room for what no count of tensors sees:

- the CUDA context, cuBLAS and cuDNN workspaces, NCCL's buffers, DDP's buckets (as large as the gradients);
- temporaries inside one kernel, and memory that an allocator cannot reuse.
"""

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from moss_vllm.detection.adatad import AdaTAD
from moss_vllm.runtime.precision import AUTOCAST
from moss_vllm.training.alive import AliveBytes

GIB = 2**30


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one process at the peak of a step, by part."""

    frozen_weights: int
    trained_weights: int
    average: int  # the moving average of what trains
    gradients: int
    adam_states: int
    pixels: int  # uint8, as the batch holds them
    encoder: int  # kept for backward: with checkpointing each layer's input
    temporal: int  # kept for backward by the modules in MOSS's place
    detector: int  # kept for backward
    layer_at_work: int  # what backward computes again, and gradients under way

    @property
    def kept(self) -> int:
        """Bytes that the forward pass keeps for backward."""
        return self.encoder + self.temporal + self.detector

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(getattr(self, field.name) for field in fields(self))


def estimate_memory(
    model: AdaTAD, *, windows: int, frames: int, size_px: int, precision: str, average: bool = True
) -> StepMemory:
    """The memory of a training step with AdamW.

    Args:
        model: stays as it is.
        windows: of a process and micro-batch.
        frames: of a window.
        size_px: side of a frame.
        precision: "fp32", "bf16" or "fp16"; the last two are autocast. Weights are float32 in each.
        average: a moving average of what trains is held.

    Raises: ValueError for an unknown precision, or frames that the encoder does not take.
    """
    if precision not in AUTOCAST:
        raise ValueError(f"unknown precision '{precision}'; choose one of {', '.join(AUTOCAST)}")
    dtype = AUTOCAST[precision]
    mode = FakeTensorMode()
    twin = _without_data(model, mode).train()
    with mode:
        trained = [parameter for parameter in twin.parameters() if parameter.requires_grad]
        for parameter in trained:  # so that they count once, and not with what a layer at work takes
            parameter.grad = torch.empty_like(parameter)
        clips = torch.empty(windows, frames, 3, size_px, size_px, dtype=torch.uint8)
        mask = torch.ones(windows, frames, dtype=torch.bool)
        alive = AliveBytes(*twin.parameters(), *twin.buffers(), clips, mask, *_gradients(trained))
        kept = _KeptByPart(twin, alive)
        with alive:
            with torch.autocast("cpu", dtype) if dtype else nullcontext():
                levels = twin(clips, mask)
            after = alive.now
            heads = [output for level in levels for output in (level.cls_logits, level.distances)]
            torch.autograd.backward(heads, [torch.ones_like(head) for head in heads])
        weights = sum(parameter.nbytes for parameter in trained)
        return StepMemory(
            frozen_weights=sum(parameter.nbytes for parameter in twin.parameters()) - weights,
            trained_weights=weights,
            average=weights if average else 0,
            gradients=weights,
            adam_states=2 * weights,
            pixels=clips.nbytes,
            encoder=kept.before_detector - kept.temporal,
            temporal=kept.temporal,
            detector=after - kept.before_detector,
            layer_at_work=alive.peak - after,
        )


class _KeptByPart:
    """Reads `alive` where the encoder ends, and around each temporal module."""

    def __init__(self, model: AdaTAD, alive: AliveBytes) -> None:
        self.alive, self.temporal, self.before_detector = alive, 0, 0
        model.detector.register_forward_pre_hook(self._start_detector)
        for name in model.temporal_names.values():
            module = model.get_submodule(name)
            module.register_forward_pre_hook(self._start_temporal)
            module.register_forward_hook(self._end_temporal)

    def _start_detector(self, module: nn.Module, inputs: Any) -> None:
        self.before_detector = self.alive.now

    def _start_temporal(self, module: nn.Module, inputs: Any) -> None:
        self.temporal -= self.alive.now

    def _end_temporal(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.temporal += self.alive.now - output.nbytes  # the sum with the encoder's features replaces it


def _without_data(model: AdaTAD, mode: FakeTensorMode) -> AdaTAD:
    """A copy of the model whose parameters and buffers have no data; they call themselves a CPU's."""
    empty: dict[int, Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        with mode:
            made = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            is_weight = isinstance(tensor, nn.Parameter)
            empty[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if is_weight else made
    return copy.deepcopy(model, empty)  # which takes these instead of copying tensors


def _gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def memory_table(columns: Mapping[str, StepMemory], *, title: str) -> Table:
    """A row per part and a column per estimate, in GiB."""
    table = Table("GiB", title=title)
    for head in columns:
        table.add_column(head, justify="right")
    names = [field.name for field in fields(StepMemory)]
    for name in (*names, "total"):
        cells = [f"{getattr(memory, name) / GIB:.2f}" for memory in columns.values()]
        table.add_row(name.replace("_", " "), *cells, end_section=name == names[-1])
    return table
