"""One folder that reloads alone: LoRA, MOSS with its BatchNorm statistics, projector, processor, run.json.

    adapter_model.safetensors   what was trained, in float32       adapter_config.json   rank, alpha, dropout
    run.json   base model, its revision and fingerprint; MOSS settings, protocol, versions, command
    the processor's files

`load` opens it for evaluation and questions, `restore_trained` for resuming a training run.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from torch import Tensor, nn

from moss_vllm.runtime.files import read_json
from moss_vllm.runtime.provenance import RUN_FILE, faults
from moss_vllm.runtime.screen import say
from moss_vllm.runtime.trained_weights import tell_other_recipe
from moss_vllm.runtime.versions import versions
from moss_vllm.vlm.adapter import (
    ADAPTER_CONFIG,
    attach_lora,
    check_header,
    check_lora,
    load_adapter,
    read_lora,
    save_adapter,
    trained_state,
)
from moss_vllm.vlm.attention import choose_attention
from moss_vllm.vlm.base import autocast, check_kind, load_base
from moss_vllm.vlm.families import MOSS_SETTINGS, Family, family_of
from moss_vllm.vlm.fit import shorten
from moss_vllm.vlm.places import base_record, find_file, is_hub_id, miniature_name, resolve
from moss_vllm.vlm.processor import check_processor, load_processor, open_processor
from moss_vllm.vlm.reload_check import verify

CHECKPOINT_FILES = ["*.json", "*.jinja", "*.txt", "*.safetensors"]  # fetched from the hub; none is code
RUN_NEEDS = ("base_model", "base_revision", "base_fingerprint", "moss")


@dataclass
class Loaded:
    """A model ready to answer: in eval mode, with its processor and the record of how it was made."""

    model: nn.Module
    processor: Any
    name: str
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> Family:
        """The family of the model."""
        return family_of(cast(Any, self.model).config)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context to run the model in: what was trained is float32, on a half-precision base too."""
        return autocast(self.model)


def load(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    attention: str | None = None,
    quantize: bool = False,
) -> Loaded:
    """Open a checkpoint of this package, a base model of a family, or "miniature".

    Args:
        source: a folder or hub id, or "miniature".
        device: where the model goes.
        dtype: of the base's weights; float32 if not given. Run the model under `Loaded.autocast`.
        attention: transformers' name of an implementation; None: `choose_attention`.
        quantize: open the base in 4 bits.

    Raises:
        FileNotFoundError: a path that does not exist, a hub id that cannot be reached, or a missing file of
            the checkpoint or its base.
        ValueError: no such device, a model of no family, another base than it was trained on, weights missing
            or left over, empty or not finite, settings that cannot be read or are not ours, or a pickle.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={str(device)!r} is not available here ({reason}); use 'cpu'") from error
    attention = attention or choose_attention(device, dtype)[0]
    options: dict[str, Any] = {"dtype": dtype, "attention": attention, "quantize": quantize}
    place = source if is_hub_id(source) else Path(source).expanduser()
    run_file = find_file(place, RUN_FILE)
    if run_file is None and not is_hub_id(source) and (Path(place) / ADAPTER_CONFIG).is_file():
        raise FileNotFoundError(
            f"{source} has no {RUN_FILE}, which names the base model; the checkpoint is incomplete, use "
            "another one"
        )
    if run_file is None:
        model: nn.Module = load_base(source, **options)
        processor = load_processor(source)
        run, name = base_record(source), miniature_name(resolve(source)) or str(source)
    else:
        if is_hub_id(source):
            folder, name = Path(snapshot_download(str(source), allow_patterns=CHECKPOINT_FILES)), str(source)
        else:
            folder = run_file.parent
            name = folder.parent.name if folder.name.startswith("step-") else folder.name
        run = read_run_file(folder)
        model = _open_adapter(folder, run, **options)
        processor = open_processor(folder)
    check_processor(source, processor, cast(Any, model).config)
    return Loaded(model.to(device).eval(), processor, name, run)


def save(
    folder: Path,
    model: PeftModel,
    processor: Any,
    run: Mapping[str, Any],
    *,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint. run.json comes last: a folder with it is complete.

    Args:
        folder: the checkpoint to write.
        model: from `attach_lora` on a base of `load_base`.
        processor: the model's.
        run: the record of the run; every setting of the model's MOSS is written as its `moss`.
        state: `trained_state` in full, where the model holds its tensors in parts (ZeRO-3, FSDP).

    Raises:
        ValueError: a trained weight is missing, left over, empty or not finite; nothing is written then.
    """
    state = trained_state(model) if state is None else dict(state)
    if wrong := faults(state, dict.fromkeys(trained_state(model))):
        raise ValueError(
            f"{folder} is not written: of the trained weights {wrong}; with ZeRO-3 or FSDP `state` must be "
            "gathered from all processes, and weights that are not finite come from a run that diverged"
        )
    folder.mkdir(parents=True, exist_ok=True)
    save_adapter(folder, model, state)
    processor.save_pretrained(str(folder))
    base = cast(Any, model.get_base_model())
    family = family_of(base.config)
    record = {**run, "family": family.title, "moss": family.moss_settings(base.config), **base.opened_from}
    text = json.dumps({**record, "versions": versions()}, indent=2)
    (folder / RUN_FILE).write_text(text + "\n")


