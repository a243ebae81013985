"""One folder that reloads alone: LoRA, MOSS with its BatchNorm statistics, projector, processor, run.json.

    adapter_model.safetensors   what was trained, in float32       adapter_config.json   rank, alpha, dropout
    run.json   base model, its revision and fingerprint; MOSS settings, protocol, versions, command
    the processor's files

`load` opens it for evaluation and questions, `restore` for going on with a training run.
"""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from torch import Tensor, nn
from transformers import VideoLlama3Processor

from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.files import read_json
from moss_vllm.runtime.provenance import RUN_FILE, faults, versions
from moss_vllm.runtime.screen import say
from moss_vllm.video.clip import Clip
from moss_vllm.vlm.adapter import ADAPTER_FILE as ADAPTER_FILE
from moss_vllm.vlm.adapter import (
    SETTINGS_FILE,
    check_header,
    check_lora,
    load_adapter,
    read_lora,
    save_adapter,
)
from moss_vllm.vlm.adapter import attach_lora as attach_lora
from moss_vllm.vlm.adapter import trained_state as trained_state
from moss_vllm.vlm.attention import choose_attention as choose_attention
from moss_vllm.vlm.base import base_fingerprint as base_fingerprint
from moss_vllm.vlm.base import base_record as base_record
from moss_vllm.vlm.base import find_file, is_hub_id
from moss_vllm.vlm.base import load_base as load_base
from moss_vllm.vlm.base import moss_to_train as moss_to_train
from moss_vllm.vlm.base import resolve as resolve
from moss_vllm.vlm.fit import shorten
from moss_vllm.vlm.processor import check_processor, open_processor
from moss_vllm.vlm.processor import load_processor as load_processor
from moss_vllm.vlm.video_llama3.chat import Turn, collate, encode
from moss_vllm.vlm.video_llama3.miniature import MINIATURE
from moss_vllm.vlm.video_llama3.model import MOSS_FIELDS, MossVideoLlama3VisionConfig, moss_settings

FILES = ["*.json", "*.jinja", "*.txt", "*.safetensors"]  # of a checkpoint or a base; none of them is code
NEEDED = ("base_model", "base_revision", "base_fingerprint", "moss")


@dataclass
class Loaded:
    """A model ready to answer: in eval mode, with its processor and what is known of its making."""

    model: nn.Module
    processor: VideoLlama3Processor
    name: str
    run: dict[str, Any] = field(default_factory=dict)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context to run the model in: what was trained is float32, on a half-precision base too."""
        return _autocast(self.model)


def load(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    attention: str | None = None,
    quantize: bool = False,
) -> Loaded:
    """Open a checkpoint of this package, a native VideoLLaMA3, or "miniature"; folders and hub ids alike.

    Args:
        source: its folder or hub id.
        device: where to.
        dtype: of the base's weights; float32 if not given. Run the model under `Loaded.autocast`.
        attention: transformers' name of an implementation; None: `choose_attention`.
        quantize: open the base in 4 bits.

    Raises:
        FileNotFoundError: a path that does not exist, a file of the checkpoint or its base missing.
        ValueError: no such device, not VideoLLaMA3, another base than it was trained on, weights missing or
            left over, empty or not finite, settings that cannot be read or are not ours, or a pickle.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={str(device)!r} is not to be had here ({reason}); use 'cpu'") from error
    attention = attention or choose_attention(device, dtype)[0]
    how: dict[str, Any] = {"dtype": dtype, "attention": attention, "quantize": quantize}
    place = source if is_hub_id(source) else Path(source).expanduser()
    run_file = find_file(place, RUN_FILE)
    if run_file is None and not is_hub_id(source) and (Path(place) / SETTINGS_FILE).is_file():
        raise FileNotFoundError(
            f"{source} has no {RUN_FILE}, which names the base model; the checkpoint is incomplete, use "
            "another one"
        )
    if run_file is None:
        model: nn.Module = load_base(source, **how)
        processor = load_processor(source)
        run, name = base_record(source), "miniature" if resolve(source) == str(MINIATURE) else str(source)
    else:
        if is_hub_id(source):
            folder, name = Path(snapshot_download(str(source), allow_patterns=FILES)), str(source)
        else:
            folder = run_file.parent
            name = folder.parent.name if folder.name.startswith("step-") else folder.name
        run = read_run(folder)
        model = _open_adapter(folder, run, how)
        processor = open_processor(folder)
    check_processor(source, processor, cast(Any, model).config)
    return Loaded(model.to(device).eval(), processor, name, run)


