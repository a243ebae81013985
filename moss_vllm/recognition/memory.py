"""The memory that a training step takes, before the run and without its memory.

    memory = estimate_memory(model, views=32, frames=8, size_px=224, precision="bf16")
    Screen().print(parts_table({"32 views": memory}, title="a training step"))
    show_memory(Screen(), model, views=32, frames=8, size_px=224, precision="bf16")  # and what fits on a card

`training/step_memory.py` says how it is counted. The loss is left out; it takes some kilobytes.
"""

from dataclasses import fields
from typing import Any

import torch

from moss_vllm.recognition.hosts.classifier import VideoClassifier
from moss_vllm.runtime.progress import show_progress
from moss_vllm.runtime.screen import Screen
from moss_vllm.training.step_memory import GIB, StepMemory, estimate_step, parts_table

CARDS_GIB = (24, 48, 80)
FOR_TENSORS = 0.9  # of a card's memory: the rest is for what no count of tensors sees


def estimate_memory(
    model: VideoClassifier, *, views: int, frames: int, size_px: int, precision: str
) -> StepMemory:
    """The memory of a training step with AdamW; "encoder" has the ladder's blocks too.

    Args:
        model: stays as it is.
        views: of a process and micro-batch; with repeated augmentation a clip has several.
        frames: of a view.
        size_px: side of a frame.
        precision: as in `estimate_step`.

    Raises: ValueError for an unknown precision, or frames that are no whole patches.
    """
    return estimate_step(
        model,
        head=model.head_name,
        make_batch=lambda: [torch.empty(views, frames, 3, size_px, size_px)],
        outputs=lambda logits: [logits],
        precision=precision,
    )


def show_memory(
    console: Screen, model: VideoClassifier, *, views: int, frames: int, size_px: int, precision: str
) -> None:
    """Print what a step takes, without and with `checkpoint_blocks`, and how many views fit on a card."""
    ways = {"": False, ", --checkpoint-blocks": True}
    was = model.checkpoint_blocks
    found: dict[tuple[str, int], StepMemory] = {}
    jobs = [(way, number) for way in ways for number in (1, 2)]
    for way, number in show_progress(jobs, len(jobs), "steps counted"):
        model.set_checkpoint_blocks(ways[way])
        sizes: dict[str, Any] = {"views": number, "frames": frames, "size_px": size_px}
        found[way, number] = estimate_memory(model, **sizes, precision=precision)
    model.set_checkpoint_blocks(was)
    columns = {f"{views} views{way}": _of_views(found[way, 1], found[way, 2], views) for way in ways}
    console.print(parts_table(columns, title="memory of a step in each process, estimated"))
    for way in ways:
        fit = {card: views_that_fit(found[way, 1], found[way, 2], card) for card in CARDS_GIB}
        told = ", ".join(f"{number} on {card} GiB" for card, number in fit.items())
        console.print(f"views of a micro-batch that fit{way or ', every block kept'}: {told}", soft_wrap=True)


def _of_views(one: StepMemory, two: StepMemory, views: int) -> StepMemory:
    """The estimate for any number of views: each part grows by as much with each."""
    parts = {field.name: (getattr(one, field.name), getattr(two, field.name)) for field in fields(one)}
    return StepMemory(**{name: a + (views - 1) * (b - a) for name, (a, b) in parts.items()})


def views_that_fit(one: StepMemory, two: StepMemory, card_gib: float) -> int:
    """Views of a micro-batch on a card, from the estimates for one view and for two."""
    a_view = two.total - one.total
    return max(0, int((FOR_TENSORS * card_gib * GIB - (one.total - a_view)) // a_view))