def restore_trained(folder: Path, model: PeftModel) -> None:
    """Load what `save` wrote into a model from `attach_lora` on the same base: all of it, nothing else.

    Raises:
        FileNotFoundError: a file of the checkpoint is missing.
        ValueError: another base, a file that cannot be read, or weights that do not fit.
    """
    run, origin = read_run_file(folder), cast(Any, model.get_base_model()).opened_from
    if origin["base_fingerprint"] != run["base_fingerprint"]:
        raise ValueError(
            f"{origin['base_model']} is not the base that {folder} was trained on (fingerprint "
            f"{origin['base_fingerprint']}, not {run['base_fingerprint']}); if that base has moved, write "
            f"its new place as base_model into {folder / RUN_FILE}"
        )
    load_adapter(folder, model)


@dataclass(frozen=True)
class Keeper:
    """The checkpoints of a model in training, for `training.loop.train`; `run` as in `save`."""

    model: PeftModel
    processor: Any
    run: Mapping[str, Any]

    def state(self) -> dict[str, Tensor]:
        """The tensors of the model that training changes."""
        return trained_state(self.model)

    def save(self, folder: Path, state: Mapping[str, Tensor], step: int) -> None:
        """Write a checkpoint of `state`."""
        save(folder, self.model, self.processor, {**self.run, "step": step}, state=state)

    def restore(self, folder: Path) -> None:
        """Load a checkpoint into the model."""
        restore_trained(folder, self.model)

    def check(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Check that a checkpoint reloads to the model, and print it."""
        check_reload(folder, self.model, state)


def check_reload(folder: Path, model: PeftModel, state: Mapping[str, Tensor]) -> None:
    """Open a written checkpoint as `load` does, without its base's numbers, and compare it with the model.

    Args:
        folder: what `save` wrote.
        model: the model that was saved.
        state: its `trained_state`, in full.

    Raises:
        RunStopped: something differs.
    """
    open_processor(folder)
    verify(folder, model, state, _open_adapter(folder, read_run_file(folder), empty=True))
    say(f"{folder} reloads to the weights in memory, bit for bit")


def read_run_file(folder: Path) -> dict[str, Any]:
    """The run.json of a checkpoint.

    Raises:
        ValueError: it is no JSON, or a value that `load` needs is missing or of another kind.
    """
    file = folder / RUN_FILE
    run = read_json(file)
    if missing := [name for name in RUN_NEEDS if name not in run]:
        other = tell_other_recipe(run, "favor_lora.py")
        remedy = "name one that recipes/favor_lora.py wrote" if other else "use an earlier checkpoint"
        raise ValueError(f"{file}: has no {', '.join(missing)}{other}; {remedy}")
    kinds: dict[str, Any] = {"base_model": str, "base_revision": str | None, "base_fingerprint": str}
    for name, kind in {**kinds, "moss": dict | None}.items():
        if not isinstance(run[name], kind):
            allowed = "names with values, or null" if name == "moss" else "text"
            value = shorten(run[name])
            raise ValueError(f"{file}: {name}={value} is not {allowed}; use an earlier checkpoint")
    _check_moss(file, run["moss"])
    protocol = run.get("protocol", {})
    if not isinstance(protocol, dict) or any(isinstance(v, str | list | dict) for v in protocol.values()):
        value = shorten(protocol)
        raise ValueError(f"{file}: protocol={value} is not names with numbers; use an earlier checkpoint")
    return run


def _check_moss(file: Path, moss: dict[str, Any] | None) -> None:
    """ValueError unless every setting of MOSS stands there: none is taken from this version's defaults."""
    if moss is None:
        return
    if unknown := sorted(moss.keys() - set(MOSS_SETTINGS)):
        raise ValueError(f"{file}: unknown MOSS settings {unknown}; known are {sorted(MOSS_SETTINGS)}")
    if absent := [name for name in MOSS_SETTINGS if name not in moss]:
        paper = {name: MOSS_SETTINGS[name] for name in absent}
        raise ValueError(
            f"{file}: moss has no {', '.join(absent)}, which this version does not guess; write there what "
            f"it was trained with (the paper has {json.dumps(paper)})"
        )


def _open_adapter(folder: Path, run: Mapping[str, Any], **options: Any) -> PeftModel:
    """The base with the trained weights of a checkpoint; `options` are those of `load_base`."""
    lora = read_lora(folder / ADAPTER_CONFIG)
    name, revision = run["base_model"], run["base_revision"]
    with _missing_base_named(folder):
        check_kind(name, revision)
    check_header(folder, lora, run["moss"])
    with _missing_base_named(folder):
        base = load_base(name, moss=run["moss"], revision=revision, **options)
    check_lora(folder / ADAPTER_CONFIG, lora, base)
    model = attach_lora(base, rank=lora["r"], alpha=lora["lora_alpha"], dropout=lora["lora_dropout"])
    for name, module in model.named_modules():
        if options.get("empty") and any(
            part in name for part in (".lora_", ".modules_to_save", ".original_module")
        ):
            module.to_empty(device="cpu", recurse=False)
    restore_trained(folder, model)
    return model.requires_grad_(False)


@contextmanager
def _missing_base_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the base model of {folder} is not there: {error}; if it has moved, write its new place as "
            f"base_model into {folder / RUN_FILE}"
        ) from error