def save(
    folder: Path,
    model: PeftModel,
    processor: VideoLlama3Processor,
    run: Mapping[str, Any],
    *,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the checkpoint; run.json comes last, so a folder with it is whole.

    Args:
        folder: written to.
        model: from `attach_lora` on a base of `load_base`.
        processor: the model's.
        run: what is known of the run; its `moss` is written as the model has it, every setting.
        state: `trained_state` in full, where the model's own tensors are in parts (ZeRO-3, FSDP).

    Raises:
        ValueError: a trained weight is missing, left over, empty or not finite; nothing is written.
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
    known = {"moss": moss_settings(base.config), **base.opened_from, "versions": versions()}
    text = json.dumps({**run, **known}, indent=2)
    (folder / RUN_FILE).write_text(text + "\n")


def restore(folder: Path, model: PeftModel) -> None:
    """Load what `save` wrote into a model from `attach_lora` on the same base; all of it, and nothing else.

    Raises:
        FileNotFoundError: a file of the checkpoint is missing.
        ValueError: another base, a file that cannot be read, or weights that do not fit.
    """
    run, origin = read_run(folder), cast(Any, model.get_base_model()).opened_from
    if origin["base_fingerprint"] != run["base_fingerprint"]:
        raise ValueError(
            f"{origin['base_model']} is not the base that {folder} was trained on (fingerprint "
            f"{origin['base_fingerprint']}, not {run['base_fingerprint']}); if that one is elsewhere now, "
            f"write where as base_model into {folder / RUN_FILE}"
        )
    load_adapter(folder, model)


@dataclass(frozen=True)
class Keeper:
    """The checkpoints of a model in training, for `training.loop.train`; `run` as in `save`."""

    model: PeftModel
    processor: VideoLlama3Processor
    run: Mapping[str, Any]

    def state(self) -> dict[str, Tensor]:
        """The tensors of the model that training changes."""
        return trained_state(self.model)

    def save(self, folder: Path, state: Mapping[str, Tensor], step: int) -> None:
        """Write a checkpoint of `state`."""
        save(folder, self.model, self.processor, {**self.run, "step": step}, state=state)

    def restore(self, folder: Path) -> None:
        """Load a checkpoint into the model."""
        restore(folder, self.model)

    def check(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """`verify` a checkpoint, and print that it is whole."""
        verify(folder, self.model, state)
        say(f"{folder} reloads to the weights in memory, bit for bit")


@torch.no_grad()
def next_logits(model: nn.Module, processor: VideoLlama3Processor) -> Tensor:
    """Logits of the first word about a square that moves right: tells two models apart. On the CPU.

    Shape:
        (words,), float32.
    """
    frames = np.zeros((4, 56, 56, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[14:42, 7 * index : 7 * index + 28] = 255
    clip = Clip(frames, np.arange(4) / 2)
    example = encode(processor, clip, [Turn("What moves in the video, and where to?")], compress=False)
    batch = collate([example], pad_id=processor.tokenizer.pad_token_id)
    device = cast(Any, model).get_input_embeddings().weight.device
    inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
    modes = [(module, module.training) for module in model.modules()]
    try:
        with _autocast(model.eval()):
            logits = cast(Any, model)(**inputs, logits_to_keep=1, use_cache=False).logits
    finally:
        for module, training in modes:
            module.training = training
    return logits[0, -1].float().cpu()


def verify(folder: Path, model: PeftModel, state: Mapping[str, Tensor]) -> None:
    """Open a written checkpoint as `load` does, without its base's numbers, and compare it with the model.

    Every trained number must be the same, to the bit, and so must what decides how they are used: the base's
    fingerprint, LoRA's and MOSS's settings. What the model then answers follows; asked for its logits, it
    would need a second model's memory, and other kernels round them otherwise.

    Args:
        folder: what `save` wrote.
        model: the model that was saved.
        state: its `trained_state`, in full.

    Raises:
        RunStopped: something differs.
    """
    open_processor(folder)
    reloaded = _open_adapter(folder, read_run(folder), {"empty": True})  # but for what is trained
    found = trained_state(reloaded)
    wrong = [
        name
        for name in sorted(found.keys() | state.keys())
        if name not in found or name not in state or not _same_bits(found[name], state[name])
    ]
    was, now = _makeup(model), _makeup(reloaded)
    wrong += [f"{name} {now[name]} (was {was[name]})" for name in was if was[name] != now[name]]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise RunStopped(
            f"{folder} does not reload to the model that was saved: it differs in {', '.join(wrong[:5])}"
            f"{more}; do not use it, and report it with its {RUN_FILE}"
        )


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())


def _makeup(model: PeftModel) -> dict[str, Any]:
    """What decides how the trained numbers are used."""
    base: Any = model.get_base_model()
    lora: Any = model.peft_config["default"]
    moss = {
        key: value for key, value in base.config.vision_config.to_dict().items() if key.startswith("moss_")
    }
    return {
        "base": base.opened_from,
        "MOSS": moss,
        "r": lora.r,
        "alpha": lora.lora_alpha,
        "dropout": lora.lora_dropout,
    }


def read_run(folder: Path) -> dict[str, Any]:
    """The run.json of a checkpoint.

    Raises:
        ValueError: it is no JSON, or a name that `load` needs is missing or has another kind of value.
    """
    file = folder / RUN_FILE
    run = read_json(file)
    if missing := [name for name in NEEDED if name not in run]:
        raise ValueError(f"{file}: has no {', '.join(missing)}; use an earlier checkpoint")
    kinds: dict[str, Any] = {"base_model": str, "base_revision": str | None, "base_fingerprint": str}
    for name, kind in {**kinds, "moss": dict | None}.items():
        if not isinstance(run[name], kind):
            told = "names with values, or null" if name == "moss" else "text"
            value = shorten(run[name])
            raise ValueError(f"{file}: {name}={value} is not {told}; use an earlier checkpoint")
    _check_moss(file, run["moss"])
    protocol = run.get("protocol", {})
    if not isinstance(protocol, dict) or any(isinstance(v, str | list | dict) for v in protocol.values()):
        told = shorten(protocol)
        raise ValueError(f"{file}: protocol={told} is not names with numbers; use an earlier checkpoint")
    return run


def _check_moss(file: Path, moss: dict[str, Any] | None) -> None:
    """What MOSS was stands there in full: nothing of it is taken from this version's defaults."""
    if moss is None:
        return
    if unknown := sorted(moss.keys() - set(MOSS_FIELDS)):
        raise ValueError(f"{file}: unknown MOSS settings {unknown}; known are {sorted(MOSS_FIELDS)}")
    if absent := [name for name in MOSS_FIELDS if name not in moss]:
        paper = {name: getattr(MossVideoLlama3VisionConfig, name) for name in absent}
        raise ValueError(
            f"{file}: moss does not say {', '.join(absent)}, which this version does not guess; write there "
            f"what it was trained with (the paper has {json.dumps(paper)})"
        )


def _open_adapter(folder: Path, run: Mapping[str, Any], how: Mapping[str, Any]) -> PeftModel:
    lora = read_lora(folder / SETTINGS_FILE)
    check_header(folder, lora, run["moss"])
    try:
        base = load_base(run["base_model"], moss=run["moss"], revision=run["base_revision"], **how)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the base model of {folder} is not there: {error}; if it is elsewhere now, write where as "
            f"base_model into {folder / RUN_FILE}"
        ) from error
    check_lora(folder / SETTINGS_FILE, lora, base)
    model = attach_lora(base, rank=lora["r"], alpha=lora["lora_alpha"], dropout=lora["lora_dropout"])
    for name, module in model.named_modules():
        if how.get("empty") and any(
            part in name for part in (".lora_", ".modules_to_save", ".original_module")
        ):
            module.to_empty(device="cpu", recurse=False)
    restore(folder, model)
    return model.requires_grad_(False)


def _autocast(model: nn.Module) -> AbstractContextManager[Any]:
    weight = cast(Any, model).get_input_embeddings().weight  # of the base, never trained, never in 4 bits
    half = weight.dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(weight.device.type, weight.dtype) if half else nullcontext()
