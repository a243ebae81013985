"""Action recognition: the ladder with MOSS beside a frozen image encoder (Sec. 3.4, Tables 1-4, 6, 7, 10).

    python recipes/action_recog.py                                            # the miniature, on one core
    python recipes/action_recog.py --data ssv2 --root DATA/ssv2 --variant b --dry-run
    accelerate launch --multi_gpu recipes/action_recog.py --data ssv2 --root DATA/ssv2 --resume auto
    python eval/action_recog.py --ckpt runs/action_recog/best --root DATA/ssv2

Datasets as they are distributed: ssv1, ssv2, diving48, gym99, gym288, k400; `list`, lines of "video label"
or "folder frames label" of your own; `mini`, drawn by this repository. What is not given follows Table 7 for
the dataset and variant (recipes/configs/action_recog.yaml, moss_vllm/data/views.py). Diving48 and FineGym
start from a Kinetics-400 checkpoint: --start.

    paper, top-1    SSV1 (8 frames)   SSV2 (8)   SSV2 (16)   Diving48   Gym99   Gym288   K400
    MOSS-S / M      60.0 / -          70.5/72.0
    MOSS-B          61.0              71.4       72.4        91.2       93.9    70.2     85.2
    MOSS-L          63.6              72.9       74.4        92.7       94.7    71.1     87.7

The paper trained on 8 RTX 6000 Ada. We have not: no weights, data or GPU were at hand. Ends with a test from
several views of the best checkpoint, written to OUT/test. Killed at any moment, --resume auto goes on.
"""

import dataclasses
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console

from moss_vllm import classifier_checkpoint, engines, start_report
from moss_vllm.action_checkup import BEST, ActionCheckup
from moss_vllm.action_recognition import STORE, Accuracy, ClassLoss, collect_clips, save_accuracy, score_clips
from moss_vllm.action_settings import DATA, choose_views, model_arguments, open_split, plan_steps
from moss_vllm.answer_store import Shard, read_answers
from moss_vllm.config import parse, setting
from moss_vllm.data.cache import choose_frame_reader
from moss_vllm.data.views import PROTOCOLS, ActionTrainingSet, ViewSettings
from moss_vllm.errors import errors_in_one_line
from moss_vllm.files import refuse_unwritable
from moss_vllm.hosts.classifier import VideoClassifier
from moss_vllm.optim import describe, parameter_groups
from moss_vllm.recognition import build_classifier
from moss_vllm.run_folder import choose_resume, hold
from moss_vllm.training import train

PRECISIONS = {"no": None, "bf16": torch.bfloat16}
SCHEDULES = Path(__file__).parent / "configs" / "action_recog.yaml"
VIEWS = ("frames", "size_px", "sampling", "clips", "crops", "repeats")


