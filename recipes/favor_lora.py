"""Fine-tune VideoLLaMA3 with MOSS on FAVOR-Train captions: LLM by LoRA, MOSS and projector whole (Sec. 4.5).

    accelerate launch recipes/favor_lora.py                       # the miniature on the motion world, minutes
    accelerate launch recipes/favor_lora.py --config recipes/configs/favor_videollama3_2b.yaml \
        --data FAVOR --model OWNER/VIDEOLLAMA3_2B                 # the paper's run, 8 GPU-hours

Expected (Table 5, VideoLLaMA3-2B): MotionBench-Dev 51.4 -> 54.2 and FAVOR-Bench 45.5 -> 46.6 with MOSS,
against the same training without (`--no-use-moss`). The miniature's numbers are in the README.

Writes OUT/step-NNNNNN folders that `eval/motionbench.py --ckpt` and `moss_vllm.vlm.checkpoint.load` open,
train.jsonl and TensorBoard logs. Run it again with `--resume auto` after an interruption.
"""

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import PeftModel, set_peft_model_state_dict
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from moss_vllm.config import parse, setting
from moss_vllm.core import MOSS
from moss_vllm.data.captions import CaptionDataset
from moss_vllm.data.favor import read_favor_train
from moss_vllm.data.motion_world import ensure_world
from moss_vllm.optim import VIDEO_LLM_RATES, describe, parameter_groups, with_rates
from moss_vllm.training import Loop, latest_checkpoint, train
from moss_vllm.vlm import checkpoint


