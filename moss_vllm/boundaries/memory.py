"""The memory that a training step takes, before the run and without its memory.

    memory = estimate_memory(model, clips=2, frames=100, size_px=224, precision="bf16", copies=1)
    Screen().print(parts_table({"224 px": memory}, title="a training step"))

`training/step_memory.py` says how it is counted.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from moss_vllm.boundaries.gebd import GEBD
from moss_vllm.runtime.precision import AUTOCAST
from moss_vllm.training.step_memory import count_step


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one process at the peak of a step, by part."""

    frozen_weights: int
    trained_weights: int
    gradients: int
    optimizer_states: int
    pixels: int  # uint8, as the batch holds them
    encoder: int  # kept for backward: with `chunk_frames` what enters and leaves the stages
    temporal: int  # kept for backward by the modules in MOSS's place
    head: int  # kept for backward
    at_work: int  # what backward computes again, and gradients under way

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(getattr(self, field.name) for field in fields(self))


def estimate_memory(
    model: GEBD, *, clips: int, frames: int, size_px: int, precision: str, copies: int
) -> StepMemory:
    """The memory of a training step.

    Args:
        model: stays as it is.
        clips: of a process and micro-batch.
        frames: of a clip.
        size_px: side of a frame.
        precision: "fp32", "bf16" or "fp16"; the last two are autocast. Weights are float32 in each.
        copies: numbers that the optimizer keeps of each weight: SGD's momentum is 1, AdamW has 2.

    Raises: ValueError for an unknown precision.
    """
    if precision not in AUTOCAST:
        raise ValueError(f"unknown precision '{precision}'; choose one of {', '.join(AUTOCAST)}")

    def make_batch() -> tuple[Tensor]:
        return (torch.empty(clips, frames, 3, size_px, size_px, dtype=torch.uint8),)

    counted = count_step(
        model,
        head="head",
        make_batch=make_batch,
        outputs=lambda logits: [logits],
        dtype=AUTOCAST[precision],
    )
    return StepMemory(
        frozen_weights=counted.frozen_weights,
        trained_weights=counted.trained_weights,
        gradients=counted.trained_weights,
        optimizer_states=copies * counted.trained_weights,
        pixels=counted.batch,
        encoder=counted.encoder,
        temporal=counted.temporal,
        head=counted.head,
        at_work=counted.at_work,
    )
