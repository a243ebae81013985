"""A checkpoint beside a frozen encoder: files of trained weights, and the record of how they were made.

The encoder is not saved. It is opened again by its name, or from its file, and must have the weights of the
record's fingerprint.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.files import read_json, readable
from moss_vllm.runtime.provenance import RUN_FILE, faults, fingerprint
from moss_vllm.runtime.spelling import script_of
from moss_vllm.runtime.versions import versions


class BesideEncoder(Protocol):
    """A model with a frozen encoder."""

    def state_dict(self) -> Any:
        """Tensors by name."""
        ...

    def trained_names(self) -> tuple[str, ...]:
        """Names of those that are not frozen."""
        ...


def encoder_fingerprint(model: BesideEncoder) -> str:
    """A digest of the frozen encoder's weights; the same for all models whose encoder trains."""
    trained = set(model.trained_names())
    return fingerprint({name: value for name, value in model.state_dict().items() if name not in trained})


def refuse_other_encoder(folder: Path, run: Mapping[str, Any], model: BesideEncoder, encoder: str) -> None:
    """ValueError unless the model's frozen encoder, called `encoder` in errors, is the checkpoint's."""
    was, own = run["encoder_fingerprint"], encoder_fingerprint(model)
    if own != was:
        raise ValueError(
            f"{folder} was trained beside other weights of {encoder} (fingerprint {was}, these have {own}); "
            "pass those with --weights"
        )


def write_trained(file: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors."""
    save_file({name: value.contiguous() for name, value in state.items()}, file)
    readable(file)


def write_one_file(
    file: Path, model: BesideEncoder, run: Mapping[str, Any], state: Mapping[str, Tensor]
) -> None:
    """Write a checkpoint of a file of weights and run.json; `run["model"]` has the builder's arguments."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_trained(file, state)
    write_record(file.parent, run, model)


@dataclass(frozen=True)
class OneFileKeeper:
    """The checkpoints of a model whose trained weights are one file; a task's Keeper adds `restore`.

    Args:
        model: with `trained_state`, the tensors that training changes.
        run: as in `write_one_file`.
    """

    model: Any
    run: Mapping[str, Any]
    file: ClassVar[str]

    def state(self) -> dict[str, Tensor]:
        """The tensors of the model that training changes."""
        return dict(self.model.trained_state())

    def save(self, folder: Path, state: Mapping[str, Tensor], step: int) -> None:
        """Write a checkpoint of `state`."""
        write_one_file(folder / self.file, self.model, {**self.run, "step": step}, state)

    def check(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """RunStopped unless the weights on disk are those of `state`, bit for bit."""
        refuse_other_bits(folder / self.file, state)


def build_again(folder: Path, run: Mapping[str, Any], build: Callable[..., Any]) -> Any:
    """What `build` makes of the arguments in a checkpoint's run.json; ValueError if it does not take them."""
    try:
        return build(**run["model"])
    except TypeError as error:
        raise ValueError(
            f"{folder / RUN_FILE}: its model cannot be built ({error}); use a whole checkpoint"
        ) from error


def read_trained(file: Path) -> dict[str, Tensor]:
    """Read tensors from safetensors; ValueError for a file that cannot be read."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); use another checkpoint") from error


def refuse_unfit(
    file: Path, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], kind: str
) -> None:
    """ValueError unless the weights of a file are like the `expected` ones of a model, a `kind` of it."""
    if wrong := faults(weights, expected):
        raise ValueError(f"{file}: {wrong}; use a checkpoint of this {kind}, whole")


def refuse_other_bits(file: Path, state: Mapping[str, Tensor]) -> None:
    """RunStopped unless the weights on disk are those of `state`, bit for bit."""
    if wrong := differing(load_file(file), state):
        raise RunStopped(
            f"{file} differs from the weights in memory in {', '.join(wrong[:5])}; do not use it, and check "
            "the disk"
        )


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that only one has, or whose types or numbers are not the same."""

    def same(first: Tensor, second: Tensor) -> bool:
        return first.dtype == second.dtype and torch.equal(first.cpu(), second.cpu())

    names = sorted(one.keys() | other.keys())
    return [name for name in names if not (name in one and name in other and same(one[name], other[name]))]


def write_record(folder: Path, run: Mapping[str, Any], model: BesideEncoder) -> None:
    """Write run.json: `run`, the encoder's fingerprint and versions."""
    record = {**run, "encoder_fingerprint": encoder_fingerprint(model), "versions": versions()}
    (folder / RUN_FILE).write_text(json.dumps(record, indent=2) + "\n")


def read_record(
    folder: Path, *, files: Sequence[str], needed: Sequence[str], kind: str, recipe: str
) -> dict[str, Any]:
    """The run.json of a checkpoint.

    Args:
        files: that are beside it.
        needed: fields of run.json.
        kind: of the model, for errors.
        recipe: that writes such checkpoints.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: run.json cannot be read, or lacks a field.
    """
    for name in (RUN_FILE, *files):
        if not (folder / name).is_file():
            other = "" if name == RUN_FILE else tell_other_recipe(read_json(folder / RUN_FILE), recipe)
            raise FileNotFoundError(
                f"{folder}: no {name}{other}; name a folder that recipes/{recipe} wrote (step-NNNNNN or best)"
            )
    run = read_json(folder / RUN_FILE)
    if missing := [name for name in needed if name not in run]:
        raise ValueError(f"{folder / RUN_FILE}: has no {', '.join(missing)}; is it of a {kind}?")
    return run


def tell_other_recipe(run: Mapping[str, Any], recipe: str) -> str:
    """Which other recipe wrote a checkpoint, by the command in its run.json; empty if that does not tell."""
    script = script_of(str(run.get("command", "")))
    return f" (it is a checkpoint of {script})" if script and Path(script).name != recipe else ""


def step_name(folder: Path) -> str:
    """A checkpoint's name: step-NNNNNN, or that of its run for another folder such as `best`."""
    return folder.name if folder.name.startswith("step-") else folder.parent.name
