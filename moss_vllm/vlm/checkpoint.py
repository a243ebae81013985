"""One folder that reloads alone: LoRA, MOSS with its BatchNorm statistics, projector, processor, run.json."""

import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PretrainedConfig,
    PreTrainedModel,
    VideoLlama3Config,
    VideoLlama3Processor,
)
from transformers.utils import logging

from moss_vllm.vlm.miniature import MINIATURE
from moss_vllm.vlm.video_llama3 import MossVideoLlama3ForConditionalGeneration, moss_config

RUN_FILE = "run.json"
ADAPTER_FILE = "adapter_model.safetensors"
# Full paths from the root: leaf names alone ("q_proj") would also match the vision tower.
LORA_TARGETS = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
VERSIONED = ("moss_vllm", "torch", "transformers", "peft", "accelerate", "safetensors")


@dataclass
class Loaded:
    """A model ready to answer: in eval mode, with its processor and what is known of its making."""

    model: nn.Module
    processor: VideoLlama3Processor
    name: str
    run: dict[str, Any] = field(default_factory=dict)


def load(
    source: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> Loaded:
    """Open a checkpoint of this package, a native VideoLLaMA3 folder or hub id, or "miniature".

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: not VideoLLaMA3, or a checkpoint with MOSS or projector weights missing or left over.
    """
    folder = Path(source)
    if (folder / RUN_FILE).is_file():
        run = _read_run(folder / RUN_FILE)
        base = load_base(run["base_model"], moss=run["moss"], revision=run["base_revision"], dtype=dtype)
        _check_adapter(folder / ADAPTER_FILE, base)
        model: nn.Module = PeftModel.from_pretrained(base, str(folder))
        processor = AutoProcessor.from_pretrained(str(folder))
        name = folder.parent.name if folder.name.startswith("step-") else folder.name
    else:
        model = load_base(source, dtype=dtype)
        processor = load_processor(source)
        run, name = base_record(source), "miniature" if resolve(source) == str(MINIATURE) else str(source)
    return Loaded(model.to(device).eval(), processor, name, run)


def load_base(
    source: str | Path,
    *,
    moss: dict[str, Any] | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """VideoLLaMA3 as released, or with a new zero-initialised MOSS of the settings given.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: another kind of model, or weights other than MOSS's missing from the checkpoint.
    """
    path = resolve(source)
    # Read as json first: AutoConfig answers the authors' release with a question about running its code.
    kind = PretrainedConfig.get_config_dict(path, revision=revision)[0].get("model_type")
    if kind != VideoLlama3Config.model_type:
        raise ValueError(
            f"{source}: model_type '{kind}' is not native VideoLLaMA3 "
            f"('{VideoLlama3Config.model_type}'); convert the authors' remote-code release first"
        )
    config = AutoConfig.from_pretrained(path, revision=revision)
    loader: Any = AutoModelForImageTextToText
    if moss is not None:
        loader, config = MossVideoLlama3ForConditionalGeneration, moss_config(config, **moss)
    with _quiet_transformers():  # its report of missing weights lists all of MOSS; ours is below
        model, info = loader.from_pretrained(
            path, config=config, revision=revision, dtype=dtype or torch.float32, output_loading_info=True
        )
    wrong = sorted(key for key in info["missing_keys"] if ".moss." not in key) + sorted(
        info["unexpected_keys"]
    )
    if wrong:
        raise ValueError(
            f"{source}: weights missing or left over: {', '.join(wrong[:10])}; use a complete checkpoint"
        )
    return cast(PreTrainedModel, model)


def load_processor(source: str | Path) -> VideoLlama3Processor:
    """The processor of a base model."""
    return AutoProcessor.from_pretrained(resolve(source))


def resolve(source: str | Path) -> str:
    """The path or hub id behind `source`; "miniature" is the one in this package.

    Raises:
        FileNotFoundError: it is or looks like a path and no model is there.
    """
    if str(source) == "miniature":
        return str(MINIATURE)
    looks_local = (
        isinstance(source, Path) or str(source).startswith((".", "/", "~")) or str(source).count("/") != 1
    )
    path = Path(source).expanduser()
    if (looks_local or path.is_dir()) and not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{source}: no config.json there; give a checkpoint folder, a native VideoLLaMA3 folder, "
            "a hub id (owner/name) or 'miniature'"
        )
    return str(path) if path.is_dir() else str(source)


def base_record(source: str | Path) -> dict[str, Any]:
    """What a base model says of itself: miniature.json of the built-in one, nothing of others."""
    record = Path(resolve(source)) / "miniature.json"
    return json.loads(record.read_text()) if record.is_file() else {}


def attach_lora(model: PreTrainedModel, *, rank: int, alpha: int, dropout: float) -> PeftModel:
    """LoRA on the language model's linear layers; projector, and MOSS if there is one, are trained whole."""
    whole = (
        ["projector", "moss"] if isinstance(model, MossVideoLlama3ForConditionalGeneration) else ["projector"]
    )
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=LORA_TARGETS, modules_to_save=whole
    )
    return get_peft_model(model, config)  # type: ignore[return-value]


