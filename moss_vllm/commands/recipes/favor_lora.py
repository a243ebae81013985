"""Fine-tune a Video-LLM with MOSS on FAVOR-Train captions: LLM by LoRA, MOSS and projector whole (Sec. 4.5).

    python recipes/favor_lora.py                                  # the miniature on the motion world, minutes
    accelerate launch recipes/favor_lora.py --config recipes/configs/favor_videollama3_2b.yaml \\
        --data FAVOR/prepared/kept.json --model VideoLLaMA3-2B-native  # the paper's run; Sec. 4.5: 8 GPU-h
    accelerate launch --multi_gpu ...                             # DDP
    accelerate launch --use_deepspeed --deepspeed_config_file recipes/configs/deepspeed_zero2.json ...
    python recipes/favor_lora.py --dry-run --model shape:2b       # parameters and memory, without weights
    python recipes/favor_lora.py --model miniature_qwen2_5_vl     # another family; see docs/training.md

Expected (Table 5, VideoLLaMA3-2B): MotionBench-Dev 51.4 -> 54.2 and FAVOR-Bench 45.5 -> 46.6 with MOSS,
against the same training without (`--no-use-moss`). The miniature's numbers are in the README.

Writes OUT/step-NNNNNN folders that `eval/motionbench.py --ckpt` and `moss_vllm.vlm.checkpoint.load` open,
settings.json, train.jsonl and the tracker's logs; `scripts/report.py OUT` makes one page of them. After any
interruption, the same command with `--resume auto` continues.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from moss_vllm.commands import is_starting
from moss_vllm.runtime.ranges import FPS, SHARE_BELOW_1, SHORTER_PX
from moss_vllm.runtime.screen import say
from moss_vllm.training.settings import (
    Count,
    FromZero,
    Positive,
    Seed,
    Share,
    begin,
    ignored,
    origins,
    parse,
    refuse,
    setting,
)


@dataclass(frozen=True)
class FavorLora:
    """Settings; the defaults are for a miniature, configs/favor_videollama3_2b.yaml is for other models."""

    model: str = setting(
        "miniature",
        "folder or hub id of a VideoLLaMA3, Qwen2.5-VL or another family of docs/training.md; 'miniature', "
        "'miniature_qwen2_5_vl'; 'shape:2b' and others",
        heading="model and data",
    )
    revision: str | None = setting(None, "revision of a hub model")
    data: str | None = setting(
        None,
        "folder, annotation or table, data set of the hub (OWNER/NAME:SPLIT@REVISION), or a .yaml list of "
        "them with weights (default: the motion world)",
    )
    stream: bool = setting(
        False, "read a table or hub data set as it comes, without measuring every row; a list names its own"
    )
    videos: str | None = setting(None, "folder of the videos (default: that of the annotation)")
    cache: str | None = setting(None, "folder of decoded clips, read and filled (scripts/cache_frames.py)")
    cache_gib: Positive | None = setting(None, "add to the cache up to this size (default: no limit)")
    decoder: Literal["auto", "pyav", "decord", "torchcodec"] = setting(
        "auto", "what reads video files; auto is PyAV"
    )
    out: str = setting("runs/favor_lora", "where checkpoints and logs go")
    use_moss: bool = setting(True, "attach MOSS; --no-use-moss trains the '+ FAVOR-Train' row of Table 5")
    resume: str | None = setting(None, "'auto' for the newest checkpoint in OUT, or a step-NNNNNN folder")

    sample_fps: Annotated[float, FPS] | None = setting(
        None,
        "frames sampled per second (default: 2, and 4 for models whose encoder joins two frames)",
        heading="clips",
    )
    short_side_px: Annotated[int, SHORTER_PX] = setting(84, "shorter side of a frame in pixels")
    max_frames: Count | None = setting(
        None, "frames per clip at most (default: 180, or 360 as above); longer clips are thinned evenly"
    )
    compress_tokens: bool = setting(False, "drop video tokens of patches that did not change")
    max_tokens: Count = setting(4096, "longer conversations are rejected whole")

    lr_moss: Share = setting(3e-3, "peak learning rate of MOSS", heading="learning rates and LoRA")
    lr_projector: Share = setting(3e-4, "peak learning rate of the projector")
    lr_llm: Share = setting(1e-3, "peak learning rate of the LLM's LoRA weights")
    lora_rank: Count = setting(16, "rank of LoRA")
    lora_alpha: Count = setting(16, "alpha of LoRA")
    lora_dropout: Annotated[float, SHARE_BELOW_1] = setting(0.0, "dropout of LoRA")

    steps: Count = setting(540, "optimizer steps", heading="steps, checkpoints and memory")
    batch_size: Count = setting(16, "clips per process and micro-batch")
    accumulate: Count = setting(1, "micro-batches per step")
    clips_a_step: Count | None = setting(
        None, "clips per step over all processes; accumulate is set to come nearest to it"
    )
    save_every: Count = setting(120, "steps between checkpoints")
    keep: Count | None = setting(None, "newest checkpoints to keep on disk (default: all)")
    log_every: Count = setting(20, "steps between log lines")
    profile_steps: Count | None = setting(None, "steps to trace with torch's profiler (default: none)")
    workers: FromZero = setting(1, "processes that decode")
    seed: Seed = setting(0, "seed of the new weights and of dropout")
    data_seed: Seed | None = setting(None, "seed of the order of rows (default: SEED)")
    precision: Literal["fp32", "bf16"] = setting(
        "fp32", "number format of the arithmetic; what trains is kept in fp32 in both", old={"no": "fp32"}
    )
    quantize: bool = setting(False, "keep the LLM's frozen weights in 4 bits, with bitsandbytes")
    checkpoint_llm: bool = setting(False, "recompute the LLM's activations: less memory, slower")
    checkpoint_moss: bool = setting(False, "recompute those of MOSS's orders: less memory, slower")
    max_rejected_share: Share = setting(0.01, "do not start when more rows than this cannot be used")
    max_bad_share: Share = setting(0.005, "stop when more rows than this turn out unusable in the run")

    held_out: FromZero = setting(
        0,
        "rows, at most, that are kept out of training for the held-out loss, by whole videos; 0: none",
        heading="evaluation and curves",
    )
    eval_data: str | None = setting(None, "MotionBench or FAVOR-Bench folder to ask from while training")
    eval_every: Count = setting(100, "steps between evaluations, with --held-out or --eval-data")
    eval_questions: Count = setting(200, "questions asked each time")
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = setting("tensorboard", "where curves go")


if is_starting(__name__):
    begin(FavorLora, __doc__, out_depends_on="model")

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import PeftModel

from moss_vllm.core.moss import checkpoint_moss
from moss_vllm.evaluation.in_training import Checkup
from moss_vllm.runtime.precision import AUTOCAST
from moss_vllm.training import engines, run_folder, start
from moss_vllm.training.loop import Loop, train
from moss_vllm.training.optim import Rate, parameter_groups, with_rates
from moss_vllm.training.row_order import RowOrder, StreamOrder
from moss_vllm.video.cache import choose_reader
from moss_vllm.video.decoders import check_decoder
from moss_vllm.vlm import checkpoint, start_report
from moss_vllm.vlm.adapter import attach_lora, choose_rates
from moss_vllm.vlm.attention import choose_attention
from moss_vllm.vlm.base import is_miniature, load_base, moss_to_train
from moss_vllm.vlm.batches import TrainingSet
from moss_vllm.vlm.families import family_of
from moss_vllm.vlm.loss import AnswerLoss
from moss_vllm.vlm.places import is_hub_id
from moss_vllm.vlm.processor import check_processor, load_processor
from moss_vllm.vlm.settings import borrower, fit_clips, plan_rows, preset_name, sampling_of, set_accumulate
from moss_vllm.vlm.streamed import StreamedSet

CONFIGS = Path(__file__).parent / "configs"
NEEDS = {"videos": "data", "cache_gib": "cache", "lr_moss": "use_moss", "checkpoint_moss": "use_moss"}
NEEDS |= {"eval_questions": "eval_data"}
Layers = Mapping[str, Mapping[str, Any]]  # from `settings.parse`


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Train; returns the logged steps (none for a dry run)."""
    settings, flags = parse(FavorLora, argv, __doc__, preset)
    settings = check(settings, flags.layers)
    settings = name_own_out(settings, flags.layers)
    if settings.model.startswith("shape:"):
        start_report.show_shape(settings, origins(flags.layers), dry_run=flags.dry_run)
        return []
    command = start.command_line("recipes/favor_lora.py", argv)
    with start.open_run(settings, dry_run=flags.dry_run) as accelerator:
        return fine_tune(settings, flags.layers, accelerator, command, dry_run=flags.dry_run)


