"""The memory that a boundary model's training step takes, before the run and without its memory.

    memory = estimate_memory(model, clips=2, frames=100, size_px=224, precision="bf16", copies=1)
    Screen().print(parts_table({"224 px": memory}, title="a training step"))

`training/step_memory.py` says how it is counted.
"""

import torch

from moss_vllm.boundaries.gebd import GEBD
from moss_vllm.training.step_memory import StepMemory, estimate_step


def estimate_memory(
    model: GEBD, *, clips: int, frames: int, size_px: int, precision: str, copies: int
) -> StepMemory:
    """The memory of a training step; with `chunk_frames` the encoder keeps what enters and leaves its stages.

    Args:
        model: stays as it is.
        clips: of a process and micro-batch.
        frames: of a clip.
        size_px: side of a frame.
        precision: as in `estimate_step`.
        copies: as in `estimate_step`.

    Raises: ValueError for an unknown precision.
    """
    return estimate_step(
        model,
        head="head",
        make_batch=lambda: [torch.empty(clips, frames, 3, size_px, size_px, dtype=torch.uint8)],
        outputs=lambda logits: [logits],
        precision=precision,
        copies=copies,
    )
