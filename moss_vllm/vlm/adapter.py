"""What is trained on a base model: LoRA, and whole copies of the projector and MOSS; attached, read, checked.

peft's own loader is not used: it takes an adapter with MOSS for one without in silence, and settings from a
folder as they come. Here nothing in a folder can name code or another base.
"""

import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from moss_vllm.runtime.files import read_json, readable
from moss_vllm.runtime.provenance import faults, read_header
from moss_vllm.runtime.quiet import quiet
from moss_vllm.vlm import fit
from moss_vllm.vlm.video_llama3.model import (
    MossVideoLlama3ForConditionalGeneration,
    MossVideoLlama3VisionConfig,
    build_moss,
)

ADAPTER_FILE = "adapter_model.safetensors"
SETTINGS_FILE = "adapter_config.json"
PICKLE_FILE = "adapter_model.bin"
# Full paths from the root: leaf names alone ("q_proj") would also match the vision tower.
LORA_TARGETS = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
# In adapter_config.json, and without a say here: run.json names the base, the weights what is trained whole.
UNREAD = {"base_model_name_or_path", "revision", "auto_mapping", "task_type", "peft_version"}
UNREAD |= {"inference_mode", "modules_to_save"}
# peft and all that is built on it look this name up before anything else, and end with it as the error: they
# would attach LoRA and projector to a base without MOSS and drop MOSS in silence.
WITH_MOSS = "LORA with MOSS: open it with moss_vllm.vlm.checkpoint.load; peft alone would leave MOSS out"
MOSS_PREFIX = "base_model.model.model.vision_model.moss."


def attach_lora(model: PreTrainedModel, *, rank: int, alpha: int, dropout: float) -> PeftModel:
    """LoRA on the language model's linear layers; projector, and MOSS if there is one, are trained whole.

    What is trained is float32 whatever the base is: steps of training are lost in bfloat16's rounding.
    """
    with quiet():
        attached = cast(PeftModel, get_peft_model(model, _lora_config(model, rank, alpha, dropout)))
    for module in attached.modules():
        if isinstance(module, ModulesToSaveWrapper):  # peft casts LoRA itself, and not these
            module.modules_to_save.float()
    return attached


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Every weight and statistic that training changes, by its name in the model."""
    kept = (".lora_", ".modules_to_save.")
    return {name: value for name, value in model.state_dict().items() if any(part in name for part in kept)}


def save_adapter(folder: Path, model: PeftModel, state: dict[str, Tensor]) -> None:
    """Write both files of the adapter as peft does; one with MOSS has a `peft_type` that peft refuses."""
    # Without the False, peft asks the hub for the base's config at every save.
    model.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)
    (folder / "README.md").unlink()  # peft's, a form to fill in; scripts/push.py writes a filled one
    readable(folder / ADAPTER_FILE)
    if _has_moss(model.get_base_model()):
        settings = {**read_json(folder / SETTINGS_FILE), "peft_type": WITH_MOSS}
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def check_header(folder: Path, lora: Mapping[str, Any], moss: Mapping[str, Any] | None) -> None:
    """ValueError unless the adapter's weights have the rank and the MOSS of its records; makes nothing.

    Args:
        folder: the checkpoint.
        lora: from `read_lora`.
        moss: every setting of MOSS, or None.
    """
    file = _adapter_file(folder)
    header = read_header(file)
    sizes = [value.shape for name, value in header.items() if name.endswith(".lora_A.weight")]
    ranks = {tuple(size)[:1] for size in sizes if 0 not in size}  # an empty one is told by `load_adapter`
    if ranks != {(lora["r"],)}:
        told = ", ".join(str(rank) for (rank,) in sorted(ranks)) or "none"
        raise ValueError(
            f"{folder / SETTINGS_FILE}: r={fit.shorten(lora['r'])}, and the rank of the weights beside it is "
            f"{told}; use an earlier checkpoint"
        )
    _check_held(file, header, moss is not None)
    if moss is None:
        return
    fit.check_orders(str(folder / "run.json"), moss["moss_orders"], header)
    found = {name: value for name, value in header.items() if name.startswith(MOSS_PREFIX)}
    first = found.get(f"{MOSS_PREFIX}order1.in_proj.weight")
    width = first.shape[-1] if first is not None and first.numel() > 0 and first.dim() == 2 else 1
    failed = f"{folder / 'run.json'}: MOSS settings {fit.shorten(dict(moss))} are wrong"
    try:
        config = MossVideoLlama3VisionConfig(hidden_size=width, **moss)
    except StrictDataclassError as error:
        raise ValueError(f"{failed}: {fit.tell(error)}; correct them") from error
    wanted = fit.make_empty(lambda: build_moss(config), failed).state_dict()
    if wrong := faults(found, {f"{MOSS_PREFIX}{name}": value for name, value in wanted.items()}):
        raise ValueError(_misfit(file, wrong))


def load_adapter(folder: Path, model: PeftModel) -> None:
    """Load the adapter file of a folder into a model from `attach_lora`; all of it, and nothing else.

    Raises:
        FileNotFoundError: there is no adapter file.
        ValueError: it cannot be read, or a weight is missing, left over, empty, not finite, of another shape.
    """
    file = _adapter_file(folder)
    read_header(file)  # which names a file that is cut short
    saved = load_file(file)
    wanted = get_peft_model_state_dict(model, state_dict=trained_state(model), save_embedding_layers=False)
    _check_held(file, saved, _has_moss(model.get_base_model()))
    if wrong := faults(saved, wanted):
        raise ValueError(_misfit(file, wrong))
    set_peft_model_state_dict(model, saved)


def read_lora(file: Path) -> dict[str, Any]:
    """Rank, alpha and dropout among all else in adapter_config.json."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; the checkpoint is incomplete, use an earlier one")
    lora = read_json(file)
    values: list[Any] = [lora.get(name) for name in ("r", "lora_alpha", "lora_dropout")]
    rank, alpha, dropout = values
    numbers = all(type(number) in (int, float) for number in (alpha, dropout))
    if not (type(rank) is int and rank >= 1 and numbers and abs(alpha) < 1e9 and 0 <= dropout <= 1):
        rank, alpha, dropout = map(fit.shorten, values)
        raise ValueError(
            f"{file}: r={rank}, lora_alpha={alpha}, lora_dropout={dropout} are not a rank from 1, a "
            "number and a number from 0 to 1; use an earlier checkpoint"
        )
    return lora