def save(folder: Path, model: PeftModel, processor: VideoLlama3Processor, run: dict[str, Any]) -> None:
    """Write the checkpoint; `run` needs base_model, base_revision and moss (None without) for `load`."""
    model.save_pretrained(str(folder))
    processor.save_pretrained(str(folder))
    (folder / RUN_FILE).write_text(json.dumps({**run, "versions": versions()}, indent=2) + "\n")


def trained_state(model: PeftModel) -> dict[str, Tensor]:
    """Every weight and statistic that training changes, by its name in the model."""
    kept = (".lora_", ".modules_to_save.")
    return {name: value for name, value in model.state_dict().items() if any(part in name for part in kept)}


def versions() -> dict[str, str]:
    """Of Python and the packages a result depends on."""
    found = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _read_run(file: Path) -> dict[str, Any]:
    try:
        run: dict[str, Any] = json.loads(file.read_text())
        missing = [name for name in ("base_model", "base_revision", "moss") if name not in run]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: cannot be read as JSON ({error}); use an earlier checkpoint") from error
    if missing:
        raise ValueError(f"{file}: has no {', '.join(missing)}; use an earlier checkpoint")
    protocol = run.get("protocol", {})
    if not isinstance(protocol, dict) or any(isinstance(v, str | list | dict) for v in protocol.values()):
        raise ValueError(f"{file}: protocol={protocol} is not names with numbers; use an earlier checkpoint")
    return run


def _check_adapter(file: Path, base: nn.Module) -> None:
    """peft loads an adapter with MOSS into a model without it, and the reverse, in silence."""
    whole = {
        name.removeprefix("model."): value.shape
        for name, value in base.state_dict().items()
        if ".moss." in name or name.startswith("model.projector.")
    }
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; the checkpoint is incomplete, use an earlier one")
    try:
        with safe_open(file, "pt") as adapter:
            prefix = "base_model.model.model."
            saved = {
                name.removeprefix(prefix): adapter.get_slice(name).get_shape()
                for name in adapter.keys()
                if ".lora_" not in name
            }
    except SafetensorError as error:  # the header tells the file's length: a cut file is noticed here
        raise ValueError(
            f"{file}: cannot be read as safetensors ({error}); the file is cut short or damaged, use an "
            "earlier checkpoint"
        ) from error
    wrong = sorted(set(whole) ^ set(saved))
    wrong += sorted(name for name in set(whole) & set(saved) if list(whole[name]) != list(saved[name]))
    if wrong:
        raise ValueError(
            f"{file}: does not fit the base model, {len(wrong)} weights are missing, left over or of another "
            f"shape: {', '.join(wrong[:5])}; check base_model and moss in {RUN_FILE}"
        )
