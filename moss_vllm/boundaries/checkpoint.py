"""A boundary model in one folder, which reloads from there alone.

    boundaries.safetensors   all weights in float32, with BatchNorm's statistics
    run.json   arguments of `build_gebd`, how clips are shown, data, settings, versions, command

The ResNet trains, so its weights are in the file: the model is built around random ones.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moss_vllm.boundaries.batches import ClipSettings
from moss_vllm.boundaries.build import build_gebd
from moss_vllm.boundaries.gebd import GEBD
from moss_vllm.core.boundary_presets import BOUNDARIES
from moss_vllm.runtime.provenance import RUN_FILE
from moss_vllm.runtime.trained_weights import (
    OneFileKeeper,
    build_again,
    read_record,
    read_trained,
    refuse_unfit,
    step_name,
)
from moss_vllm.training.run_folder import refuse_other_meaning

WEIGHTS_FILE = "boundaries.safetensors"
# Arguments of `build_gebd` that decide no score: the file has the weights, chunks change memory alone.
WITHOUT_EFFECT = ("weights", "chunk_frames")
# Settings that a resumed run keeps: what is learned of a clip, and the kind of the optimizer's states.
SEEN = ("raters", "labels", "mask", "augment", "optimizer")
NEEDED = ("model", "clips", "data")
KINDS = {"model": dict, "clips": dict, "settings": dict}  # of run.json


@dataclass
class LoadedBoundaryModel:
    """A boundary model in evaluation mode, and the run.json of its checkpoint."""

    model: GEBD
    run: dict[str, Any]
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The recipe's settings by name."""
        return dict(self.run.get("settings", {}))

    @property
    def clips(self) -> ClipSettings:
        """How clips were shown to it."""
        return ClipSettings(**self.run["clips"])

    def settings_digest(self) -> str:
        """A digest of what decides scores beside all weights: build arguments and preset."""
        arguments = {name: value for name, value in self.run["model"].items() if name not in WITHOUT_EFFECT}
        preset = dataclasses.replace(BOUNDARIES[arguments["variant"]], rerun=None, paper=None)
        text = json.dumps([arguments, dataclasses.asdict(preset)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class Keeper(OneFileKeeper):
    """The checkpoints of a boundary model in training, for `training.loop.train`."""

    file = WEIGHTS_FILE

    def restore(self, folder: Path) -> None:
        """Load a checkpoint into the model.

        Raises: as `load`, and ValueError for one that was trained on other clips.
        """
        refuse_other_meaning(folder, _meaning(read_run(folder)), _meaning(self.run))
        restore(folder, self.model)


def load(folder: str | Path, *, device: str | torch.device = "cpu") -> LoadedBoundaryModel:
    """Open a checkpoint for testing.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: a file that cannot be read, or weights that do not fit.
    """
    folder = Path(folder)
    run = read_run(folder)
    model = build_again(folder, {"model": {**run["model"], "weights": "random"}}, build_gebd)
    restore(folder, model)
    return LoadedBoundaryModel(model.to(device).eval(), run, step_name(folder))


def restore(folder: Path, model: GEBD) -> None:
    """Load the weights of a checkpoint into a model that was built with the same arguments.

    Raises: as `load`.
    """
    file = folder / WEIGHTS_FILE
    weights = read_trained(file)
    refuse_unfit(file, weights, model.trained_state(), "model")
    model.load_state_dict(weights)


def _meaning(run: Mapping[str, Any]) -> dict[str, Any]:
    """What decides, beside their shapes, what weights mean and how they go on."""
    values = {f"clips {name}": value for name, value in run.get("clips", {}).items()}
    values["one_frame"] = run.get("model", {}).get("one_frame", False)
    return values | {name: value for name, value in run.get("settings", {}).items() if name in SEEN}


def read_run(folder: Path) -> dict[str, Any]:
    """The run.json of a checkpoint; raises as `read_record`, also for fields of another type."""
    kind: dict[str, Any] = {"kind": "boundary model", "recipe": "boundaries.py"}
    run = read_record(folder, files=(WEIGHTS_FILE,), needed=NEEDED, **kind)
    for name, needed in KINDS.items():
        if not isinstance(run.get(name, needed()), needed):
            raise _unfit(folder, f"{name} is {run[name]!r:.60}, not a {needed.__name__}")
    for name in ("root", "annotation", "videos", "subset"):
        if not isinstance(value := run.get("settings", {}).get(name), str | None):
            raise _unfit(folder, f"{name} is {value!r:.60}, not a text")
    try:
        ClipSettings(**run["clips"])
    except (TypeError, ValueError) as error:
        raise _unfit(folder, f"its clips cannot be made ({error})") from error
    return run


def _unfit(folder: Path, reason: str) -> ValueError:
    return ValueError(f"{folder / RUN_FILE}: {reason}; use a whole checkpoint")
