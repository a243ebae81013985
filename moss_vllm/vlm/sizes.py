"""Released sizes of VideoLLaMA3, Qwen2.5-VL, Qwen3-VL and SmolVLM2 without their weights.

Parameters, what trains, and the memory for training. Nothing is downloaded: on the "meta" device tensors have
a shape and no memory, and a model of 7 billion parameters is described in seconds.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from rich.table import Table
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers import initialization as init

from moss_vllm.runtime.screen import Screen
from moss_vllm.training.optim import describe, parameter_groups
from moss_vllm.video.frames import MULTIPLE_PX
from moss_vllm.vlm.adapter import attach_lora, choose_rates
from moss_vllm.vlm.families import Family, family_of
from moss_vllm.vlm.hosts.memory import frame_sides, wide_frame
from moss_vllm.vlm.memory import Memory, memory_table
from moss_vllm.vlm.shapes import SHAPES

_MODEL_PARTS: tuple[tuple[str, str], ...] = (  # the first pattern that fits
    ("MOSS", r"{tower}\.moss\."),
    ("projector", r"{projector}\."),
    ("vision encoder", r"{tower}\."),
    ("language model", r"model\.(language_model|text_model)\."),
    ("head", r"lm_head\."),
)
PART_NAMES = ("MOSS", "vision encoder", "projector", "language model", "head")


def build_shape(
    name: str,
    *,
    moss: dict[str, Any] | None,
    device: str | torch.device = "meta",
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """A model of real size, with shapes alone on "meta" and random weights on any other device.

    Args:
        name: of `SHAPES`.
        moss: `moss_*` settings that differ from the paper's; None builds the model without MOSS. In models
            other than VideoLLaMA3 it is attached by `vlm.attach`, after the paper's layer in proportion.
        device: where the weights are made, in `dtype`.
        dtype: of the weights, but for an attached MOSS's; float32 if not given.

    Raises:
        ValueError: no shape of that name, or unknown MOSS settings.
    """
    config = config_of_shape(name)
    family = family_of(config)
    if moss is not None:
        config = family.add_moss(config, **moss)
    with_moss = moss is not None
    kind: Any = family.moss_model if with_moss and not family.opens_stock_classes else family.model
    with torch.device(device):
        # Each constructor would draw its weights, and transformers then all of them again: draw once.
        with init.no_init_weights():
            model: Any = kind._from_config(config, dtype=dtype or torch.float32)
        model.init_weights()
        if with_moss and family.opens_stock_classes:
            family.moss_model.put_moss(model)
    return cast(PreTrainedModel, model)


def config_of_shape(name: str) -> PretrainedConfig:
    """The config of a released size, without MOSS.

    Raises:
        ValueError: no shape of that name.
    """
    if name not in SHAPES:
        raise ValueError(f"unknown shape '{name}'; choose one of {', '.join(SHAPES)}")
    # The config class fills the dicts it is given.
    return AutoConfig.for_model(**copy.deepcopy(SHAPES[name]))


def frames_per_step_of_shape(name: str) -> int:
    """Frames that the vision encoder makes one step of time of; ValueError as `config_of_shape`."""
    config = config_of_shape(name)
    return family_of(config).frames_per_step(config)


def parameters_per_part(model: PreTrainedModel) -> dict[str, int]:
    """Parameters of the vision encoder, MOSS, projector, language model and head (0 where it is tied).

    The projector is all between tower and language model, such as Qwen's mergers, which stand in the tower.

    Raises:
        ValueError: a parameter that belongs to none of them, such as LoRA's.
    """
    family = family_of(model.config)
    names = {"tower": re.escape(family.tower), "projector": family.projector}
    patterns = {part: re.compile(pattern.format(**names)) for part, pattern in _MODEL_PARTS}
    counts = dict.fromkeys(PART_NAMES, 0)
    for name, parameter in model.named_parameters():
        part = next((part for part, pattern in patterns.items() if pattern.match(name)), None)
        if part is None:
            raise ValueError(f"{name} belongs to no part of {family.title}; count before LoRA is attached")
        counts[part] += parameter.numel()
    return counts


def describe_shape(
    name: str,
    *,
    moss: dict[str, Any] | None,
    lora_rank: int = 16,
    frames: Sequence[int] = (20, 180),
    short_side_px: int = 224,
    text_tokens: int = 200,
    batch_size: int = 1,
    precision: str = "bf16",
    frozen_dtype: torch.dtype = torch.float32,
    lora_dropout: float = 0.0,
    checkpoint_moss: bool = False,
    console: Screen | None = None,
) -> dict[str, Memory]:
    """Print a shape's parameters with and without MOSS, what trains, and memory for each number of frames.

    The default frames are the paper's for VideoLLaMA3 (short side 224, Sec. 4.5), of a 16:9 video of 10 s and
    90 s at 2 fps. The paper does not state rank, text and batch; their defaults are ours. Memory is estimated
    with and without recomputation of the LLM's activations.

    Args:
        name, moss: as for `build_shape`.
        frames: numbers of frames to estimate the memory of.
        short_side_px: of a frame, made to what the model takes by `frame_of_shape`.
        lora_rank, text_tokens, batch_size, precision, frozen_dtype, checkpoint_moss: as for
            `estimate_training_memory`.
        lora_dropout: of LoRA, whose masks are counted as on a GPU.
        console: where the tables are printed.

    Returns: the estimates, by the heads of the table's columns.
    """
    console = console or Screen()
    plain = parameters_per_part(build_shape(name, moss=None))
    model = build_shape(name, moss=moss)
    config, family = model.config, family_of(model.config)
    console.print(parameter_table(_title(name, family), plain, parameters_per_part(model)))

    adapted, rates = attach_lora(model, rank=lora_rank, alpha=lora_rank, dropout=0.0), choose_rates(model)
    groups = parameter_groups(adapted, rates)
    console.print(trained_table(describe(adapted, rates)))
    trained = sum(parameter.numel() for group in groups for parameter in group["params"])
    frozen = sum(parameter.numel() for parameter in adapted.parameters()) - trained

    assert family.estimate_memory, f"the memory of {name} is counted"
    height_px, width_px = frame_of_shape(config, short_side_px)
    estimates = {
        f"{count} frames{', recomputed' if recomputed else ''}": family.estimate_memory(
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
            checkpoint_moss=checkpoint_moss,
            mask_bytes=1 if lora_dropout else 0,  # a GPU's
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


def frame_of_shape(config: PretrainedConfig, short_side_px: int) -> tuple[int, int]:
    """Height and width in pixels of a 16:9 frame as a model of `SHAPES` takes it."""
    family = family_of(config)
    if not family.opens_stock_classes:
        return wide_frame(short_side_px, MULTIPLE_PX)
    return frame_sides(family.moss_model.host, config, short_side_px)


def _title(name: str, family: Family) -> str:
    """Qwen2.5-VL-3B of qwen2_5_vl_3b."""
    size = name.removeprefix(re.sub(r"\W", "_", family.title.lower()) + "_")
    return f"{family.title}-{size.replace('_', '.').upper()}"


def parameter_table(title: str, plain: dict[str, int], chosen: dict[str, int]) -> Table:
    """Parameters per part, as released and as trained here."""
    table = Table("part", title=f"parameters of {title}")
    for head in ("as released", "as trained here"):
        table.add_column(head, justify="right")
    for part in PART_NAMES:
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
