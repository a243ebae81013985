"""What is trained on a base model: LoRA, and whole copies of the projector and MOSS; attached, read, checked.

peft's own loader is not used: it takes an adapter with MOSS for one without in silence, and settings from a
folder as they come. Here nothing in a folder can name code or another base.
"""

import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from moss_vllm.files import read_json
from moss_vllm.vlm.video_llama3 import MossVideoLlama3ForConditionalGeneration
from moss_vllm.weights import faults

ADAPTER_FILE = "adapter_model.safetensors"
SETTINGS_FILE = "adapter_config.json"
PICKLE_FILE = "adapter_model.bin"
# Full paths from the root: leaf names alone ("q_proj") would also match the vision tower.
LORA_TARGETS = r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
# In adapter_config.json, and without a say here: run.json names the base, the weights what is trained whole.
UNREAD = {"base_model_name_or_path", "revision", "auto_mapping", "task_type", "peft_version"}
UNREAD |= {"inference_mode", "modules_to_save"}


def attach_lora(model: PreTrainedModel, *, rank: int, alpha: int, dropout: float) -> PeftModel:
    """LoRA on the language model's linear layers; projector, and MOSS if there is one, are trained whole.

    What is trained is float32 whatever the base is: steps of training are lost in bfloat16's rounding.
    """
    with warnings.catch_warnings():  # peft 0.21 asks transformers 5.23 by a deprecated name
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        attached = cast(PeftModel, get_peft_model(model, _lora_config(model, rank, alpha, dropout)))
    for module in attached.modules():
        if isinstance(module, ModulesToSaveWrapper):  # peft casts LoRA itself, and not these
            module.modules_to_save.float()
    return attached


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Every weight and statistic that training changes, by its name in the model."""
    kept = (".lora_", ".modules_to_save.")
    return {name: value for name, value in model.state_dict().items() if any(part in name for part in kept)}


def load_adapter(folder: Path, model: PeftModel) -> None:
    """Load the adapter file of a folder into a model from `attach_lora`; all of it, and nothing else.

    Raises:
        FileNotFoundError: there is no adapter file.
        ValueError: it cannot be read, or a weight is missing, left over, empty, not finite, of another shape.
    """
    file = folder / ADAPTER_FILE
    if (folder / PICKLE_FILE).exists():
        raise ValueError(
            f"{folder / PICKLE_FILE} is a pickle, which can run code when opened; only {ADAPTER_FILE} is "
            "read: remove it if that file is there, else use another checkpoint"
        )
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; the checkpoint is incomplete, use an earlier one")
    try:
        saved = load_file(file)
    except SafetensorError as error:  # the header tells the file's length: a cut file is noticed here
        raise ValueError(
            f"{file}: cannot be read as safetensors ({error}); the file is cut short or damaged, use an "
            "earlier checkpoint"
        ) from error
    wanted = get_peft_model_state_dict(model, state_dict=trained_state(model), save_embedding_layers=False)
    with_moss, expects_moss = (any(".moss." in name for name in names) for names in (saved, wanted))
    if with_moss != expects_moss:
        held, opened = ("MOSS", "without") if with_moss else ("no MOSS", "with MOSS")
        raise ValueError(
            f"{file} holds {held} and its base was opened {opened}; the setting moss (in run.json, or of "
            "the run to go on with) is not the one it was trained with"
        )
    if wrong := faults(saved, {name: value.shape for name, value in wanted.items()}):
        raise ValueError(
            f"{file} does not fit the base model: of its weights {wrong}; check base_model and moss in "
            "run.json and the rank of LoRA, or use an earlier checkpoint"
        )
    set_peft_model_state_dict(model, saved)


def read_lora(file: Path) -> dict[str, Any]:
    """Rank, alpha and dropout among all else in adapter_config.json."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; the checkpoint is incomplete, use an earlier one")
    lora = read_json(file)
    rank, alpha, dropout = (lora.get(name) for name in ("r", "lora_alpha", "lora_dropout"))
    numbers = isinstance(alpha, int | float) and isinstance(dropout, int | float) and 0 <= dropout <= 1
    if not (isinstance(rank, int) and rank >= 1 and numbers):
        raise ValueError(
            f"{file}: r={rank!r}, lora_alpha={alpha!r}, lora_dropout={dropout!r} are not a rank from 1, a "
            "number and a number from 0 to 1; use an earlier checkpoint"
        )
    return lora


def check_lora(file: Path, lora: Mapping[str, Any], base: PreTrainedModel) -> None:
    """Anything but what `attach_lora` would write makes another model of the same weights: a ValueError."""
    ours = _lora_config(base, lora["r"], lora["lora_alpha"], lora["lora_dropout"]).to_dict()
    other = [name for name in lora if name not in UNREAD and (lora[name] or None) != (ours.get(name) or None)]
    if other:
        told = ", ".join(f"{name}={lora[name]!r}" for name in other)
        raise ValueError(
            f"{file}: {told} is not what this package trains with (peft {lora.get('peft_version')} there, "
            f"{version('peft')} here); use a checkpoint written by moss_vllm"
        )


def _lora_config(model: PreTrainedModel, rank: int, alpha: int, dropout: float) -> LoraConfig:
    has_moss = isinstance(model, MossVideoLlama3ForConditionalGeneration)
    whole = ["projector", "moss"] if has_moss else ["projector"]
    return LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=LORA_TARGETS, modules_to_save=whole
    )
