"""What training and testing a classifier share: which clips of a dataset, and how they are shown."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from moss_vllm.data.action import DATASETS, ActionSplit, read_action
from moss_vllm.data.mini_actions import DEFAULT_ROOT, ensure_mini_actions
from moss_vllm.data.views import PROTOCOLS, ViewSettings
from moss_vllm.hosts.classifier import VideoClassifier

MINI = "mini"
DATA = (*DATASETS, MINI)


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
        found = read_action("list", ensure_mini_actions(root or DEFAULT_ROOT), split)
        return dataclasses.replace(found, dataset=MINI)
    if root is None:
        raise ValueError(f"data is {data!r}; name the folder of its videos and annotation files with --root")
    return read_action(data, Path(root), split, annotation=annotation, allow_missing=allow_missing)


def choose_views(data: str, protocol: str, given: Mapping[str, Any], model: VideoClassifier) -> ViewSettings:
    """How clips are shown: the protocol's settings for the dataset, those given, the encoder's colours.

    Args:
        protocol: "paper" or "authors".
        given: `frames` and other fields of `ViewSettings`; None leaves what the protocol says.

    Raises:
        ValueError: an unknown protocol, or settings that do not go together.
    """
    if protocol not in PROTOCOLS[data]:
        raise ValueError(f"protocol is {protocol!r}; it must be one of {', '.join(PROTOCOLS[data])}")
    views = PROTOCOLS[data][protocol]
    if given.get("size_px") is not None:
        views = views.at_size(given["size_px"])
    wanted = {name: value for name, value in given.items() if value is not None and name != "size_px"}
    frames = wanted.pop("frames", views.frames) * model.frames_per_encoded
    views = dataclasses.replace(views, **wanted, frames=frames, mean=model.mean, std=model.std)
    patched: Any = getattr(model, "encoder", model)
    if views.size_px % patched.patch_size:
        raise ValueError(
            f"size_px is {views.size_px}; it must be a multiple of {patched.patch_size}, a patch of "
            f"{model.encoder_name}"
        )
    return views
