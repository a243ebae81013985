"""What the fine-tuning of a Video-LLM shows before its first step; settings.json keeps it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from transformers import PretrainedConfig

from moss_vllm.core import MOSS
from moss_vllm.data.streams import STREAMED
from moss_vllm.runtime.precision import AUTOCAST
from moss_vllm.runtime.screen import Screen, say
from moss_vllm.training import start
from moss_vllm.training.optim import Rate
from moss_vllm.training.step_memory import GIB
from moss_vllm.video.clip import Sampling
from moss_vllm.video.frames import BadVideo
from moss_vllm.video.probe import probe_clip
from moss_vllm.vlm.attention import choose_attention
from moss_vllm.vlm.batches import TrainingSet
from moss_vllm.vlm.families import Family, family_of, family_with
from moss_vllm.vlm.places import MINIATURES
from moss_vllm.vlm.plan import Plan
from moss_vllm.vlm.settings import MOST_STEPS
from moss_vllm.vlm.sizes import describe_shape, frames_per_step_of_shape
from moss_vllm.vlm.streamed import StreamedSet

OF_A_SHAPE = {"model", "use_moss", "short_side_px", "max_frames", "lora_rank", "batch_size", "precision"}
OF_A_SHAPE |= {"lora_dropout", "checkpoint_moss", "checkpoint_llm"}  # memory is shown with it and without


def describe_fine_tuning(
    settings: Any,
    accelerator: Accelerator,
    model: PeftModel,
    table: Sequence[Rate],
    rows: Plan,
    sampling: Sampling,
    command: str,
) -> dict[str, Any]:
    """The content of the start-up report, as json.

    Args:
        settings: the recipe's dataclass.
        table: the learning rates, as for `optim.parameter_groups`.
        rows: the rows to train on.
        sampling: how their clips are read.
    """
    base: Any = model.get_base_model()
    device, dtype = accelerator.device, _frozen_dtype(base)
    moss = next((module for module in model.modules() if isinstance(module, MOSS)), None)
    chosen, reason = choose_attention(device, dtype)
    shortest, median, longest = rows.spread()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        **start.describe_training(settings, accelerator, model, table, command),
        "device": name,
        "attention": f"{base.config._attn_implementation} ({reason})",
        "stss": moss.path() if moss else "no MOSS",
        "time": _describe_time(family_of(base.config), base.config, sampling),
        "plan": rows.line(),
        "sources": [[n, count, weight] for n, (count, weight) in zip(rows.names, rows.shares, strict=True)],
        "data": rows.origins,
        "tokens": {"min": shortest, "median": median, "max": longest},
        "memory": _estimate(settings, accelerator, model, rows, sampling),
    }


def _describe_time(family: Family, config: PretrainedConfig, sampling: Sampling) -> str:
    """What one step of MOSS's time window is."""
    frames = family.frames_per_step(config)
    each = f"one frame every {1 / sampling.sample_fps:g} s"
    if frames > 1:
        each = f"{frames} frames, every {frames / sampling.sample_fps:g} s: motion within a step is not seen"
    moss = family.moss_settings(config)
    spans = f"; MOSS's window spans {moss['moss_window'][0]} of them" if moss else ""
    return f"{family.title}: a step of time is {each}{spans}"


def _frozen_dtype(base: Any) -> torch.dtype:
    weight: torch.Tensor = next(base.get_submodule(family_of(base.config).language_model).parameters())
    return weight.dtype


def _estimate(
    settings: Any, accelerator: Accelerator, model: PeftModel, rows: Plan, sampling: Sampling
) -> dict[str, int] | None:
    """Bytes of each part, for a batch of the longest clip; None where they cannot be estimated."""
    longest = rows.rows[max(range(len(rows.rows)), key=rows.tokens.__getitem__)]
    base: Any = model.get_base_model()
    estimate = family_of(base.config).estimate_memory
    if longest.path is None or settings.quantize or estimate is None:
        return None
    start_s, end_s = longest.start_s or 0.0, longest.end_s
    try:
        probe = probe_clip(longest.path, sampling, start_s=start_s, end_s=end_s)
    except BadVideo:  # removed since the plan; training counts and names it
        return None
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    deepspeed, on_gpu = accelerator.state.deepspeed_plugin, accelerator.device.type == "cuda"
    memory = estimate(
        base.config,
        lora_rank=settings.lora_rank,
        frames=len(probe.frame_times_s),
        height_px=probe.height,
        width_px=probe.width,
        text_tokens=sum(len(t.question) + len(t.answer or "") for t in longest.turns) // 3,
        batch_size=settings.batch_size,
        precision=settings.precision,
        checkpoint_llm=settings.checkpoint_llm,
        trained_parameters=trained,
        frozen_parameters=sum(p.numel() for p in model.parameters()) - trained,
        attention=base.config._attn_implementation,
        frozen_dtype=_frozen_dtype(base),
        processes=accelerator.num_processes,
        zero_stage=deepspeed.zero_stage if deepspeed else 0,
        fused_stss=on_gpu,
        checkpoint_moss=settings.checkpoint_moss,
        mask_bytes=(1 if on_gpu else 4) if settings.lora_dropout else 0,
    )
    return {**dataclasses.asdict(memory), "total": memory.total}


