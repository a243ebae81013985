"""The memory that a training step takes, before the run and without its memory.

    memory = estimate_memory(model, windows=1, frames=768, size_px=160, precision="bf16")
    Screen().print(parts_table({"160 px": memory}, title="a training step"))

`training/step_memory.py` says how it is counted. The losses are left out; they take some megabytes.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from moss_vllm.detection.adatad import AdaTAD
from moss_vllm.runtime.precision import AUTOCAST
from moss_vllm.training.step_memory import count_step

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

    def make_batch() -> tuple[Tensor, Tensor]:
        clips = torch.empty(windows, frames, 3, size_px, size_px, dtype=torch.uint8)
        return clips, torch.ones(windows, frames, dtype=torch.bool)

    counted = count_step(
        model,
        head="detector",
        make_batch=make_batch,
        outputs=lambda levels: [one for level in levels for one in (level.cls_logits, level.distances)],
        dtype=AUTOCAST[precision],
    )
    weights = counted.trained_weights
    return StepMemory(
        frozen_weights=counted.frozen_weights,
        trained_weights=weights,
        average=weights if average else 0,
        gradients=weights,
        adam_states=2 * weights,
        pixels=counted.batch,
        encoder=counted.encoder,
        temporal=counted.temporal,
        detector=counted.head,
        layer_at_work=counted.at_work,
    )
