"""A classifier's data, views, arguments and steps from a recipe's settings."""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from moss_vllm.data.actions.datasets import DATASETS, FILES, ActionSplit, read_action
from moss_vllm.data.world.actions import DEFAULT_ROOT, ensure_mini_actions
from moss_vllm.recognition.hosts.classifier import VideoClassifier
from moss_vllm.recognition.views import PROTOCOLS, ViewSettings, protocol_views
from moss_vllm.training.loop import Loop
from moss_vllm.training.settings import accumulate_for, refuse
from moss_vllm.video.decoders import check_decoder

MINI = "mini"
DATA = (*DATASETS, MINI)


def refuse_ignored(settings: Any) -> None:
    """Refuse settings that others leave without effect, all at once."""
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


def check(settings: Any) -> None:
    """Refuse settings that have impossible values, all at once."""
    wrong = [] if settings.clip_norm > 0 else [f"clip_norm is {settings.clip_norm}; it must be above 0"]
    if settings.protocol not in PROTOCOLS[settings.data]:
        known = ", ".join(PROTOCOLS[settings.data])
        wrong.append(f"protocol is {settings.protocol!r}; it must be one of {known}")
    if settings.annotation and Path(settings.annotation).is_file():
        wrong.append(f"annotation {settings.annotation} is a file; name the folder of both lists")
    refuse(
        settings,
        counts="epochs clips_a_step batch_size eval_every eval_batch_size log_every steps keep".split(),
        shares="lr weight_decay layer_decay floor smoothing max_bad_share".split(),
        from_zero=("workers", "seed", "warmup_epochs"),
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
    """`read_action`, or the motion world's actions for "mini", drawn now if they are not there.

    Raises:
        ValueError: an unknown dataset, one without a root, and as `read_action`.
    """
    if data not in DATA:
        raise ValueError(f"data is {data!r}; it must be one of {', '.join(DATA)}")
    if data == MINI:
        if annotation or allow_missing:
            raise ValueError(
                f"data is {MINI!r}, drawn whole with its own lists; leave out annotation and allow_missing"
            )
        found = read_action("list", ensure_mini_actions(root or DEFAULT_ROOT), split)
        return dataclasses.replace(found, dataset=MINI)
    if root is None:
        raise ValueError(
            f"data is {data!r}; name the folder of its videos and annotation files with --root: "
            f"{FILES[data]} (other spellings in docs/action_recognition.md)"
        )
    return read_action(data, Path(root), split, annotation=annotation, allow_missing=allow_missing)


def choose_views(
    data: str, protocol: str, variant: str, given: Mapping[str, Any], model: VideoClassifier
) -> ViewSettings:
    """How clips are shown: the protocol's settings for the dataset, those given, the encoder's colours.

    Args:
        protocol: "paper" or "authors".
        variant: of the ladder, on which Kinetics' frames and repeats depend.
        given: `frames` and other fields of `ViewSettings`; None leaves what the protocol says.

    Raises:
        ValueError: an unknown protocol, or settings that do not go together.
    """
    views = protocol_views(data, protocol, variant)
    if given.get("size_px") is not None:
        views = views.at_size(given["size_px"])
    wanted = {name: value for name, value in given.items() if value is not None and name != "size_px"}
    frames = wanted.pop("frames", views.frames) * model.frames_per_encoded
    views = dataclasses.replace(views, **wanted, frames=frames, mean=model.mean, std=model.std)
    if data == "diving48" and views.crops == 1:  # as in the authors' test; of three crops both sides are 224
        views = dataclasses.replace(views, test_scale=views.train_scale)
    patched: Any = getattr(model, "encoder", model)
    if views.size_px % patched.patch_size:
        raise ValueError(
            f"size_px is {views.size_px}; it must be a multiple of {patched.patch_size}, a patch of "
            f"{model.encoder_name}"
        )
    return views


def model_arguments(settings: Any, classes: int) -> dict[str, Any]:
    """What `build_classifier` is called with, as json holds it.

    Raises:
        ValueError: layers or options that cannot be read.
    """
    layers, options = settings.temporal_layers, settings.temporal_options
    views = protocol_views(settings.data, settings.protocol, settings.variant)
    try:
        numbers = None if layers is None else [int(layer) for layer in layers.split(",")]
        if numbers and len(set(numbers)) < len(numbers):
            raise ValueError
    except ValueError:
        raise ValueError(f"temporal_layers is {layers!r}; write different layers as '4' or '4,6'") from None
    try:
        named = {} if options is None else yaml.safe_load(options)
        if not isinstance(named, dict):
            raise ValueError(f"it holds a {type(named).__name__}")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(
            f"temporal_options is {options!r:.200} ({error}); write them as '{{orders: [1, 2]}}'"
        ) from error
    return {
        "host": settings.host,
        "variant": settings.variant,
        "backbone": settings.backbone,
        "classes": classes,
        "temporal": settings.temporal,
        "temporal_layers": numbers,
        "temporal_options": named,
        "weights": settings.weights
        if settings.weights in ("pretrained", "random")
        else str(Path(settings.weights).absolute()),
        "frames": settings.frames or views.frames,
        "image_size": settings.size_px or views.size_px,
    }


def plan_steps(settings: Any, clips: int, processes: int) -> tuple[int, Loop]:
    """Steps of an epoch, and the loop: clips a step as near to what is asked as the processes allow."""
    wanted = settings.clips_a_step or 1
    batch_size = min(settings.batch_size, max(1, wanted // processes))
    accumulate = accumulate_for(wanted, batch_size * processes)
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
        seed=settings.seed,
        max_bad_share=settings.max_bad_share,
        unit="frames",
    )