def show_report(record: dict[str, Any]) -> None:
    """Print the report."""
    console, settings, tokens = Screen(), record["settings"], record["tokens"]
    if settings["model"] in MINIATURES:
        console.print(
            "This is a miniature: real classes and files, but a toy world. For the paper's run see --help."
        )
    by_file: dict[str, list[str]] = {}
    for setting, origin in record.get("origins", {}).items():
        by_file.setdefault(origin, []).append(setting)
    for origin, names in by_file.items():
        console.print(f"settings by {origin}: {', '.join(names)}", soft_wrap=True)
    console.print(
        f"{record['engine']} x{record['processes']} on {record['device']}, precision "
        f"{settings['precision']}, {settings['steps']} step{'s' * (settings['steps'] != 1)} of "
        f"{settings['batch_size']} clips x {record['processes']} processes x {settings['accumulate']} "
        "micro-batches"
    )
    console.print(f"attention: {record['attention']}")
    console.print(record["stss"])
    console.print(record["time"])
    console.print(record["plan"])
    if len(record["sources"]) > 1:
        for (name, count, weight), origin in zip(record["sources"], record["data"], strict=True):
            rows = "streamed" if origin["format"] == STREAMED else f"{count:,} rows"
            console.print(f"  {name}: {rows}, weight {weight:g}")
    console.print(f"tokens per clip: {tokens['min']} to {tokens['max']}, median {tokens['median']}")
    if not record["memory"]:
        console.print(
            "no estimate of memory: it is not counted for this family or in 4 bits, or the video of the "
            "longest row cannot be read"
        )
    else:
        peak_gib = record["memory"]["total"] / GIB
        console.print(
            f"estimated peak of weights, optimizer and activations: {peak_gib:.1f} GiB per process, for "
            "batches of the longest clip"
        )
    start.show_parameters(console, record["parameters"])
    start.show_disk(record["disk"])


def show_dry_run(record: Mapping[str, Any], dataset: TrainingSet | StreamedSet) -> None:
    """Print every setting with its origin, the first batch's shapes and its first conversation by turns."""
    settings = {**record["settings"], "data_seed": record["data_seed"]}
    for name, value in settings.items():
        say(f"{name}: {value}  ({record['origins'].get(name, 'default')})")
    size = settings["batch_size"]
    batch = dataset.collate([dataset[index] for index in range(min(size, len(dataset)))])
    shapes = {name: tuple(value.shape) for name, value in batch.items() if isinstance(value, torch.Tensor)}
    say("first batch:", ", ".join(f"{name} {shape}" for name, shape in shapes.items()))
    ids = batch["input_ids"][0][batch["attention_mask"][0].bool()]
    text = dataset.processor.tokenizer.decode(ids)
    chat = family_with(dataset.processor).chat
    token = dataset.processor.tokenizer.decode([chat.placeholder(dataset.processor)])
    end = chat.end_of_turn(dataset.processor)
    say(f"its first conversation, each run of {token} shown once:")
    while token * 2 in text:
        text = text.replace(token * 2, token)
    for turn in text.removesuffix(f"{end}\n").split(f"{end}\n"):
        say(f"  {turn}{end}")
    lengths = batch["attention_mask"].sum(-1).tolist()
    say(json.dumps({"tokens_per_clip": {"min": min(lengths), "max": max(lengths)}}))


def show_shape(settings: Any, origins: Mapping[str, str], *, dry_run: bool) -> None:
    """Print parameters and memory of a released size, without its weights.

    Memory is for 20 steps of time, and for the longest clip.

    Args:
        settings: the recipe's dataclass.
        origins: of `training.settings.origins`; flags that change nothing are told.

    Raises: ValueError if it is not a dry run.
    """
    if not dry_run:
        raise ValueError(f"{settings.model} has no weights to train; add --dry-run, or name a checkpoint")
    name = settings.model.removeprefix("shape:")
    per_step = frames_per_step_of_shape(name)
    longest = settings.max_frames or MOST_STEPS * per_step
    describe_shape(
        name,
        moss={} if settings.use_moss else None,
        frames=sorted({min(20 * per_step, longest), longest}),
        short_side_px=settings.short_side_px,
        lora_rank=settings.lora_rank,
        batch_size=settings.batch_size,
        precision=settings.precision,
        frozen_dtype=AUTOCAST[settings.precision] or torch.float32,
        lora_dropout=settings.lora_dropout,
        checkpoint_moss=settings.checkpoint_moss,
    )
    flags = {name for name, origin in origins.items() if origin == "flag"}
    if unused := sorted(flags - OF_A_SHAPE):
        say(f"without weights these flags change nothing: {', '.join(unused)}")