def check_lora(file: Path, lora: Mapping[str, Any], base: PreTrainedModel) -> None:
    """Anything but what `attach_lora` would write makes another model of the same weights: a ValueError."""
    ours = _lora_config(base, lora["r"], lora["lora_alpha"], lora["lora_dropout"]).to_dict()
    if _has_moss(base) and lora.get("peft_type") == WITH_MOSS:
        ours["peft_type"] = WITH_MOSS
    other = [name for name in lora if name not in UNREAD and (lora[name] or None) != (ours.get(name) or None)]
    if other:
        told = ", ".join(f"{fit.shorten(name, quoted=False)}={fit.shorten(lora[name])}" for name in other)
        raise ValueError(
            f"{file}: {told} is not what this package trains with (peft {lora.get('peft_version')} there, "
            f"{version('peft')} here); use a checkpoint written by moss_vllm"
        )


def _lora_config(model: PreTrainedModel, rank: int, alpha: int, dropout: float) -> LoraConfig:
    whole = ["projector", "moss"] if _has_moss(model) else ["projector"]
    return LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=LORA_TARGETS, modules_to_save=whole
    )


def _has_moss(model: Any) -> bool:
    return isinstance(model, MossVideoLlama3ForConditionalGeneration)


def _adapter_file(folder: Path) -> Path:
    if (folder / PICKLE_FILE).exists():
        raise ValueError(
            f"{folder / PICKLE_FILE} is a pickle, which can run code when opened; only {ADAPTER_FILE} is "
            "read: remove it if that file is there, else use another checkpoint"
        )
    if not (folder / ADAPTER_FILE).is_file():
        raise FileNotFoundError(
            f"{folder / ADAPTER_FILE} is missing; the checkpoint is incomplete, use an earlier one"
        )
    return folder / ADAPTER_FILE


def _misfit(file: Path, wrong: str) -> str:
    return (
        f"{file} does not fit the base model: of its weights {wrong}; check base_model and moss in "
        "run.json and the rank of LoRA, or use an earlier checkpoint"
    )


def _check_held(file: Path, names: Iterable[str], with_moss: bool) -> None:
    held = any(".moss." in name for name in names)
    if held != with_moss:
        holds, opened = ("MOSS", "without") if held else ("no MOSS", "with MOSS")
        raise ValueError(
            f"{file} holds {holds} and its base was opened {opened}; the setting moss (in run.json, or of "
            "the run to go on with) is not the one it was trained with"
        )
