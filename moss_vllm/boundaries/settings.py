"""From the settings of recipes/boundaries.py to data, clips, arguments of the model and steps."""

import math
import os
from functools import partial
from pathlib import Path
from typing import Any, Literal

from moss_vllm.boundaries.batches import ClipSettings, LabelSettings
from moss_vllm.boundaries.rates import step_rate
from moss_vllm.data.boundaries.datasets import (
    BOUNDARY_DATASETS,
    BOUNDARY_FILES,
    BoundarySplit,
    read_boundaries,
)
from moss_vllm.data.world.boundaries import BOUNDARIES_ROOT, draw_boundaries
from moss_vllm.training.loop import Loop
from moss_vllm.training.optim import make_adamw, make_sgd
from moss_vllm.training.settings import accumulate_for, find_root, refuse, refuse_beside_drawn
from moss_vllm.training.start import data_seed
from moss_vllm.training.temporal_settings import parse_temporal
from moss_vllm.video.decoders import check_decoder

MINI_DATA = "mini"
OPTIMIZERS = {"sgd": make_sgd, "adamw": make_adamw}
STATES = {"sgd": 1, "adamw": 2}  # numbers that an optimizer keeps of each weight
OF_ONE_OPTIMIZER = {"milestones": "sgd", "warmup_epochs": "adamw"}


def check_settings(settings: Any) -> None:
    """Raise one ValueError for all settings with values that are not allowed, or without effect."""
    wrong = []
    if settings.temporal == "none" and settings.temporal_layers is not None:
        layers = settings.temporal_layers
        wrong.append(f"temporal_layers is {layers!r} with temporal 'none'; leave one of the two out")
    if settings.checkpoint_moss and settings.temporal not in ("moss", "stss1"):
        wrong.append(f"checkpoint_moss is given with temporal {settings.temporal!r}, not MOSS; leave it out")
    if settings.cache_gib is not None and not settings.cache:
        wrong.append("cache_gib limits what is added to cache, which is not given; leave it out")
    for name, optimizer in OF_ONE_OPTIMIZER.items():
        value = getattr(settings, name)
        if value is not None and settings.optimizer != optimizer:
            wrong.append(f"{name} is {value} with optimizer {settings.optimizer!r}; {optimizer} alone has it")
    if settings.warmup_epochs is not None and not settings.warmup_epochs < settings.epochs:
        wrong.append(
            f"warmup_epochs is {settings.warmup_epochs:g}; it must be below epochs, {settings.epochs}"
        )
    if (file := _file_of_one_split(settings)) is not None:
        wrong.append(f"annotation is {file}, of one split; name the folder with the files of both")
    try:
        parse_milestones(settings)
    except ValueError as error:
        wrong.append(str(error))
    refuse(settings, wrong)
    check_decoder(settings.decoder)


def _file_of_one_split(settings: Any) -> str | None:
    """The annotation, if it is a file; the user's json and tapos_annotation.json have both splits."""
    file = settings.annotation
    has_both = settings.data == "json" or (settings.data == "tapos" and str(file).endswith(".json"))
    return file if file and not has_both and os.path.isfile(file) else None


def parse_milestones(settings: Any) -> tuple[int, ...]:
    """The epochs after which rates fall; ValueError for what is no rising list of them."""
    try:
        given = "" if settings.milestones in (None, "none") else settings.milestones
        epochs = tuple(int(epoch) for epoch in given.split(",") if epoch.strip())
        if list(epochs) != sorted(set(epochs)) or min(epochs, default=1) < 1:
            raise ValueError
    except ValueError:
        raise ValueError(f"milestones is {settings.milestones!r}; write rising epochs as '6,8,12'") from None
    return epochs


def open_split(settings: Any, split: Literal["train", "test"]) -> BoundarySplit:
    """The split from `read_boundaries`; for "mini", clips of the motion world, drawn on first use.

    Raises:
        ValueError: an unknown dataset, no root, and as `read_boundaries`.
    """
    data = settings.data
    if data not in BOUNDARY_DATASETS:
        raise ValueError(f"data is {data!r}; it must be one of {', '.join(BOUNDARY_DATASETS)}")
    if data == MINI_DATA:
        refuse_beside_drawn(settings)
        return read_boundaries(data, draw_boundaries(settings.root or BOUNDARIES_ROOT), split)
    files = " or ".join(name.format("train") for name in BOUNDARY_FILES[data])
    root, folders = find_root(
        settings, f"annotation and clips with --root: {files}, and clips in images/train/, for example"
    )
    return read_boundaries(
        data,
        root,
        split,
        annotation=settings.annotation,
        videos=folders,
        subset=settings.train_subset if split == "train" else settings.subset,
        allow_missing=settings.allow_missing,
    )


def model_arguments(settings: Any) -> dict[str, Any]:
    """The arguments of `build_gebd`, in types that json keeps; raises as `parse_temporal`."""
    by_name = (None, "pretrained", "random")
    weights = settings.weights
    return {
        "variant": settings.variant,
        **parse_temporal(settings),
        "weights": weights if weights in by_name else str(Path(weights).absolute()),
        "chunk_frames": settings.chunk_frames or None,
        "one_frame": settings.one_frame,
    }


def clip_settings(settings: Any) -> tuple[ClipSettings, LabelSettings]:
    """How clips are shown, and what of them is learned."""
    clips = ClipSettings(settings.frames, settings.size_px, settings.sliced)
    return clips, LabelSettings(settings.raters, settings.labels, settings.mask)


def plan_steps(settings: Any, rows: int, processes: int) -> Loop:
    """The loop; clips per step as close to `clips_a_step` as the processes allow.

    `steps` shortens or lengthens the epochs, and the schedule with them.
    """
    batch_size = min(settings.batch_size, max(1, settings.clips_a_step // processes))
    accumulate = accumulate_for(settings.clips_a_step, batch_size * processes)
    steps_an_epoch = math.ceil(rows / (batch_size * accumulate * processes))
    steps = settings.steps or settings.epochs * steps_an_epoch
    per_epoch = steps / settings.epochs
    drops = tuple(round(epoch * per_epoch) for epoch in parse_milestones(settings))
    every = min(steps, settings.eval_every * steps_an_epoch)
    return Loop(
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        warmup_share=(settings.warmup_epochs or 0) / settings.epochs,
        schedule=partial(step_rate, drops=drops) if settings.optimizer == "sgd" else None,
        optimizer=OPTIMIZERS[settings.optimizer],
        clip_norm=settings.clip_norm or math.inf,
        save_every=every,
        keep=settings.keep,
        evaluate_every=every,
        log_every=settings.log_every,
        profile_steps=settings.profile_steps,
        workers=settings.workers,
        seed=data_seed(settings),
        max_bad_share=settings.max_bad_share,
        unit="frames",
    )
