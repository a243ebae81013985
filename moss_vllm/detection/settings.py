"""From the settings of recipes/detection.py to data, windows, pixels, arguments of the model and steps."""

import math
from functools import partial
from pathlib import Path
from typing import Any, Literal

from moss_vllm.core.detection_presets import DETECTORS
from moss_vllm.data.detection.datasets import (
    DETECTION_DATASETS,
    DETECTION_FILES,
    DetectionSplit,
    read_detection,
)
from moss_vllm.data.world.untrimmed import UNTRIMMED_ROOT, draw_untrimmed
from moss_vllm.detection.adatad import AdaTAD
from moss_vllm.detection.pixels import PixelSettings
from moss_vllm.detection.rates import warmup_cosine_rate
from moss_vllm.detection.windows import WindowSettings
from moss_vllm.training.loop import Loop
from moss_vllm.training.settings import accumulate_for, find_root, refuse, refuse_beside_drawn
from moss_vllm.training.start import data_seed
from moss_vllm.training.temporal_settings import parse_temporal
from moss_vllm.video.decoders import check_decoder

MINI_DATA = "mini"


def check_settings(settings: Any) -> None:
    """Raise one ValueError for all settings with values that are not allowed, or without effect."""
    wrong = [
        f"{name} is {getattr(settings, name)}; it must be above 0"
        for name in ("clip_norm", "warmup_epochs")
        if not getattr(settings, name) > 0
    ]
    if settings.temporal == "none" and settings.temporal_layers is not None:
        layers = settings.temporal_layers
        wrong.append(f"temporal_layers is {layers!r} with temporal 'none'; leave one of the two out")
    if settings.cache_gib is not None and not settings.cache:
        wrong.append("cache_gib limits what is added to cache, which is not given; leave it out")
    if settings.warmup_epochs >= settings.schedule_epochs:
        schedule = f"schedule_epochs, {settings.schedule_epochs}"
        wrong.append(f"warmup_epochs is {settings.warmup_epochs:g}; it must be below {schedule}")
    if settings.schedule_epochs < settings.epochs:
        wrong.append(
            f"schedule_epochs is {settings.schedule_epochs}, below epochs, {settings.epochs}; raise it, the "
            "rates fall over at least as many epochs as are trained"
        )
    refuse(
        settings,
        counts="frames stride size_px epochs schedule_epochs clips_a_step batch_size eval_from eval_every "
        "eval_batch_size log_every steps keep".split(),
        shares="lr adapter_lr weight_decay ema_decay max_bad_share".split(),
        from_zero=("workers", "seed", "data_seed"),
        paths="root videos annotation out resume cache weights encoder".split(),
        written=("out", "cache"),
        others=wrong,
    )
    check_decoder(settings.decoder)


def open_split(settings: Any, split: Literal["train", "test"]) -> DetectionSplit:
    """The split from `read_detection`; for "mini", untrimmed videos of the motion world, drawn on first use.

    Raises:
        ValueError: an unknown dataset, no root, and as `read_detection`.
    """
    data = settings.data
    if data not in DETECTION_DATASETS:
        raise ValueError(f"data is {data!r}; it must be one of {', '.join(DETECTION_DATASETS)}")
    if data == MINI_DATA:
        refuse_beside_drawn(settings)
        return read_detection(data, draw_untrimmed(settings.root or UNTRIMMED_ROOT), split)
    files = " or ".join(DETECTION_FILES[data])
    root, folders = find_root(
        settings, f"annotation and videos with --root: annotations/ with {files}, raw_data/video/"
    )
    return read_detection(
        data,
        root,
        split,
        annotation=settings.annotation,
        videos=folders,
        subset=settings.train_subset if split == "train" else settings.subset,
        allow_missing=settings.allow_missing,
    )


def model_arguments(settings: Any, classes: int) -> dict[str, Any]:
    """The arguments of `build_adatad`, in types that json keeps; raises as `parse_temporal`."""
    by_name = {"pretrained", "random"}
    return {
        "variant": settings.variant,
        "classes": classes,
        **parse_temporal(settings),
        "in_chunks": settings.in_chunks,
        "one_frame": settings.one_frame,
        "encoder": _absolute(settings.encoder) if settings.encoder else DETECTORS[settings.variant].encoder,
        "weights": settings.weights
        if settings.weights in by_name
        else str(Path(settings.weights).absolute()),
    }


def _absolute(encoder: str) -> str:
    return str(Path(encoder).absolute()) if Path(encoder).is_dir() else encoder


def choose_sizes(settings: Any, model: AdaTAD) -> tuple[WindowSettings, PixelSettings]:
    """The sizes of windows and frames.

    Raises:
        ValueError: sizes that the encoder does not take.
    """
    encoder = model.encoder
    units = {"frames": (encoder.chunk_frames, "chunk"), "size_px": (encoder.patch_size, "patch")}
    wrong = [
        f"{name} is {getattr(settings, name)}; it must be a multiple of {unit}, a {what} of {encoder.name}"
        for name, (unit, what) in units.items()
        if getattr(settings, name) % unit
    ]
    if wrong:
        raise ValueError("; ".join(wrong))
    # 182 for 160 px and 256 for 224, as in AdaTAD.
    short_side_px = settings.size_px * 256 // 224 if settings.augment else settings.size_px
    pixels = PixelSettings(settings.size_px, short_side_px, settings.augment)
    return WindowSettings(steps=settings.frames, stride=settings.stride), pixels


def plan_steps(settings: Any, videos: int, processes: int) -> tuple[int, Loop]:
    """Steps of an epoch, and the loop; windows per step as close to `clips_a_step` as the processes allow.

    `steps` shortens or lengthens the epochs, and the schedule with them.
    """
    batch_size = min(settings.batch_size, max(1, settings.clips_a_step // processes))
    accumulate = accumulate_for(settings.clips_a_step, batch_size * processes)
    steps_an_epoch = math.ceil(videos / (batch_size * accumulate * processes))
    steps = settings.steps or settings.epochs * steps_an_epoch
    per_epoch = steps / settings.epochs
    warmup, total = (
        max(1, round(epochs * per_epoch)) for epochs in (settings.warmup_epochs, settings.schedule_epochs)
    )
    every = min(steps, settings.eval_every * steps_an_epoch)
    return steps_an_epoch, Loop(
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        schedule=partial(warmup_cosine_rate, warmup=warmup, total=total),
        clip_norm=settings.clip_norm,
        save_every=every,
        keep=settings.keep,
        evaluate_every=every,
        log_every=settings.log_every,
        workers=settings.workers,
        seed=data_seed(settings),
        max_bad_share=settings.max_bad_share,
        unit="frames",
    )
