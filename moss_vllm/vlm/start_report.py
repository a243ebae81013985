"""What a training run says of itself before its first step, and keeps as settings.json."""

import dataclasses
import hashlib
import importlib.util
import json
import math
import re
import shutil
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from rich.table import Column, Table
from torch import nn

from moss_vllm.core import MOSS
from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.files import read_json, whole_file
from moss_vllm.runtime.screen import Screen, say
from moss_vllm.training import engines
from moss_vllm.training.loop import Loop
from moss_vllm.training.optim import Rate, describe
from moss_vllm.training.run_folder import step_of
from moss_vllm.video.clip import BadVideo
from moss_vllm.video.probe import probe_clip
from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.attention import choose_attention
from moss_vllm.vlm.batches import TrainingSet
from moss_vllm.vlm.families import family_of
from moss_vllm.vlm.memory import GIB
from moss_vllm.vlm.plan import Plan

SETTINGS_FILE = "settings.json"
TRACKERS = ("tensorboard", "wandb", "trackio")


def describe_run(
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
        "settings": dataclasses.asdict(settings),
        "engine": engines.name(accelerator),
        "processes": accelerator.num_processes,
        "device": name,
        "attention": f"{base.config._attn_implementation} ({reason})",
        "stss": moss.path() if moss else "no MOSS",
        "parameters": describe(model, table),
        "plan": rows.line(),
        "sources": [[n, count, weight] for n, (count, weight) in zip(rows.names, rows.shares, strict=True)],
        "tokens": {"min": shortest, "median": median, "max": longest},
        "memory": _estimate(settings, accelerator, model, rows),
        "versions": checkpoint.versions(),
        "command": command,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _estimate(settings: Any, accelerator: Accelerator, model: PeftModel, rows: Plan) -> dict[str, int] | None:
    """Bytes of each part, for a batch of the longest clip; None where they cannot be estimated."""
    longest = rows.rows[max(range(len(rows.rows)), key=rows.tokens.__getitem__)]
    if longest.path is None or settings.quantize:
        return None
    sampling = {key: getattr(settings, key) for key in ("sample_fps", "short_side_px", "max_frames")}
    try:
        probe = probe_clip(longest.path, start_s=longest.start_s or 0.0, end_s=longest.end_s, **sampling)
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


def show(record: dict[str, Any]) -> None:
    """Print the report."""
    console, settings, tokens = Screen(), record["settings"], record["tokens"]
    if settings["model"] == "miniature":
        console.print(
            "This is the miniature: real classes and files, but a toy world. For the paper's run see --help."
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
        for name, count, weight in record["sources"]:
            console.print(f"  {name}: {count:,} rows, weight {weight:g}")
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
    show_parameters(console, record["parameters"])
    show_disk(record["disk"])


def plan_disk(model: nn.Module, out: Path, loop: Loop, resume: Path | None) -> dict[str, int]:
    """Bytes of a checkpoint (float32 weights and Adam's two states), how many will be, and bytes free."""
    first = step_of(resume) if resume else 0
    count = math.ceil((loop.steps - first) / loop.save_every)
    nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    return {
        "checkpoint": 12 * sum(p.numel() for p in model.parameters() if p.requires_grad),
        # One more while the newest is written.
        "checkpoints": count if loop.keep is None else min(count, loop.keep + 1),
        "free": shutil.disk_usage(nearest).free,
    }


def show_disk(disk: dict[str, int]) -> None:
    """Print what checkpoints take, and warn where that is more than is free."""
    one, count, free = disk["checkpoint"], disk["checkpoints"], disk["free"]
    told = f"{count} checkpoint{'s' * (count != 1)} of {one / GIB:.3g} GiB"
    say(f"{told}: {count * one / GIB:.3g} GiB of disk, {free / GIB:.1f} GiB are free")
    if count * one > free:
        say("warning: the disk does not hold them all; say --keep N or a larger --save-every, or make room")


def refuse_full_disk(disk: dict[str, int], out: Path) -> None:
    """RunStopped where not even one checkpoint can be written."""
    if disk["checkpoint"] > disk["free"] and disk["checkpoints"]:
        raise RunStopped(
            f"{out}: a checkpoint takes {disk['checkpoint'] / GIB:.3g} GiB and {disk['free'] / GIB:.3g} GiB "
            "are free; make room, or name another --out"
        )


def show_parameters(console: Screen, described: Sequence[Sequence[Any]]) -> None:
    """Print what `optim.describe` says of a model."""
    pattern = Column("pattern", overflow="fold")  # whole, on a narrow terminal too
    rows = Table("group", pattern, "tensors", "parameters", "learning rate", title="what trains")
    for name, pattern, tensors, parameters, rate in described:
        rows.add_row(name, pattern, str(tensors), f"{parameters:,}", rate)
    console.print(rows)


def write(record: dict[str, Any], out: Path, resume: Path | None) -> None:
    """Write settings.json; a resumed run keeps the time of its first start, and `resumed_at` all steps."""
    file, record = out / SETTINGS_FILE, {**record, "resumed_at": []}
    if resume:
        before = read_json(file, "remove it") if file.is_file() else {}
        record["started"] = before.get("started", record["started"])
        record["resumed_at"] = [*before.get("resumed_at", []), step_of(resume)]
    with whole_file(file) as part:
        part.write_text(json.dumps(record, indent=2) + "\n")


def choose_tracker(name: str) -> str | None:
    """The tracker's name for accelerate, which leaves out one that is not installed in silence.

    Raises:
        ValueError: an unknown name.
        ImportError: its package is missing.
    """
    if name == "none":
        return None
    if name not in TRACKERS:
        raise ValueError(f"tracker is {name!r}; it must be one of {', '.join(TRACKERS)} or none")
    if importlib.util.find_spec(name) is None:
        raise ImportError(f'tracker {name!r} is not installed: pip install -e ".[tracking]"')
    return name


def open_tracker(accelerator: Accelerator, settings: Any, resume: Path | None) -> None:
    """Start the tracker; a resumed run goes on in the same one."""
    if settings.tracker == "none":
        return
    out = Path(settings.out).resolve()
    run_id = re.sub(r"\W", "-", out.name) + "-" + hashlib.sha256(str(out).encode()).hexdigest()[:8]
    step = step_of(resume) if resume else None
    options = {
        "tensorboard": {"purge_step": step},
        "wandb": {"id": run_id, "name": out.name, "dir": str(out), "resume": "allow"},
        "trackio": {"name": run_id, "resume": "allow"},
    }
    project = "tensorboard" if settings.tracker == "tensorboard" else "moss_vllm"
    values = {key: value for key, value in dataclasses.asdict(settings).items() if value is not None}
    accelerator.init_trackers(
        project, config=values, init_kwargs={settings.tracker: options[settings.tracker]}
    )


def show_batch(dataset: TrainingSet, size: int) -> None:
    """Print the shapes of the first batch and its first conversation, a turn per line."""
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