@dataclass(frozen=True)
class FavorLora:
    """Settings; the defaults are the miniature's. The paper's are in configs/favor_videollama3_2b.yaml."""

    model: str = setting("miniature", "native VideoLLaMA3 folder or hub id, or 'miniature'")
    revision: str | None = setting(None, "revision of a hub model")
    data: str | None = setting(
        None, "FAVOR-Train folder, or its json; none: the motion world, made on first use"
    )
    videos: str | None = setting(None, "folder of the videos, if not found beside the annotation")
    out: str = setting("runs/favor_lora", "where checkpoints and logs go")
    use_moss: bool = setting(True, "attach MOSS; without, the '+ FAVOR-Train' row of Table 5")
    resume: str | None = setting(None, "'auto' for the newest checkpoint in OUT, or a step-NNNNNN folder")

    sample_fps: float = setting(2.0, "frames sampled per second")
    short_side_px: int = setting(84, "shorter side of a frame in pixels")
    max_frames: int = setting(180, "frames a clip at most; longer clips are thinned evenly")
    compress_tokens: bool = setting(False, "drop video tokens of patches that did not change")
    max_tokens: int = setting(4096, "longer conversations are rejected whole")

    lr_moss: float = setting(3e-3, "peak learning rate of MOSS")
    lr_projector: float = setting(3e-4, "peak learning rate of the projector")
    lr_llm: float = setting(1e-3, "peak learning rate of the LLM's LoRA weights")
    lora_rank: int = setting(16, "rank of LoRA")
    lora_alpha: int = setting(16, "alpha of LoRA")
    lora_dropout: float = setting(0.0, "dropout of LoRA")

    steps: int = setting(360, "optimizer steps")
    batch_size: int = setting(16, "clips a process and micro-batch")
    accumulate: int = setting(1, "micro-batches a step")
    save_every: int = setting(120, "steps between checkpoints")
    log_every: int = setting(20, "steps between log lines")
    workers: int = setting(1, "processes that decode")
    seed: int = setting(0, "of weights and data order")
    precision: str = setting("no", "'no', 'bf16' or 'fp16'")
    checkpoint_llm: bool = setting(False, "recompute the LLM's activations to save memory")
    max_rejected_share: float = setting(0.005, "stop when more rows than this cannot be used")


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Train; returns the logged steps (none for a dry run)."""
    settings, flags = parse(FavorLora, argv, __doc__)
    accelerator = Accelerator(
        gradient_accumulation_steps=settings.accumulate,
        mixed_precision=settings.precision,
        step_scheduler_with_optimizer=False,
    )
    set_seed(settings.seed)
    out = Path(settings.out)
    with accelerator.main_process_first():
        data = Path(settings.data) if settings.data else ensure_world() / "FAVOR"
    dataset_rows = read_favor_train(data, settings.videos or (data if data.is_dir() else data.parent))

    # The miniature names its own MOSS sizes; without any, the config's defaults are the paper's.
    moss = checkpoint.base_record(settings.model).get("moss", {}) if settings.use_moss else None
    base = checkpoint.load_base(settings.model, moss=moss, revision=settings.revision)
    processor = checkpoint.load_processor(settings.model)
    model = checkpoint.attach_lora(
        base, rank=settings.lora_rank, alpha=settings.lora_alpha, dropout=settings.lora_dropout
    )
    if settings.checkpoint_llm:
        language_model = base.model.language_model
        # transformers 5.23 has the first name and warns about the second; 5.17 has the second only.
        enable = getattr(language_model, "activation_checkpointing_enable", None)
        (enable or language_model.gradient_checkpointing_enable)({"use_reentrant": False})
    table = [row for row in VIDEO_LLM_RATES if settings.use_moss or row.name != "moss"]
    rates = {"moss": settings.lr_moss, "projector": settings.lr_projector, "llm lora": settings.lr_llm}
    table = list(with_rates(table, {row.name: rates[row.name] for row in table if row.lr is not None}))
    groups = parameter_groups(model, table)
    dataset = CaptionDataset(
        dataset_rows,
        processor,
        sample_fps=settings.sample_fps,
        short_side_px=settings.short_side_px,
        max_frames=settings.max_frames,
        compress=settings.compress_tokens,
        max_tokens=settings.max_tokens,
    )
    if accelerator.is_main_process:
        _report(settings, accelerator, model, table, dataset)
    if flags.dry_run:
        if accelerator.is_main_process:
            print("\n".join(f"{name}: {value}" for name, value in dataclasses.asdict(settings).items()))
            _show_batch(dataset, settings.batch_size)
        return []

    protocol = {
        name: getattr(settings, name)
        for name in ("sample_fps", "short_side_px", "max_frames", "compress_tokens")
    }
    run = {
        "base_model": settings.model,
        "base_revision": settings.revision or getattr(base.config, "_commit_hash", None),
        "moss": moss,
        "protocol": protocol,
        "settings": dataclasses.asdict(settings),
        "processes": accelerator.num_processes,
        "command": shlex.join(sys.argv if argv is None else ["recipes/favor_lora.py", *argv]),
    }

    def save(folder: Path, model: PeftModel, step: int) -> None:
        checkpoint.save(folder, model, processor, {**run, "step": step})

    loop = Loop(
        steps=settings.steps,
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        save_every=settings.save_every,
        log_every=settings.log_every,
        workers=settings.workers,
        seed=settings.seed,
        max_rejected_share=settings.max_rejected_share,
    )
    resume = (
        latest_checkpoint(out) if settings.resume == "auto" else settings.resume and Path(settings.resume)
    )
    lines = train(
        accelerator, model, groups, dataset, loop, out=out, save=save, restore=_restore, resume=resume
    )
    if accelerator.is_main_process and lines:
        print(f"done: loss {lines[-1]['loss']:.4f}; checkpoint {out}/step-{settings.steps:06d}")
    accelerator.end_training()
    return lines


def _restore(folder: Path, model: PeftModel) -> None:
    set_peft_model_state_dict(model, load_file(folder / checkpoint.ADAPTER_FILE))


def _report(
    settings: FavorLora,
    accelerator: Accelerator,
    model: PeftModel,
    table: Sequence[Any],
    dataset: CaptionDataset,
) -> None:
    console = Console()
    if settings.model == "miniature":
        console.print(
            "This is the miniature: real classes and files, but a toy world. For the paper's run see --help."
        )
    attention = model.get_base_model().config._attn_implementation
    console.print(
        f"{accelerator.distributed_type.value} x{accelerator.num_processes} on {accelerator.device.type}, "
        f"precision {settings.precision}, attention {attention}, {len(dataset)} clips, "
        f"{settings.steps} steps of "
        f"{settings.batch_size} x {accelerator.num_processes} x {settings.accumulate} clips"
    )
    if settings.use_moss:
        console.print(next(m for m in model.modules() if isinstance(m, MOSS)).path())
    rows = Table("group", "pattern", "tensors", "parameters", "learning rate", title="what trains")
    for name, pattern, tensors, parameters, rate in describe(model, table):
        rows.add_row(name, pattern, str(tensors), f"{parameters:,}", rate)
    console.print(rows)


def _show_batch(dataset: CaptionDataset, size: int) -> None:
    batch = dataset.collate([dataset[index] for index in range(min(size, len(dataset)))])
    for name, value in batch.items():
        print(f"{name}: {tuple(value.shape) if isinstance(value, torch.Tensor) else value}")
    text = dataset.processor.tokenizer.decode(batch["input_ids"][0])
    video_token = dataset.processor.video_token
    print(f"first conversation, each run of {video_token} shown once:")
    while video_token * 2 in text:
        text = text.replace(video_token * 2, video_token)
    print(text)
    lengths = batch["attention_mask"].sum(-1).tolist()
    print(json.dumps({"tokens_per_clip": {"min": min(lengths), "max": max(lengths)}}))


if __name__ == "__main__":
    main()
