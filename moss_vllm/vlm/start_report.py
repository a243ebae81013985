"""What the fine-tuning of a Video-LLM shows before its first step; settings.json keeps it."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel

from moss_vllm.core import MOSS
from moss_vllm.data.streams import STREAMED
from moss_vllm.runtime.precision import AUTOCAST
from moss_vllm.runtime.screen import Screen, say
from moss_vllm.training import start
from moss_vllm.training.optim import Rate
from moss_vllm.video.frames import MULTIPLE_PX, BadVideo
from moss_vllm.video.probe import probe_clip
from moss_vllm.vlm.attention import choose_attention
from moss_vllm.vlm.batches import TrainingSet
from moss_vllm.vlm.families import family_of
from moss_vllm.vlm.memory import GIB
from moss_vllm.vlm.places import MINIATURES
from moss_vllm.vlm.plan import Plan
from moss_vllm.vlm.sizes import describe_shape
from moss_vllm.vlm.streamed import StreamedSet

OF_A_SHAPE = {"model", "use_moss", "short_side_px", "max_frames", "lora_rank", "batch_size", "precision"}


def describe_fine_tuning(
    settings: Any,
    accelerator: Accelerator,
    model: PeftModel,
    table: Sequence[Rate],
    rows: Plan,
    command: str,
) -> dict[str, Any]:
    """The content of the start-up report, as json.

    Args:
        settings: the recipe's dataclass.
        table: the learning rates, as for `optim.parameter_groups`.
        rows: the rows to train on.
    """
    base: Any = model.get_base_model()
    device, dtype = accelerator.device, next(base.model.language_model.parameters()).dtype
    moss = next((module for module in model.modules() if isinstance(module, MOSS)), None)
    chosen, reason = choose_attention(device, dtype)
    shortest, median, longest = rows.spread()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        **start.describe_training(settings, accelerator, model, table, command),
        "device": name,
        "attention": f"{base.config._attn_implementation} ({reason})",
        "stss": moss.path() if moss else "no MOSS",
        "plan": rows.line(),
        "sources": [[n, count, weight] for n, (count, weight) in zip(rows.names, rows.shares, strict=True)],
        "data": rows.origins,
        "tokens": {"min": shortest, "median": median, "max": longest},
        "memory": _estimate(settings, accelerator, model, rows),
    }


def _estimate(settings: Any, accelerator: Accelerator, model: PeftModel, rows: Plan) -> dict[str, int] | None:
    """Bytes of each part, for a batch of the longest clip; None where they cannot be estimated."""
    longest = rows.rows[max(range(len(rows.rows)), key=rows.tokens.__getitem__)]
    if longest.path is None or settings.quantize:
        return None
    start_s, end_s = longest.start_s or 0.0, longest.end_s
    try:
        probe = probe_clip(longest.path, settings.sampling, start_s=start_s, end_s=end_s)
    except BadVideo:  # removed since the plan; training counts and names it
        return None
    base: Any = model.get_base_model()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    deepspeed = accelerator.state.deepspeed_plugin
    memory = family_of(base.config).estimate_memory(
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
        frozen_dtype=next(base.model.language_model.parameters()).dtype,
        processes=accelerator.num_processes,
        zero_stage=deepspeed.zero_stage if deepspeed else 0,
        fused_stss=accelerator.device.type == "cuda",
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
    console.print(record["plan"])
    if len(record["sources"]) > 1:
        for (name, count, weight), origin in zip(record["sources"], record["data"], strict=True):
            rows = "streamed" if origin["format"] == STREAMED else f"{count:,} rows"
            console.print(f"  {name}: {rows}, weight {weight:g}")
    console.print(f"tokens per clip: {tokens['min']} to {tokens['max']}, median {tokens['median']}")
    if not record["memory"]:
        console.print(
            "no estimate of memory: the base is in 4 bits, or the video of the longest row cannot be read"
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
    video_token = dataset.processor.video_token
    say(f"its first conversation, each run of {video_token} shown once:")
    while video_token * 2 in text:
        text = text.replace(video_token * 2, video_token)
    for turn in text.removesuffix("<|im_end|>\n").split("<|im_end|>\n"):
        say(f"  {turn}<|im_end|>")
    lengths = batch["attention_mask"].sum(-1).tolist()
    say(json.dumps({"tokens_per_clip": {"min": min(lengths), "max": max(lengths)}}))


def show_shape(settings: Any, origins: Mapping[str, str], *, dry_run: bool) -> None:
    """Print parameters and memory of a released size, without its weights.

    Args:
        settings: the recipe's dataclass.
        origins: of `training.settings.origins`; flags that change nothing are told.

    Raises: ValueError if it is not a dry run.
    """
    if not dry_run:
        raise ValueError(f"{settings.model} has no weights to train; add --dry-run, or name a checkpoint")
    height_px = max(1, round(settings.short_side_px / MULTIPLE_PX)) * MULTIPLE_PX
    describe_shape(
        settings.model.removeprefix("shape:"),
        moss={} if settings.use_moss else None,
        frames=sorted({min(20, settings.max_frames), settings.max_frames}),
        height_px=height_px,
        width_px=round(height_px * 16 / 9 / MULTIPLE_PX) * MULTIPLE_PX,
        lora_rank=settings.lora_rank,
        batch_size=settings.batch_size,
        precision=settings.precision,
        frozen_dtype=AUTOCAST[settings.precision] or torch.float32,
    )
    flags = {name for name, origin in origins.items() if origin == "flag"}
    if unused := sorted(flags - OF_A_SHAPE):
        say(f"without weights these flags change nothing: {', '.join(unused)}")
