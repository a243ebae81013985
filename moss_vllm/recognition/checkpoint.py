"""A video classifier in one folder. It reloads from there, except for a frozen image encoder.

    classifier.safetensors   the trained weights in float32, with BatchNorm's statistics
    run.json   arguments of `build_classifier`, classes, views, settings, versions, command, the fingerprint
               of the image encoder

The encoder is opened again by its name, or from its file, and must have the weights of that fingerprint.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moss_vllm.recognition.build import build_classifier, find_preset
from moss_vllm.recognition.hosts.classifier import VideoClassifier
from moss_vllm.runtime.trained_weights import (
    OneFileKeeper,
    build_again,
    read_record,
    read_trained,
    refuse_other_encoder,
    refuse_unfit,
    step_name,
    write_one_file,
)

WEIGHTS_FILE = "classifier.safetensors"
NEEDED = ("model", "encoder_fingerprint", "classes", "views", "data")


@dataclass
class LoadedClassifier:
    """A classifier in evaluation mode, and the run.json of its checkpoint."""

    model: VideoClassifier
    run: dict[str, Any]
    name: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class id."""
        return tuple(self.run["classes"])

    def settings_digest(self) -> str:
        """A digest of what decides scores beside the weights: build arguments, preset, mean and std."""
        arguments = {name: value for name, value in self.run["model"].items() if name != "weights"}
        preset = dataclasses.replace(find_preset(arguments["variant"]), paper=None)
        settings = [arguments, dataclasses.asdict(preset), self.model.mean, self.model.std]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def save(
    folder: Path, model: VideoClassifier, run: Mapping[str, Any], *, state: Mapping[str, Tensor]
) -> None:
    """Write the folder's files; `run["model"]` holds the arguments of `build_classifier`."""
    write_one_file(folder / WEIGHTS_FILE, model, run, state)


class Keeper(OneFileKeeper):
    """The checkpoints of a classifier in training, for `training.loop.train`."""

    file = WEIGHTS_FILE

    def restore(self, folder: Path) -> None:
        """Load a checkpoint into the classifier."""
        restore(folder, self.model)


def load(
    folder: str | Path, *, weights: str | None = None, device: str | torch.device = "cpu"
) -> LoadedClassifier:
    """Open a checkpoint for testing.

    Args:
        weights: the image encoder's file, if it is no longer where run.json says.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: a file that cannot be read, weights that do not fit, or another encoder.
    """
    folder = Path(folder)
    run = read_run(folder)
    if weights is not None:
        run["model"]["weights"] = weights
    model = build_again(folder, run, build_classifier)
    restore(folder, model)
    return LoadedClassifier(model.to(device).eval(), run, step_name(folder))


def restore(folder: Path, model: VideoClassifier, *, but_head: bool = False) -> None:
    """Load the weights of a checkpoint into a classifier that was built with the same arguments.

    Args:
        but_head: do not change the head, for data with other classes.

    Raises: as `load`.
    """
    file = folder / WEIGHTS_FILE
    refuse_other_encoder(folder, read_run(folder), model, model.encoder_name)
    weights = read_trained(file)
    head = re.compile(rf"^{re.escape(model.head_name)}\.")
    if but_head:
        weights = {name: value for name, value in weights.items() if not head.match(name)}
    expected = {
        name: value for name, value in model.trained_state().items() if not (but_head and head.match(name))
    }
    refuse_unfit(file, weights, expected, "classifier")
    model.load_state_dict(weights, strict=False)


def read_run(folder: Path) -> dict[str, Any]:
    """The run.json of a checkpoint; raises as `read_record`."""
    kind: dict[str, Any] = {"kind": "classifier", "recipe": "action_recog.py"}
    return read_record(folder, files=(WEIGHTS_FILE,), needed=NEEDED, **kind)
