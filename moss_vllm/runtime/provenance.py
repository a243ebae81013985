"""Where a result comes from: its environment, weights checked to be whole, fingerprints of models."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from moss_vllm.runtime.versions import versions

RUN_FILE = "run.json"  # of a checkpoint: how it was made
# Entries of configs and processors that change no answer: they name their origin, or are for training.
SILENT = {"_name_or_path", "name_or_path", "_commit_hash", "architectures", "transformers_version", "dtype"}
SILENT |= {"initializer_range", "attention_dropout", "use_cache", "id2label", "label2id", "problem_type"}
REAL = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def describe_environment(model: Any) -> dict[str, str | None]:
    """`versions`, device, dtype and attention.

    It is stored with a result, and a difference is no reason to refuse one.
    """
    environment = versions()
    weight = next(model.parameters(), torch.empty(0))
    on_gpu = weight.device.type == "cuda"
    environment["device"] = torch.cuda.get_device_name(weight.device) if on_gpu else weight.device.type
    environment["dtype"] = str(weight.dtype).removeprefix("torch.")
    if attention := getattr(getattr(model, "config", None), "_attn_implementation", None):
        environment["attention"] = attention
    return environment


def read_header(file: Path, remedy: str = "use an earlier checkpoint") -> dict[str, Tensor]:
    """The tensors of a safetensors file without contents, on the device "meta".

    Raises:
        ValueError: it cannot be read; the header has the file's length, so a truncated file is noticed here.
    """
    header = {}
    try:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():
                part = opened.get_slice(name)
                shape = part.get_shape()
                dtype = (part[:0] if shape else opened.get_tensor(name)).dtype
                header[name] = torch.empty(shape, dtype=dtype, device="meta")
    except (SafetensorError, LookupError) as error:
        raise ValueError(
            f"{file}: cannot be read as safetensors ({error}); the file is cut short or damaged, {remedy}"
        ) from error
    return header


def faults(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor | None]) -> str:
    """What is wrong with `weights`, in words; `expected` has for each name a tensor like it, or None for any.

    A type is wrong if it is whole for a real one or the reverse, or has eight bits; real numbers beyond the
    range of float32 count as not finite. Of tensors on "meta" only shape and type are checked.
    """

    def of_another_shape(name: str) -> bool:
        like = expected[name]
        return like is not None and weights[name].shape != like.shape

    def of_another_type(name: str) -> bool:
        like, dtype = expected[name], weights[name].dtype
        return like is not None and (dtype not in REAL if like.dtype in REAL else dtype != like.dtype)

    def is_finite(name: str) -> bool:
        value = weights[name]
        return value.is_meta or bool(torch.isfinite(value.float() if value.dtype in REAL else value).all())

    both = weights.keys() & expected.keys()
    empty = [name for name in both if weights[name].numel() == 0]
    mistyped = [name for name in both if of_another_type(name)]
    names_by_fault: dict[str, Iterable[str]] = {
        "missing": expected.keys() - weights.keys(),
        "left over": weights.keys() - expected.keys(),
        "empty": empty,
        "of another shape": [name for name in both if of_another_shape(name) and name not in empty],
        "of another type": mistyped,
        "not finite": [name for name in both if name not in mistyped and not is_finite(name)],
    }
    parts = []
    for fault, names in names_by_fault.items():
        if some := sorted(name.removeprefix("base_model.model.model.") for name in names):
            more = f" and {len(some) - 5} more" if len(some) > 5 else ""
            parts.append(f"{len(some)} {fault} ({', '.join(some[:5])}{more})")
    return ", ".join(parts)


def answering_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every weight and statistic that decides a model's answers.

    peft keeps the untrained original of each module that is trained whole. Originals do not run, and that of
    MOSS is drawn anew in each process, so they are left out.
    """
    return {name: value for name, value in model.state_dict().items() if ".original_module." not in name}


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A digest of some numbers of every tensor, which tells apart two trainings with the same name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // 16)].double().cpu().numpy()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + some.tobytes())
    return digest.hexdigest()[:16]


def settings_fingerprint(model: Any, processor: Any) -> str:
    """A digest of all that decides answers beside the weights: LoRA's scale, config with MOSS, processor."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    tokenizer = processor.tokenizer
    words = json.loads(tokenizer.backend_tokenizer.to_str())
    for changing in ("truncation", "padding"):  # the last call has set them
        words.pop(changing, None)
    settings = {
        "lora": {name: [lora.r, lora.lora_alpha] for name, lora in getattr(model, "peft_config", {}).items()},
        "config": base.config.to_dict(),
        "end": getattr(base.generation_config, "eos_token_id", None),
        "processor": processor.to_dict(),
        "template": [processor.chat_template, tokenizer.chat_template],
        "words": words,
    }
    text = json.dumps(_without_silent(settings), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_silent(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_silent(inner) for key, inner in value.items() if key not in SILENT}
    return [_without_silent(inner) for inner in value] if isinstance(value, list | tuple) else value