def fine_tune(
    settings: FavorLora, layers: Layers, accelerator: Accelerator, command: str, *, dry_run: bool
) -> list[dict[str, Any]]:
    """Plan, build and report; train unless it is a dry run. Returns the logged steps."""
    out = Path(settings.out)
    resume = run_folder.choose_resume(out, settings.resume, dry_run=dry_run)
    if settings.clips_a_step:
        settings = set_accumulate(settings, accelerator, settings.clips_a_step)
    engines.refuse_quantized(accelerator, settings.quantize)
    set_seed(settings.seed)
    processor = load_processor(settings.model, settings.revision)
    file = preset(dataclasses.asdict(settings))  # of the nearest model: the user did not ask for its frames
    if file and (model_type := borrower(settings.model, settings.revision)):
        told = f"{model_type} has no preset of its own and takes {file.name}"
        accelerator.print(f"{told}: look at its max_frames and max_tokens")
    given = {name for name, origin in origins(layers).items() if not file or origin != file.name}
    settings = fit_clips(settings, processor, given)
    sampling = sampling_of(settings, processor)
    with accelerator.main_process_first():
        writer = accelerator.is_main_process
        rows, unseen, streams = plan_rows(settings, processor, None if dry_run else out, write=writer)
    moss = moss_to_train(settings.model, settings.revision) if settings.use_moss else None
    model, table = build_model(settings, moss, accelerator.device)
    check_processor(settings.model, processor, model.get_base_model().config)
    groups = parameter_groups(model, table)
    set_seed(settings.seed + accelerator.process_index)  # processes drop out different weights
    read = choose_reader(settings.cache, settings.cache_gib, settings.decoder)
    how: dict[str, Any] = {"read": read, "sampling": sampling}
    how |= {"compress": settings.compress_tokens, "max_tokens": settings.max_tokens}
    reader = TrainingSet(rows.rows, processor, shares=rows.shares, **how)
    dataset: TrainingSet | StreamedSet = reader
    digests = {"training set": rows.digest()} | ({"held-out set": unseen.digest()} if unseen else {})
    if rows.streamed:
        dataset = StreamedSet(
            streams,
            reader,
            batch_size=settings.batch_size,
            processes=accelerator.num_processes,
            workers=settings.workers,
            seed=start.data_seed(settings),
        )
        digests["division of the stream"] = dataset.division()
    loop = Loop(
        steps=settings.steps,
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        save_every=settings.save_every,
        keep=settings.keep,
        evaluate_every=settings.eval_every,
        log_every=settings.log_every,
        profile_steps=settings.profile_steps,
        workers=settings.workers,
        seed=start.data_seed(settings),
        max_bad_share=settings.max_bad_share,
        order=StreamOrder if rows.streamed else RowOrder,
    )
    disk, record = start.plan_disk(model, out, loop, resume), {}
    if accelerator.is_main_process:
        record = start_report.describe_fine_tuning(
            settings, accelerator, model, table, rows, sampling, command
        )
        record |= {"origins": origins(layers), "disk": disk}
        start_report.show_report(record)
    if dry_run:
        if accelerator.is_main_process:
            start_report.show_dry_run(record, dataset)
        return []
    start.refuse_full_disk(disk, out)

    run = {
        "moss": moss,
        "protocol": {**sampling.settings, "compress_tokens": settings.compress_tokens},
        "settings": dataclasses.asdict(settings),
        "data": rows.origins,
        "processes": accelerator.num_processes,
        "engine": engines.name(accelerator),
        "command": command,
    }
    checkup = None
    if settings.eval_data:
        data = Path(settings.eval_data)
        checkup = Checkup(accelerator, model, processor, run["protocol"], data, out, read=read)
        checkup.choose(settings.eval_questions)
        digests["set of questions"] = checkup.digest()
    lines = train(
        accelerator,
        AnswerLoss(model, AUTOCAST[settings.precision]),
        groups,
        dataset,
        loop,
        out=out,
        keeper=checkpoint.Keeper(model, processor, run),
        resume=resume,
        started=lambda: start.announce(accelerator, settings, record, out, resume),
        evaluate=checkup,
        unseen=TrainingSet(unseen.rows, processor, **how) if unseen else None,
        data=digests,
    )
    if accelerator.is_main_process and (not lines or lines[-1]["step"] == settings.steps):
        run_folder.mark_finished(out, settings.steps)
        if lines:
            say(f"done: loss {lines[-1]['loss']:.4f}; checkpoint {out}/step-{settings.steps:06d}")
    engines.end(accelerator)
    return lines


