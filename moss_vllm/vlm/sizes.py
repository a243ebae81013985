"""VideoLLaMA3's real sizes without its weights: parameters, what trains, and the memory for training.

Nothing is downloaded: on the "meta" device tensors have a shape and no memory, and a model of 7 billion
parameters is described in seconds.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from rich.table import Table
from transformers import PreTrainedModel, VideoLlama3Config, VideoLlama3ForConditionalGeneration
from transformers import initialization as init

from moss_vllm.runtime.screen import Screen
from moss_vllm.training.optim import describe, parameter_groups
from moss_vllm.vlm.adapter import attach_lora, choose_rates
from moss_vllm.vlm.memory import Memory, memory_table
from moss_vllm.vlm.video_llama3.memory import estimate_training_memory
from moss_vllm.vlm.video_llama3.model import MossVideoLlama3ForConditionalGeneration, moss_config

_VISION = {
    "hidden_size": 1152,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "intermediate_size": 4304,
    "patch_size": 14,
}
_QWEN = {
    "model_type": "qwen2",
    "num_hidden_layers": 28,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
SHAPES: dict[str, dict[str, Any]] = {
    "2b": {
        "vision_config": _VISION,
        "text_config": {
            **_QWEN,
            "hidden_size": 1536,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "intermediate_size": 8960,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        "tie_word_embeddings": True,
    },
    "7b": {
        "vision_config": _VISION,
        "text_config": {
            **_QWEN,
            "hidden_size": 3584,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
            "vocab_size": 152064,
            "tie_word_embeddings": False,
        },
        "tie_word_embeddings": False,
    },
}
"""Arguments of `VideoLlama3Config` for VideoLLaMA3-2B and VideoLLaMA3-7B.

The vision encoder of both is SigLIP so400m with patches of 14 pixels (google/siglip-so400m-patch14-384), with
rotary positions in place of the learned ones. The language models are Qwen2.5-1.5B and Qwen2.5-7B, with the
sizes in the config.json of Qwen/Qwen2.5-1.5B-Instruct and Qwen/Qwen2.5-7B-Instruct; the released
VideoLLaMA3 checkpoints were not read, and one with a resized vocabulary has other numbers of embedding rows.
"""

PARTS = {  # the first prefix that fits
    "MOSS": "model.vision_model.moss.",
    "vision encoder": "model.vision_model.",
    "projector": "model.projector.",
    "language model": "model.language_model.",
    "head": "lm_head.",
}


def build_shape(
    name: str,
    *,
    moss: dict[str, Any] | None,
    device: str | torch.device = "meta",
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """A model of real size, with shapes alone on "meta" and random weights on any other device.

    Args:
        name: "2b" or "7b".
        moss: `moss_*` settings that differ from the paper's; None builds VideoLLaMA3 without MOSS.
        device: where the weights are made, in `dtype`.
        dtype: of the weights; float32 if not given.

    Raises:
        ValueError: no shape of that name, or unknown MOSS settings.
    """
    if name not in SHAPES:
        raise ValueError(f"unknown shape '{name}'; choose one of {', '.join(SHAPES)}")
    # The config class fills the dicts it is given.
    config = VideoLlama3Config(**copy.deepcopy(SHAPES[name]))
    kind: Any = VideoLlama3ForConditionalGeneration
    if moss is not None:
        kind, config = MossVideoLlama3ForConditionalGeneration, moss_config(config, **moss)
    with torch.device(device):
        # Each constructor would draw its weights, and transformers then all of them again: draw once.
        with init.no_init_weights():
            model: PreTrainedModel = kind._from_config(config, dtype=dtype or torch.float32)
        model.init_weights()
    return model


def parameters_per_part(model: PreTrainedModel) -> dict[str, int]:
    """Parameters of the vision encoder, MOSS, projector, language model and head (0 where it is tied).

    Raises:
        ValueError: a parameter that belongs to none of them, such as LoRA's.
    """
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        part = next((part for part, prefix in PARTS.items() if name.startswith(prefix)), None)
        if part is None:
            raise ValueError(f"{name} belongs to no part of VideoLLaMA3; count before LoRA is attached")
        counts[part] += parameter.numel()
    return counts


def describe_shape(
    name: str,
    *,
    moss: dict[str, Any] | None,
    lora_rank: int = 16,
    frames: Sequence[int] = (20, 180),
    height_px: int = 224,
    width_px: int = 392,
    text_tokens: int = 200,
    batch_size: int = 1,
    precision: str = "bf16",
    frozen_dtype: torch.dtype = torch.float32,
    console: Screen | None = None,
) -> dict[str, Memory]:
    """Print a shape's parameters with and without MOSS, what trains, and memory for each number of frames.

    The default frames are the paper's (short side 224 of a 16:9 video, Sec. 4.5) for 10 s and 90 s at 2 fps.
    The paper does not state rank, text and batch; their defaults are ours. Memory is estimated with and
    without recomputation of the LLM's activations.

    Args:
        name, moss: as for `build_shape`.
        frames: numbers of frames to estimate the memory of.
        lora_rank, height_px, width_px, text_tokens, batch_size, precision, frozen_dtype: as for
            `estimate_training_memory`.
        console: where the tables are printed.

    Returns: the estimates, by the heads of the table's columns.
    """
    console = console or Screen()
    plain = parameters_per_part(build_shape(name, moss=None))
    model = build_shape(name, moss=moss)
    config = model.config
    console.print(parameter_table(name, plain, parameters_per_part(model)))

    adapted = attach_lora(model, rank=lora_rank, alpha=lora_rank, dropout=0.0)
    rates = choose_rates(model)
    groups = parameter_groups(adapted, rates)
    console.print(trained_table(describe(adapted, rates)))
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    frozen = sum(parameter.numel() for parameter in adapted.parameters()) - trained

    estimates = {
        f"{count} frames{', recomputed' if recomputed else ''}": estimate_training_memory(
            config,
            lora_rank=lora_rank,
            frames=count,
            height_px=height_px,
            width_px=width_px,
            text_tokens=text_tokens,
            batch_size=batch_size,
            precision=precision,
            checkpoint_llm=recomputed,
            trained_parameters=trained,
            frozen_parameters=frozen,
            frozen_dtype=frozen_dtype,
        )
        for count in frames
        for recomputed in (False, True)
    }
    weights = str(frozen_dtype).removeprefix("torch.")
    clips = f"{batch_size} clip{'s' if batch_size > 1 else ''} of {height_px} x {width_px}"
    console.print(
        memory_table(estimates, title=f"memory: {clips}, precision {precision}, frozen in {weights}")
    )
    return estimates


def parameter_table(name: str, plain: dict[str, int], chosen: dict[str, int]) -> Table:
    """Parameters per part, as released and as trained here."""
    table = Table("part", title=f"parameters of VideoLLaMA3-{name.upper()}")
    for head in ("as released", "as trained here"):
        table.add_column(head, justify="right")
    for part in PARTS:
        table.add_row(part, f"{plain[part]:,}", f"{chosen[part]:,}", end_section=part == "head")
    table.add_row("total", f"{sum(plain.values()):,}", f"{sum(chosen.values()):,}")
    return table


def trained_table(rows: Sequence[tuple[str, str, int, int, str]]) -> Table:
    """The rows of `optim.describe`."""
    table = Table("group", title="what trains, after LoRA")
    for head in ("tensors", "parameters", "learning rate"):
        table.add_column(head, justify="right")
    for group, _, tensors, parameters, rate in rows:
        table.add_row(group, f"{tensors:,}", f"{parameters:,}", rate)
    return table
