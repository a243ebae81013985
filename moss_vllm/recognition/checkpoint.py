"""A video classifier in one folder that reloads alone, but for its frozen image encoder.

    classifier.safetensors   what was trained, in float32, BatchNorm's statistics included
    run.json   how it is built, classes, views, settings, versions, command; the encoder's fingerprint

The encoder is opened again by its name, or from the file it came from, and must have the same weights.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from moss_vllm.recognition.build import build_classifier
from moss_vllm.recognition.hosts.classifier import VideoClassifier
from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.files import read_json, readable
from moss_vllm.runtime.provenance import RUN_FILE, faults, fingerprint, versions

WEIGHTS_FILE = "classifier.safetensors"
NEEDED = ("model", "encoder_fingerprint", "classes", "views", "data")


@dataclass
class LoadedClassifier:
    """A classifier in evaluation mode, and what is known of its making."""

    model: VideoClassifier
    run: dict[str, Any]
    name: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class id."""
        return tuple(self.run["classes"])


def trained_state(model: VideoClassifier) -> dict[str, Tensor]:
    """Every weight and statistic that training changes."""
    whole = model.state_dict()
    return {name: whole[name] for name in model.trained_names()}


def save(
    folder: Path, model: VideoClassifier, run: Mapping[str, Any], *, state: Mapping[str, Tensor]
) -> None:
    """Write the folder's files; `run` has `model`, what `build_classifier` is called with."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / WEIGHTS_FILE)
    readable(folder / WEIGHTS_FILE)
    record = {**run, "encoder_fingerprint": encoder_fingerprint(model), "versions": versions()}
    (folder / RUN_FILE).write_text(json.dumps(record, indent=2) + "\n")


@dataclass(frozen=True)
class Keeper:
    """The checkpoints of a classifier in training, for `training.loop.train`; `run` as in `save`."""

    model: VideoClassifier
    run: Mapping[str, Any]

    def state(self) -> dict[str, Tensor]:
        """The tensors of the classifier that training changes."""
        return trained_state(self.model)

    def save(self, folder: Path, state: Mapping[str, Tensor], step: int) -> None:
        """Write a checkpoint of `state`."""
        save(folder, self.model, {**self.run, "step": step}, state=state)

    def restore(self, folder: Path) -> None:
        """Load a checkpoint into the classifier."""
        restore(folder, self.model)

    def check(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """RunStopped unless the weights on disk are those of `state`, bit for bit."""
        weights = load_file(folder / WEIGHTS_FILE)
        wrong = [
            name
            for name in sorted(weights.keys() | state.keys())
            if name not in weights or name not in state or not torch.equal(weights[name], state[name])
        ]
        if wrong:
            raise RunStopped(
                f"{folder / WEIGHTS_FILE} differs from the weights in memory in {', '.join(wrong[:5])}; do "
                "not use it, and check the disk"
            )


def load(
    folder: str | Path, *, weights: str | None = None, device: str | torch.device = "cpu"
) -> LoadedClassifier:
    """Open a checkpoint for testing.

    Args:
        weights: where the image encoder's weights are now, if not where they were.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: a file that cannot be read, weights that do not fit, or another encoder.
    """
    folder = Path(folder)
    run = read_run(folder)
    if weights is not None:
        run["model"]["weights"] = weights
    try:
        model = build_classifier(**run["model"])
    except TypeError as error:
        raise ValueError(
            f"{folder / RUN_FILE}: its model cannot be built ({error}); use a whole checkpoint"
        ) from error
    restore(folder, model)
    step = folder.name if folder.name.startswith("step-") else folder.parent.name
    return LoadedClassifier(model.to(device).eval(), run, step)


def restore(folder: Path, model: VideoClassifier, *, but_head: bool = False) -> None:
    """Fill a classifier built alike with the weights of a checkpoint.

    Args:
        but_head: leave the head as it is, for data with other classes.

    Raises: as `load`.
    """
    run, file = read_run(folder), folder / WEIGHTS_FILE
    if (own := encoder_fingerprint(model)) != run["encoder_fingerprint"]:
        raise ValueError(
            f"{folder} was trained beside other weights of {model.encoder_name} (fingerprint "
            f"{run['encoder_fingerprint']}, these have {own}); pass those with --weights"
        )
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); use another checkpoint") from error
    head = re.compile(rf"^{re.escape(model.head_name)}\.")
    if but_head:
        weights = {name: value for name, value in weights.items() if not head.match(name)}
    expected = {
        name: value for name, value in trained_state(model).items() if not (but_head and head.match(name))
    }
    if wrong := faults(weights, expected):
        raise ValueError(f"{file}: {wrong}; use a checkpoint of this classifier, whole")
    model.load_state_dict(weights, strict=False)


def read_run(folder: Path) -> dict[str, Any]:
    """The record of a checkpoint.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: it cannot be read, or lacks something.
    """
    for name in (RUN_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder}: no {name}; name a folder that recipes/action_recog.py wrote (step-NNNNNN or best)"
            )
    run = read_json(folder / RUN_FILE)
    if missing := [name for name in NEEDED if name not in run]:
        raise ValueError(f"{folder / RUN_FILE}: has no {', '.join(missing)}; is it of a classifier?")
    return run


def encoder_fingerprint(model: VideoClassifier) -> str:
    """Tells two frozen encoders apart; one for all where the encoder trains and is in the checkpoint."""
    kept = set(model.trained_names())
    return fingerprint({name: value for name, value in model.state_dict().items() if name not in kept})
