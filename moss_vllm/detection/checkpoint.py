"""A detector in one folder. It reloads from there, except for the frozen video encoder.

    detector.safetensors   the trained weights in float32, with BatchNorm's statistics and the loss's divisor
    average.safetensors    their moving average over the steps: what is tested
    run.json   arguments of `build_adatad`, classes, windows, pixels, data, settings, versions, command, the
               fingerprint of the video encoder

The encoder is opened again by its name, or from its file, and must have the weights of that fingerprint.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moss_vllm.core.detection_presets import DETECTORS
from moss_vllm.detection.adatad import AdaTAD
from moss_vllm.detection.build import build_adatad
from moss_vllm.detection.pixels import PixelSettings
from moss_vllm.detection.windows import WindowSettings
from moss_vllm.runtime.provenance import RUN_FILE
from moss_vllm.runtime.trained_weights import (
    build_again,
    read_record,
    read_trained,
    refuse_other_bits,
    refuse_other_encoder,
    refuse_unfit,
    step_name,
    write_record,
    write_trained,
)
from moss_vllm.training.average import WeightAverage
from moss_vllm.training.run_folder import refuse_other_meaning

WEIGHTS_FILE = "detector.safetensors"
AVERAGE_FILE = "average.safetensors"
AVERAGED = "average."  # before the names of averaged tensors in a state
# Of run.json, what changes no weight's shape and yet what the weights mean.
SEEN = ("windows", "pixels")
SEEN_BY_THE_MODEL = ("in_chunks", "one_frame")
NEEDED = ("model", "encoder_fingerprint", "classes", "windows", "pixels", "data")
KINDS = {"model": dict, "classes": list, "windows": dict, "pixels": dict, "settings": dict}  # of run.json


@dataclass
class LoadedDetector:
    """A detector in evaluation mode, and the run.json of its checkpoint."""

    model: AdaTAD
    run: dict[str, Any]
    name: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by class id."""
        return tuple(self.run["classes"])

    def settings_digest(self) -> str:
        """A digest of what decides detections beside all weights: build arguments and preset."""
        encoder = ("encoder", "weights", "revision")
        arguments = {name: value for name, value in self.run["model"].items() if name not in encoder}
        preset = DETECTORS[arguments["variant"]]
        preset = dataclasses.replace(preset, published=(), rerun=None, paper=None)
        text = json.dumps([arguments, dataclasses.asdict(preset)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def save(folder: Path, model: AdaTAD, run: Mapping[str, Any], *, state: Mapping[str, Tensor]) -> None:
    """Write the folder's files.

    Args:
        run: with `model`, the arguments of `build_adatad`.
        state: as `Keeper.state` returns it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file, tensors in by_file(state).items():
        write_trained(folder / file, tensors)
    write_record(folder, run, model)


def by_file(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each file of a checkpoint, of a `Keeper`'s state."""
    averaged = {name: value for name, value in state.items() if name.startswith(AVERAGED)}
    return {
        WEIGHTS_FILE: {name: value for name, value in state.items() if name not in averaged},
        AVERAGE_FILE: {name.removeprefix(AVERAGED): value for name, value in averaged.items()},
    }


@dataclass(frozen=True)
class Keeper:
    """The checkpoints of a detector in training, for `training.loop.train`; `run` as in `save`."""

    model: AdaTAD
    run: Mapping[str, Any]
    average: WeightAverage

    def state(self) -> dict[str, Tensor]:
        """What training changes, and its average with `AVERAGED` before the names."""
        averaged = {AVERAGED + name: value for name, value in self.average.average.items()}
        return {**self.model.trained_state(), **averaged}

    def save(self, folder: Path, state: Mapping[str, Tensor], step: int) -> None:
        """Write a checkpoint of `state`."""
        save(folder, self.model, {**self.run, "step": step}, state=state)

    def restore(self, folder: Path) -> None:
        """Load a checkpoint into the detector and its average.

        Raises: as `load`, and ValueError for one that was trained on other classes or windows.
        """
        refuse_other_meaning(folder, _meaning(read_run(folder)), _meaning(self.run))
        restore(folder, self.model)
        self.average.load(_read_weights(folder / AVERAGE_FILE, self.model))

    def check(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """RunStopped unless the weights on disk are those of `state`, bit for bit."""
        for file, tensors in by_file(state).items():
            refuse_other_bits(folder / file, tensors)


def load(
    folder: str | Path,
    *,
    weights: str | None = None,
    device: str | torch.device = "cpu",
    average: bool = True,
) -> LoadedDetector:
    """Open a checkpoint for testing.

    Args:
        weights: the video encoder's file, or its folder, if it is no longer where run.json says.
        average: load the moving average, and not the weights of the last step.

    Raises:
        FileNotFoundError: the folder holds no checkpoint, or the encoder's folder is gone.
        ValueError: a file that cannot be read, weights that do not fit, or another encoder.
    """
    folder = Path(folder)
    run = read_run(folder)
    if weights is not None:
        run["model"]["encoder" if Path(weights).is_dir() else "weights"] = weights
    encoder = Path(run["model"].get("encoder", ""))
    if encoder.is_absolute() and not encoder.is_dir():
        raise FileNotFoundError(
            f"{encoder}, the video encoder that {folder} was trained beside, is not there; pass its "
            "folder with --weights"
        )
    model = build_again(folder, run, build_adatad)
    restore(folder, model, average=average)
    return LoadedDetector(model.to(device).eval(), run, step_name(folder))


def restore(folder: Path, model: AdaTAD, *, average: bool = False) -> None:
    """Load a checkpoint into a detector that was built with the same arguments.

    Args:
        average: load the moving average, and not the weights of the last step.

    Raises: as `load`.
    """
    refuse_other_encoder(folder, read_run(folder), model, model.encoder.name)
    model.load_state_dict(
        _read_weights(folder / (AVERAGE_FILE if average else WEIGHTS_FILE), model), strict=False
    )


def _meaning(run: Mapping[str, Any]) -> dict[str, Any]:
    """What decides, beside their shapes, what weights mean; class names in their order."""
    values = {f"{part} {name}": value for part in SEEN for name, value in run.get(part, {}).items()}
    values |= {name: run.get("model", {}).get(name, False) for name in SEEN_BY_THE_MODEL}
    return values | {f"class {label}": name for label, name in enumerate(run.get("classes", ()))}


def _read_weights(file: Path, model: AdaTAD) -> dict[str, Tensor]:
    weights = read_trained(file)
    refuse_unfit(file, weights, model.trained_state(), "detector")
    return weights


def read_run(folder: Path) -> dict[str, Any]:
    """The run.json of a checkpoint; raises as `read_record`, also for fields of another type."""
    kind: dict[str, Any] = {"kind": "detector", "recipe": "detection.py"}
    run = read_record(folder, files=(WEIGHTS_FILE, AVERAGE_FILE), needed=NEEDED, **kind)
    for name, needed in KINDS.items():
        if not isinstance(run.get(name, needed()), needed):
            raise _unfit(folder, f"{name} is {run[name]!r:.60}, not a {needed.__name__}")
    for name in ("root", "annotation", "videos", "subset"):
        if not isinstance(value := run.get("settings", {}).get(name), str | None):
            raise _unfit(folder, f"{name} is {value!r:.60}, not a text")
    for name, settings in (("windows", WindowSettings), ("pixels", PixelSettings)):
        try:
            settings(**run[name])
        except (TypeError, ValueError) as error:
            raise _unfit(folder, f"its {name} cannot be made ({error})") from error
    return run


def _unfit(folder: Path, reason: str) -> ValueError:
    return ValueError(f"{folder / RUN_FILE}: {reason}; use a whole checkpoint")
