"""From the settings of recipes/action_recog.py to data, views, arguments of the classifier and steps."""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from moss_vllm.data.actions.datasets import ANNOTATION_FILES, DATASETS, ActionSplit, read_action
from moss_vllm.data.world.actions import MINI_ACTIONS_ROOT, ensure_mini_actions
from moss_vllm.recognition.dataset_views import DATASET_VIEWS, find_views
from moss_vllm.recognition.hosts.classifier import VideoClassifier
from moss_vllm.recognition.views import ViewSettings
from moss_vllm.training.loop import Loop
from moss_vllm.training.settings import accumulate_for, refuse
from moss_vllm.training.start import data_seed
from moss_vllm.training.temporal_settings import parse_temporal
from moss_vllm.video.decoders import check_decoder

MINI_DATA = "mini"
DATA = (*DATASETS, MINI_DATA)


def refuse_ignored(settings: Any) -> None:
    """Raise one ValueError for all settings that have no effect because of other settings."""
    without_effect = {
        "temporal_layers": settings.temporal == "none" and "temporal 'none', which has no layers",
        "cache_gib": not settings.cache and "no cache",
        "epochs": settings.steps is not None and f"steps {settings.steps}, which say how long it trains",
    }
    if wrong := [
        f"{name} is {getattr(settings, name)!r} with {why}; leave one of the two out"
        for name, why in without_effect.items()
        if why and getattr(settings, name) is not None
    ]:
        raise ValueError("; ".join(wrong))


def check_settings(settings: Any) -> None:
    """Raise one ValueError for all settings with values that are not allowed."""
    wrong = [] if settings.clip_norm > 0 else [f"clip_norm is {settings.clip_norm}; it must be above 0"]
    if settings.protocol not in DATASET_VIEWS[settings.data]:
        sources = ", ".join(DATASET_VIEWS[settings.data])
        wrong.append(f"protocol is {settings.protocol!r}; it must be one of {sources}")
    if settings.annotation and Path(settings.annotation).is_file():
        wrong.append(f"annotation {settings.annotation} is a file; name the folder of both lists")
    refuse(
        settings,
        counts="epochs clips_a_step batch_size eval_every eval_batch_size log_every steps keep".split(),
        shares="lr weight_decay layer_decay floor smoothing max_bad_share".split(),
        from_zero=("workers", "seed", "data_seed", "warmup_epochs"),
        paths="root annotation out resume start cache weights".split(),
        written=("out", "cache"),
        others=wrong,
    )
    check_decoder(settings.decoder)


def open_split(
    data: str,
    root: str | os.PathLike[str] | None,
    split: Literal["train", "test"],
    *,
    annotation: str | os.PathLike[str] | None = None,
    allow_missing: bool = False,
) -> ActionSplit:
    """The split from `read_action`; for "mini", the motion world's actions, which are drawn on first use.

    Raises:
        ValueError: an unknown dataset, no root, and as `read_action`.
    """
    if data not in DATA:
        raise ValueError(f"data is {data!r}; it must be one of {', '.join(DATA)}")
    if data == MINI_DATA:
        if annotation or allow_missing:
            raise ValueError(
                f"data is {MINI_DATA!r}, drawn whole with its own lists; leave out annotation and "
                "allow_missing"
            )
        drawn = read_action("list", ensure_mini_actions(root or MINI_ACTIONS_ROOT), split)
        return dataclasses.replace(drawn, dataset=MINI_DATA)
    if root is None:
        raise ValueError(
            f"data is {data!r}; name the folder of its videos and annotation files with --root: "
            f"{ANNOTATION_FILES[data]} (other spellings in docs/action_recognition.md)"
        )
    return read_action(data, Path(root), split, annotation=annotation, allow_missing=allow_missing)


def choose_views(
    data: str, source: str, variant: str, changes: Mapping[str, Any], model: VideoClassifier
) -> ViewSettings:
    """The views of a dataset, with changes, normalised as the model's encoder expects.

    Args:
        source: "paper" or "authors", see `find_views`.
        variant: a variant of the ladder, on which Kinetics' frames and repeats depend.
        changes: `frames` (that the encoder sees) and other fields of `ViewSettings`; None changes nothing.

    Raises:
        ValueError: an unknown source, or settings that contradict each other.
    """
    views = find_views(data, source, variant)
    if changes.get("size_px") is not None:
        views = views.at_size(changes["size_px"])
    fields = {name: value for name, value in changes.items() if value is not None and name != "size_px"}
    frames = fields.pop("frames", views.frames) * model.frames_per_encoded
    views = dataclasses.replace(views, **fields, frames=frames, mean=model.mean, std=model.std)
    if data == "diving48" and views.crops == 1:  # as in the authors' test; with three crops the scale is 224
        views = dataclasses.replace(views, test_scale=views.train_scale)
    if views.size_px % model.patch_size:
        raise ValueError(
            f"size_px is {views.size_px}; it must be a multiple of {model.patch_size}, a patch of "
            f"{model.encoder_name}"
        )
    return views


def model_arguments(settings: Any, classes: int) -> dict[str, Any]:
    """The arguments of `build_classifier`, in types that json keeps; raises as `parse_temporal`."""
    views = find_views(settings.data, settings.protocol, settings.variant)
    return {
        "host": settings.host,
        "variant": settings.variant,
        "backbone": settings.backbone,
        "classes": classes,
        **parse_temporal(settings),
        "weights": settings.weights
        if settings.weights in ("pretrained", "random")
        else str(Path(settings.weights).absolute()),
        "frames": settings.frames or views.frames,
        "image_size": settings.size_px or views.size_px,
    }


def plan_steps(settings: Any, clips: int, processes: int) -> tuple[int, Loop]:
    """Steps of an epoch, and the loop; clips per step as close to `clips_a_step` as the processes allow."""
    clips_a_step = settings.clips_a_step or 1
    batch_size = min(settings.batch_size, max(1, clips_a_step // processes))
    accumulate = accumulate_for(clips_a_step, batch_size * processes)
    steps_an_epoch = math.ceil(clips / (batch_size * accumulate * processes))
    steps = settings.steps or (settings.epochs or 1) * steps_an_epoch
    epochs = steps / steps_an_epoch
    return steps_an_epoch, Loop(
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        warmup_share=min(settings.warmup_epochs, epochs / 5) / epochs,
        floor=settings.floor,
        clip_norm=settings.clip_norm,
        save_every=settings.eval_every * steps_an_epoch,
        keep=settings.keep,
        evaluate_every=min(steps, settings.eval_every * steps_an_epoch),
        log_every=settings.log_every,
        workers=settings.workers,
        seed=data_seed(settings),
        max_bad_share=settings.max_bad_share,
        unit="frames",
    )