@dataclass(frozen=True)
class ActionRecog:
    """Settings; None is what Table 7 has for the dataset and variant."""

    data: str = setting("mini", "ssv1, ssv2, diving48, gym99, gym288, k400, list or mini")
    root: str | None = setting(
        None, "folder of the videos, and of the annotation files unless they are named"
    )
    annotation: str | None = setting(None, "folder of the annotation files, if it is another")
    allow_missing: bool = setting(False, "leave out clips without a video; how many is said")
    protocol: str = setting("paper", "views by Table 7, or 'authors': as in their configuration files")
    out: str = setting("runs/action_recog", "where checkpoints and logs go")
    resume: str | None = setting(None, "'auto' for the newest checkpoint in OUT, or a step-NNNNNN folder")
    start: str | None = setting(None, "checkpoint of another dataset to start from; its head is left out")

    variant: str | None = setting(None, "s, b, m or l of Table 6; mini for --data mini (s for others)")
    host: str = setting("ladder", "what MOSS sits in: ladder, or full, aim, dist of Table 10d")
    backbone: str | None = setting(
        None,
        "image encoder: clip_b16, clip_l14, eva02_clip_l14, dino_b16, mae_b16, siglip_b16, a ViT of timm",
    )
    weights: str = setting(
        "pretrained", "its weights: pretrained (hub or cache), random, a .safetensors file"
    )
    temporal: str = setting(
        "moss", "moss, stss1, selfy, atm, r2plus1d, factorised_attention, local_attention or none"
    )
    temporal_layers: str | None = setting(None, "its layers, such as '4' or '4,6' (Table 10b)")
    temporal_options: str | None = setting(None, "its arguments as YAML, such as '{orders: [1, 2, 3]}'")

    frames: int | None = setting(None, "frames of a clip that the encoder sees")
    size_px: int | None = setting(None, "side of what the model sees; scales change with it")
    sampling: str | None = setting(None, "uniform, uniform-k400 or dense")
    clips: int | None = setting(None, "clips of a test; each in CROPS views")
    crops: int | None = setting(None, "1 (centre) or 3")
    repeats: int | None = setting(None, "training views of a clip in a step (repeated augmentation)")
    randaugment: str | None = setting(None, "timm's notation; 'none' for none")

    epochs: int | None = setting(None, "passes over the training clips")
    clips_a_step: int | None = setting(None, "clips a step over all processes")
    batch_size: int = setting(16, "clips a process and micro-batch, each in REPEATS views")
    lr: float | None = setting(None, "peak learning rate")
    weight_decay: float | None = setting(None, "of AdamW (0.15 with the ladder)")
    layer_decay: float | None = setting(None, "of the rates of earlier layers, host full (0.7)")
    warmup_epochs: float = setting(4.0, "epochs of linear warm-up (a fifth of them, if that is less)")
    floor: float = setting(0.01, "rate at the end of the cosine, as a share of the peak")
    smoothing: float = setting(0.1, "of labels")
    clip_norm: float = setting(20.0, "largest norm of the gradient; the paper names none")
    eval_every: int = setting(2, "epochs between tests with one view; the best checkpoint is kept")
    eval_batch_size: int = setting(8, "clips tested at once")
    precision: str = setting("no", "'no' (float32) or 'bf16'; what trains is float32 in both")
    workers: int = setting(2, "processes that read clips")
    cache: str | None = setting(None, "folder of decoded clips, read and filled")
    cache_gib: float | None = setting(None, "add to the cache up to this size; none: no limit")
    max_bad_share: float = setting(0.005, "stop when more clips than this cannot be read")
    keep: int | None = setting(None, "newest checkpoints to keep on disk beside the best; none: all of them")
    log_every: int = setting(20, "steps between log lines")
    steps: int | None = setting(None, "stop after as many steps; the schedule fits them")
    seed: int = setting(0, "of weights, data order and views")
    tracker: str = setting("tensorboard", "'tensorboard', 'wandb', 'trackio' or 'none'")


def main(argv: Sequence[str] | None = None) -> Accuracy | None:
    """Train, then test the best checkpoint; returns what the test found (None for a dry run)."""
    settings, flags = parse(ActionRecog, argv, __doc__)
    settings = fill_in(settings)
    check(settings)
    tracker = start_report.choose_tracker(settings.tracker)
    accelerator = engines.start(
        tracker=None if flags.dry_run else tracker, folder=settings.out, precision=settings.precision
    )
    if engines.name(accelerator) not in ("one process", "DDP"):
        raise ValueError(
            f"{engines.name(accelerator)}: this recipe runs in one process or under DDP (--multi_gpu)"
        )
    command = shlex.join(sys.argv if argv is None else ["recipes/action_recog.py", *argv])
    with nullcontext() if flags.dry_run else hold(Path(settings.out), accelerator):
        return train_and_test(settings, accelerator, command, dry_run=flags.dry_run)