def preset(values: Mapping[str, Any]) -> Path | None:
    """The file of settings for a model that is not a miniature: the defaults are a miniature's."""
    model = values.get("model") or "miniature"
    if not model.startswith("shape:") and is_miniature(model):
        return None
    return CONFIGS / f"favor_{preset_name(model, values.get('revision'))}.yaml"


def name_own_out(settings: FavorLora, layers: Layers) -> FavorLora:
    """The settings, with a name of its own for OUT where the preset is another family's."""
    file = preset(dataclasses.asdict(settings))
    model_type = borrower(settings.model, settings.revision) if file else None
    if file is None or model_type is None or origins(layers).get("out") != file.name:
        return settings
    return dataclasses.replace(settings, out=f"runs/favor_{model_type}")


def check(settings: FavorLora, layers: Layers) -> FavorLora:
    """Refuse impossible settings, all at once; returns the others without what a later layer replaces."""
    wrong = ignored(settings, layers, NEEDS | ({} if settings.held_out else {"eval_every": "eval_data"}))
    if settings.held_out and settings.stream:
        wrong.append("held_out is for rows that are all known before the first step; leave it or stream out")
    if settings.revision and not is_hub_id(settings.model):
        wrong.append(f"revision is {settings.revision} and {settings.model} is no hub id; leave revision out")
    if settings.eval_data and settings.eval_every > settings.steps:
        wrong.append(f"eval_every is {settings.eval_every} of {settings.steps} steps: nothing would be asked")
    source, order = origins(layers), list(layers)
    if settings.clips_a_step and "accumulate" in source:
        if source["accumulate"] == source["clips_a_step"]:
            wrong.append(
                "accumulate and clips_a_step are both given, and the second sets the first; give one"
            )
        elif order.index(source["accumulate"]) > order.index(source["clips_a_step"]):
            settings = dataclasses.replace(settings, clips_a_step=None)
    refuse(settings, wrong)
    check_decoder(settings.decoder)
    return settings


