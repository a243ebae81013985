"""The memory that a detector's training step takes, before the run and without its memory.

    memory = estimate_memory(model, windows=1, frames=768, size_px=160, precision="bf16")
    Screen().print(parts_table({"160 px": memory}, title="a training step"))

`training/step_memory.py` says how it is counted.
"""

import torch
from torch import Tensor

from moss_vllm.detection.adatad import AdaTAD
from moss_vllm.training.step_memory import StepMemory, estimate_step


def estimate_memory(
    model: AdaTAD, *, windows: int, frames: int, size_px: int, precision: str, average: bool = True
) -> StepMemory:
    """The memory of a training step with AdamW; what follows the encoder is the detector.

    Args:
        model: stays as it is.
        windows: of a process and micro-batch.
        frames: of a window.
        size_px: side of a frame.
        precision: as in `estimate_step`.
        average: as in `estimate_step`.

    Raises: ValueError for an unknown precision, or frames that the encoder does not take.
    """

    def make_batch() -> tuple[Tensor, Tensor]:
        clips = torch.empty(windows, frames, 3, size_px, size_px, dtype=torch.uint8)
        return clips, torch.ones(windows, frames, dtype=torch.bool)

    return estimate_step(
        model,
        head="detector",
        make_batch=make_batch,
        outputs=lambda levels: [one for level in levels for one in (level.cls_logits, level.distances)],
        precision=precision,
        average=average,
    )
