"""What is trained on a base model: LoRA, and whole copies of the projector and MOSS; attached, saved, loaded.

peft's own loader is not used: it drops MOSS from an adapter in silence and follows every setting in a folder.
Here nothing in a folder can name code or another base.
"""

import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from moss_vllm.runtime.files import read_json, readable
from moss_vllm.runtime.provenance import faults, read_header
from moss_vllm.runtime.quiet import quiet
from moss_vllm.training.optim import Rate
from moss_vllm.vlm import fit
from moss_vllm.vlm.families import family_of
from moss_vllm.vlm.hosts.opening import MOSS_PART
from moss_vllm.vlm.video_llama3.model import make_moss

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PICKLE_FILE = "adapter_model.bin"
# Settings of adapter_config.json that change nothing here: run.json names the base, and the names of the
# weights tell which modules are trained whole.
UNREAD = {"base_model_name_or_path", "revision", "auto_mapping", "task_type", "peft_version"}
UNREAD |= {"inference_mode", "modules_to_save"}
# peft and the packages built on it look this name up before anything else, and fail with it as the error.
# Otherwise they would attach LoRA and projector to a base without MOSS and drop MOSS in silence.
WITH_MOSS = "LORA with MOSS: open it with moss_vllm.vlm.checkpoint.load; peft alone would leave MOSS out"


def attach_lora(model: PreTrainedModel, *, rank: int, alpha: int, dropout: float) -> PeftModel:
    """LoRA on the language model's linear layers; projector, and MOSS if there is one, are trained whole.

    What is trained is float32 on any base: bfloat16 would round the steps of training away.
    """
    with quiet():
        attached = cast(PeftModel, get_peft_model(model, _lora_config(model, rank, alpha, dropout)))
    for module in attached.modules():
        if isinstance(module, ModulesToSaveWrapper):  # peft casts LoRA's weights only
            module.modules_to_save.float()
    return attached


def choose_rates(model: PreTrainedModel) -> list[Rate]:
    """The learning rates of a base model's family; without MOSS's row for a base without MOSS."""
    family = family_of(model.config)
    return [row for row in family.rates if row.name != "moss" or family.has_moss(model.config)]


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Every weight and statistic that training changes, by its name in the model."""
    trained = (".lora_", ".modules_to_save.")
    return {
        name: value for name, value in model.state_dict().items() if any(part in name for part in trained)
    }


def save_adapter(folder: Path, model: PeftModel, state: dict[str, Tensor]) -> None:
    """Write both files of the adapter as peft does; with MOSS, under a `peft_type` that peft refuses."""
    # By default peft asks the hub for the base's config at every save, to learn of resized embeddings.
    model.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)
    (folder / "README.md").unlink()  # peft's form of a model card; scripts/push.py writes a filled one
    readable(folder / ADAPTER_FILE)
    if _has_moss(model.get_base_model()):
        settings = {**read_json(folder / ADAPTER_CONFIG), "peft_type": WITH_MOSS}
        (folder / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def check_header(folder: Path, lora: Mapping[str, Any], moss: Mapping[str, Any] | None) -> None:
    """ValueError unless the adapter's weights have the rank and the MOSS of its records; makes no model.

    Args:
        folder: the checkpoint.
        lora: from `read_lora`.
        moss: every setting of MOSS, or None.
    """
    file = _adapter_file(folder)
    header = read_header(file)
    sizes = [value.shape for name, value in header.items() if name.endswith(".lora_A.weight")]
    ranks = {tuple(size)[:1] for size in sizes if 0 not in size}  # `load_adapter` names empty ones
    if ranks != {(lora["r"],)}:
        stored_ranks = ", ".join(str(rank) for (rank,) in sorted(ranks)) or "none"
        raise ValueError(
            f"{folder / ADAPTER_CONFIG}: r={fit.shorten(lora['r'])}, and the rank of the weights beside it "
            f"is {stored_ranks}; use an earlier checkpoint"
        )
    _check_held(file, header, moss is not None)
    if moss is None:
        return
    fit.check_orders(str(folder / "run.json"), moss["moss_orders"], header)
    stored = {name: value for name, value in header.items() if MOSS_PART in name}
    prefix = next((name.partition(MOSS_PART)[0] for name in stored), "") + MOSS_PART
    first = stored.get(f"{prefix}order1.in_proj.weight")
    width = first.shape[-1] if first is not None and first.numel() > 0 and first.dim() == 2 else 1
    failed = f"{folder / 'run.json'}: MOSS settings {fit.shorten(dict(moss))} are wrong"
    wanted = fit.make_empty(lambda: make_moss(width, moss), failed).state_dict()
    if wrong := faults(stored, {f"{prefix}{name}": value for name, value in wanted.items()}):
        raise ValueError(_misfit(file, wrong))


def load_adapter(folder: Path, model: PeftModel) -> None:
    """Load the adapter file of a folder into a model from `attach_lora`: every trained weight, nothing else.

    Raises:
        FileNotFoundError: there is no adapter file.
        ValueError: it cannot be read, or a weight is missing, left over, empty, not finite, of another shape.
    """
    file = _adapter_file(folder)
    read_header(file)  # its error names a file that is cut short
    saved = load_file(file)
    wanted = get_peft_model_state_dict(model, state_dict=trained_state(model), save_embedding_layers=False)
    _check_held(file, saved, _has_moss(model.get_base_model()))
    if wrong := faults(saved, wanted):
        raise ValueError(_misfit(file, wrong))
    set_peft_model_state_dict(model, saved)


def read_lora(file: Path) -> dict[str, Any]:
    """The content of adapter_config.json, in which rank, alpha and dropout are numbers in their range.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it cannot be read, or one of the three is wrong.
    """
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
    """ValueError for a setting that `attach_lora` does not make: it would give the weights another use."""
    ours = _lora_config(base, lora["r"], lora["lora_alpha"], lora["lora_dropout"]).to_dict()
    if _has_moss(base) and lora.get("peft_type") == WITH_MOSS:
        ours["peft_type"] = WITH_MOSS
    other = [name for name in lora if name not in UNREAD and (lora[name] or None) != (ours.get(name) or None)]
    if other:
        settings = ", ".join(f"{fit.shorten(name, quoted=False)}={fit.shorten(lora[name])}" for name in other)
        raise ValueError(
            f"{file}: {settings} is not what this package trains with (peft {lora.get('peft_version')} "
            f"there, {version('peft')} here); use a checkpoint written by moss_vllm"
        )


def _lora_config(model: PreTrainedModel, rank: int, alpha: int, dropout: float) -> LoraConfig:
    family = family_of(model.config)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=family.lora_targets,
        modules_to_save=family.trained_whole(model),
    )


def _has_moss(model: Any) -> bool:
    return family_of(model.config).has_moss(model.config)


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
    held = any(MOSS_PART in name for name in names)
    if held != with_moss:
        holds, opened = ("MOSS", "without") if held else ("no MOSS", "with MOSS")
        raise ValueError(
            f"{file} holds {holds} and its base was opened {opened}; the setting moss (in run.json, or of "
            "the run to resume) is not the one it was trained with"
        )