def build_model(
    settings: FavorLora, moss: dict[str, Any] | None, device: torch.device
) -> tuple[PeftModel, list[Rate]]:
    """The base with MOSS and LoRA, and the table of what trains at which rate."""
    base = load_base(
        settings.model,
        moss=moss,
        revision=settings.revision,
        dtype=AUTOCAST[settings.precision],
        attention=choose_attention(device, AUTOCAST[settings.precision])[0],
        quantize=settings.quantize,
    )
    family = family_of(base.config)
    if not settings.use_moss and family.has_moss(base.config):
        raise ValueError(
            f"{settings.model} has a MOSS already; leave --no-use-moss out, or name a base without MOSS"
        )
    model = attach_lora(
        base, rank=settings.lora_rank, alpha=settings.lora_alpha, dropout=settings.lora_dropout
    )
    if settings.checkpoint_llm:
        language_model: Any = base.get_submodule(family.language_model)
        # transformers 5.23 has the first name and warns about the second; 5.17 has the second only.
        enable = getattr(language_model, "activation_checkpointing_enable", None)
        (enable or language_model.gradient_checkpointing_enable)({"use_reentrant": False})
    checkpoint_moss(model, settings.checkpoint_moss)
    table = choose_rates(base)
    rates = {"moss": settings.lr_moss, "projector": settings.lr_projector, "llm lora": settings.lr_llm}
    return model, list(with_rates(table, {row.name: rates[row.name] for row in table if row.lr is not None}))