def train_and_test(
    settings: ActionRecog, accelerator: Accelerator, command: str, *, dry_run: bool
) -> Accuracy | None:
    """Build and report, and but for a dry run train and test; returns what the test found."""
    out = Path(settings.out)
    resume = choose_resume(out, settings.resume, dry_run=dry_run)
    where: dict[str, Any] = {"annotation": settings.annotation, "allow_missing": settings.allow_missing}
    with accelerator.main_process_first():
        splits = {name: open_split(settings.data, settings.root, name, **where) for name in ("train", "test")}
    if splits["train"].classes != splits["test"].classes:
        raise ValueError(f"{settings.data}: train and test name other classes; are they of one release?")
    set_seed(settings.seed)
    how = model_arguments(settings, len(splits["train"].classes))
    try:
        model = build_classifier(**how)
    except (TypeError, RuntimeError) as error:  # a keyword that the module has not, a size that cannot be
        if not how["temporal_options"]:
            raise
        raise ValueError(
            f"{settings.temporal!r} cannot be built with temporal_options {settings.temporal_options!r} "
            f"({error}); moss_vllm/core has its arguments"
        ) from error
    set_seed(settings.seed + accelerator.process_index)  # processes drop out different weights
    given = {name: getattr(settings, name) for name in VIEWS} | {"randaugment": settings.randaugment}
    views = choose_views(settings.data, settings.protocol, given, model)
    if settings.randaugment == "none":
        views = dataclasses.replace(views, randaugment=None)
    if settings.start and not resume:
        classifier_checkpoint.restore(Path(settings.start), model, but_head=True)
    table = model.rate_table(settings.lr, settings.weight_decay, settings.layer_decay)
    groups = parameter_groups(model, table)
    read = choose_frame_reader(settings.cache, settings.cache_gib)
    dataset = ActionTrainingSet(splits["train"], views, seed=settings.seed, read=read)
    steps_an_epoch, loop = plan_steps(settings, len(dataset), accelerator.num_processes)
    record = {
        "settings": dataclasses.asdict(settings),
        "engine": engines.name(accelerator),
        "processes": accelerator.num_processes,
        "parameters": describe(model, table),
        "data_lines": [split.report() for split in splits.values()],
        "views": dataclasses.asdict(views),
        "steps": loop.steps,
        "disk": start_report.plan_disk(model, out, loop, resume),
        "clips_a_step": loop.batch_size * loop.accumulate * accelerator.num_processes,
        "command": command,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if accelerator.is_main_process:
        show(record, model)
    if dry_run:
        if accelerator.is_main_process:
            print("\n".join(f"{name}: {value}" for name, value in record["settings"].items()))
            for name, value in dataset.collate(
                [dataset[index] for index in range(min(2, len(dataset)))]
            ).items():
                print(f"{name}: {tuple(value.shape) if isinstance(value, torch.Tensor) else value}")
        return None
    start_report.refuse_full_disk(record["disk"], out)
    run = {
        "model": how,
        "classes": list(splits["train"].classes),
        "data": settings.data,
        "protocol": settings.protocol,
        **{name: record[name] for name in ("views", "settings", "processes", "engine", "command")},
    }
    dtype = PRECISIONS[settings.precision]
    test: dict[str, Any] = {
        "batch_size": settings.eval_batch_size,
        "workers": settings.workers,
        "device": accelerator.device,
        "dtype": dtype,
        "shard": Shard(accelerator.process_index, accelerator.num_processes),
        "read": read,
    }

    def save(folder: Path, state: dict[str, torch.Tensor], step: int) -> None:
        classifier_checkpoint.save(folder, model, {**run, "step": step}, state=state)

    def announce() -> None:
        if accelerator.is_main_process:
            start_report.write(record, out, resume)
        start_report.open_tracker(accelerator, settings, resume)

    checkup = ActionCheckup(accelerator, model, splits["test"], views, out, save=save, test=test)
    lines = train(
        accelerator,
        ClassLoss(model.to(accelerator.device), dtype, smoothing=settings.smoothing),
        groups,
        dataset,
        loop,
        out=out,
        state=lambda: classifier_checkpoint.trained_state(model),
        save=save,
        restore=lambda folder: classifier_checkpoint.restore(folder, model),
        resume=resume,
        announce=announce,
        evaluate=checkup,
        evaluate_every=min(loop.steps, settings.eval_every * steps_an_epoch),
    )
    if lines and lines[-1]["step"] < loop.steps:  # stopped by a signal
        accelerator.end_training()
        return None
    if checkup.last_step() != loop.steps:
        checkup(loop.steps)
    best = classifier_checkpoint.load(out / BEST, weights=how["weights"], device=accelerator.device)
    header = {"checkpoint": str(out / BEST), "run": {"step": best.run["step"]}}
    if accelerator.is_main_process:
        drop_other_test(out / "test", best.run["step"])
    accelerator.wait_for_everyone()
    score_clips(best.model, splits["test"], views, out / "test", header=header, **test)
    accelerator.wait_for_everyone()
    found = collect_clips(out / "test", splits["test"])  # of all processes
    if accelerator.is_main_process:
        found = finish(found, out / "test", settings.data, views, best.run["step"])
    accelerator.end_training()
    return found


def fill_in(settings: ActionRecog) -> ActionRecog:
    """What was left open, from the table of schedules."""
    if settings.data not in DATA:
        raise ValueError(f"data is {settings.data!r}; it must be one of {', '.join(DATA)}")
    mini = settings.data == "mini"
    variant = settings.variant or ("mini" if mini else "s")
    mini_vit = variant == "mini" and settings.backbone is None
    weights = "random" if mini_vit and settings.weights == "pretrained" else settings.weights
    table = yaml.safe_load(SCHEDULES.read_text())
    rows = table[settings.data]
    if variant not in rows:  # a variant on data that the paper has not for it
        rows = table["mini" if variant == "mini" else "ssv"]
    row = {
        "weight_decay": 0.15,
        **(rows.get(variant) or next(iter(rows.values()))),
        **table["hosts"].get(settings.host, {}),
    }
    asked = {name: value for name, value in row.items() if getattr(settings, name) is None}
    if mini and settings.size_px is None and variant != "mini":
        asked["size_px"] = 224
    return dataclasses.replace(settings, variant=variant, weights=weights, **asked)


def check(settings: ActionRecog) -> None:
    """Refuse settings that cannot be meant, all at once."""
    counts = (
        "epochs",
        "clips_a_step",
        "batch_size",
        "eval_every",
        "eval_batch_size",
        "log_every",
        "steps",
        "keep",
    )
    wrong = [
        f"{name} is {value}; it must be at least 1"
        for name in counts
        if (value := getattr(settings, name)) is not None and value < 1
    ]
    shares = ("lr", "weight_decay", "layer_decay", "floor", "smoothing", "max_bad_share")
    wrong += [
        f"{name} is {value}; it must be a number from 0 to 1"
        for name in shares
        if (value := getattr(settings, name)) is not None and not 0 <= value <= 1
    ]
    wrong += [
        f"{name} is {value}; it must be at least 0"
        for name in ("workers", "seed", "warmup_epochs")
        if not (value := getattr(settings, name)) >= 0
    ]
    if not settings.clip_norm > 0:
        wrong.append(f"clip_norm is {settings.clip_norm}; it must be above 0")
    wrong += [
        f"{name} is empty; name a folder or a file"
        for name in ("root", "annotation", "out", "resume", "start", "cache", "weights")
        if getattr(settings, name) == ""
    ]
    if settings.protocol not in PROTOCOLS[settings.data]:
        known = ", ".join(PROTOCOLS[settings.data])
        wrong.append(f"protocol is {settings.protocol!r}; it must be one of {known}")
    if settings.annotation and Path(settings.annotation).is_file():
        wrong.append(f"annotation {settings.annotation} is a file; name the folder of both lists")
    if settings.precision not in PRECISIONS:
        wrong.append(f"precision is {settings.precision!r}; it must be one of {', '.join(PRECISIONS)}")
    if wrong:
        raise ValueError("; ".join(wrong))
    refuse_unwritable(Path(settings.out), "out")
    if settings.cache:
        refuse_unwritable(Path(settings.cache), "cache")


def show(record: dict[str, Any], model: VideoClassifier) -> None:
    """Print what the run will do."""
    console, settings, views = Console(), record["settings"], record["views"]
    for line in record["data_lines"]:
        console.print(line, highlight=False)
    placed = getattr(model, "ladder", model).temporal_names
    layers = ", ".join(f"after layer {layer}" for layer in placed) or "nowhere"
    console.print(
        f"{settings['host']} {settings['variant']} beside {model.encoder_name}, weights "
        f"{settings['weights']}; {settings['temporal']} {layers}",
        highlight=False,
    )
    console.print(
        f"{record['engine']} x{record['processes']}, precision {settings['precision']}: {record['steps']} "
        f"steps of {record['clips_a_step']} clips x {views['repeats']} views of {views['frames']} frames, "
        f"{views['size_px']} px, sampled {views['sampling']}; tests show {views['clips']} x {views['crops']}",
        highlight=False,
    )
    start_report.show_parameters(console, record["parameters"])
    start_report.show_disk(record["disk"])


def drop_other_test(folder: Path, step: int) -> None:
    """Remove the test of another step: a finished run was given more of them."""
    header = read_answers(folder / STORE).header
    if header and header["run"]["step"] != step:
        shutil.rmtree(folder)


def finish(found: Accuracy, folder: Path, data: str, views: ViewSettings, step: int) -> Accuracy:
    """Print the scores and write them beside the clips' lines."""
    about = {"data": data, "step": step, "views": f"{views.clips} clips x {views.crops} crops"}
    save_accuracy(found, folder, about)
    print(f"test of step {step}, {about['views']}: {found}; written to {folder}")
    return found


if __name__ == "__main__":
    with errors_in_one_line("the same command with --resume auto goes on from the last checkpoint"):
        main()
