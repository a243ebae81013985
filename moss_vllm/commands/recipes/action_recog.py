"""Action recognition: the ladder with MOSS beside a frozen image encoder (Sec. 3.4, Tables 1-4, 6, 7, 10).

    python recipes/action_recog.py                                            # the miniature, on one core
    python recipes/action_recog.py --data ssv2 --root DATA/ssv2 --variant b --dry-run
    accelerate launch --multi_gpu recipes/action_recog.py --data ssv2 --root DATA/ssv2 --resume auto
    python eval/action_recog.py --ckpt runs/action_recog/best --root DATA/ssv2

Datasets as they are distributed: ssv1, ssv2, diving48, gym99, gym288, k400; `list`, lines of "video label"
or "folder frames label" of your own; `mini`, drawn by this repository. Settings that are left out follow
Table 7 for the dataset and variant (configs/action_recog.yaml, moss_vllm/recognition/dataset_views.py).
Diving48 and FineGym start from a Kinetics-400 checkpoint: --start.

    paper, top-1    SSV1 (8 frames)   SSV2 (8)   SSV2 (16)   Diving48   Gym99   Gym288   K400
    MOSS-S / M      60.0 / -          70.5/72.0
    MOSS-B          61.0              71.4       72.4        91.2       93.9    70.2     85.2
    MOSS-L          63.6              72.9       74.4        92.7       94.7    71.1     87.7

The paper trained on 8 RTX 6000 Ada. We did not train: no weights, data or GPU were at hand. The run ends with
a test of the best checkpoint in several views, written to OUT/test. After a kill, --resume auto continues.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from moss_vllm.commands import is_starting
from moss_vllm.runtime.line_store import ANSWERS, Shard, drop_other
from moss_vllm.runtime.screen import Screen, say
from moss_vllm.training.settings import (
    Count,
    FromZero,
    NotNegative,
    Positive,
    Seed,
    Share,
    begin,
    parse,
    setting,
)
from moss_vllm.training.temporal_settings import Temporal


@dataclass(frozen=True)
class ActionRecog:
    """Settings; None stands for the value in Table 7 for the dataset and variant, as `--help` says."""

    data: Literal["ssv1", "ssv2", "diving48", "gym99", "gym288", "k400", "list", "mini"] = setting(
        "mini", "dataset", heading="data"
    )
    root: str | None = setting(None, "folder of the videos, and by default of the annotation files")
    annotation: str | None = setting(None, "folder of the annotation files (default: that of the videos)")
    allow_missing: bool = setting(False, "leave out clips without a video, and print how many")
    protocol: Literal["paper", "authors"] = setting(
        "paper", "views by Table 7, or as in the authors' configuration files"
    )
    out: str = setting("runs/action_recog", "where checkpoints and logs go")
    resume: str | None = setting(None, "'auto' for the newest checkpoint in OUT, or a step-NNNNNN folder")
    start: str | None = setting(None, "checkpoint of another dataset to start from; its head is left out")

    variant: str | None = setting(
        None, "s, b, m, l, mini (default: s; with --data mini: mini)", heading="model"
    )
    host: Literal["ladder", "full", "aim", "dist"] = setting(
        "ladder", "what MOSS sits in; the last three are Table 10d's"
    )
    backbone: str | None = setting(
        None,
        "image encoder: clip_b16, clip_l14, eva02_clip_l14, dino_b16, mae_b16, siglip_b16, a ViT of timm "
        "(default: Table 6's of the variant, clip_b16 or clip_l14)",
    )
    weights: str = setting("pretrained", "of the image encoder: pretrained, random or a .safetensors file")
    temporal: Temporal = setting("moss", "MOSS, or the module in its place")
    temporal_layers: str | None = setting(
        None, "layers of that module, such as '4' or '4,6' of Table 10b (default: 4; 8 for m and l)"
    )
    temporal_options: str | None = setting(
        None, "arguments of that module as YAML, such as '{orders: [1, 2, 3]}' (default: Table 7's)"
    )

    frames: Count | None = setting(
        None, "that the encoder sees (default: 8; Diving48, FineGym 32; K400 32, m and l 16)", heading="views"
    )
    size_px: Count | None = setting(None, "side of a frame; scales change with it (default: 224; mini 84)")
    sampling: Literal["uniform", "uniform-k400", "dense"] | None = setting(
        None, "which frames (default: uniform; K400 dense)"
    )
    clips: Count | None = setting(None, "clips of a test; each in CROPS views (default: 2; K400 4; mini 1)")
    crops: Literal[1, 3] | None = setting(None, "the centre, or left, right and centre (default: 3; mini 1)")
    repeats: Count | None = setting(
        None, "training views of a clip in a step, repeated augmentation (default: SSV, K400 2; others 1)"
    )
    randaugment: str | None = setting(
        None, "timm's notation; 'none' for none (default: SSV rand-m7-n4-mstd0.5-inc1; others none)"
    )

    epochs: Count | None = setting(
        None, "passes over the clips (default: 30; SSV with s and b 40; mini 4)", heading="training and tests"
    )
    clips_a_step: Count | None = setting(None, "of all processes (default: 128; m and l 96 or 80; mini 32)")
    batch_size: Count = setting(16, "clips per process and micro-batch, each in REPEATS views")
    lr: Share | None = setting(None, "peak learning rate (default: s, b 1e-3; m, l 2e-4; mini 2e-3)")
    weight_decay: Share | None = setting(None, "of AdamW (default: 0.15; other hosts: as their authors)")
    layer_decay: Share | None = setting(None, "of earlier layers' rates, with host full (default there: 0.7)")
    warmup_epochs: NotNegative = setting(4.0, "epochs of linear warm-up (a fifth of all, if that is less)")
    floor: Share = setting(0.01, "rate at the end of the cosine, as a share of the peak")
    smoothing: Share = setting(0.1, "label smoothing")
    clip_norm: Positive = setting(20.0, "largest norm of the gradient; the paper names none")
    eval_every: Count = setting(2, "epochs between tests with one view; the best checkpoint is kept")
    eval_batch_size: Count = setting(8, "clips tested at once")
    precision: Literal["fp32", "bf16"] = setting(
        "fp32", "number format of the arithmetic; what trains is kept in fp32 in both", old={"no": "fp32"}
    )
    encoder_precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "of a frozen encoder, whose tokens stay fp32; auto: as a GPU is fast at, else as PRECISION"
    )
    checkpoint_blocks: bool = setting(
        False, "keep what enters each block and MOSS, and compute them again in backward: less memory, slower"
    )
    workers: FromZero = setting(2, "processes that read clips")
    cache: str | None = setting(None, "folder of decoded clips, read and filled")
    cache_gib: Positive | None = setting(None, "add to the cache up to this size (default: no limit)")
    decoder: Literal["auto", "pyav", "decord", "torchcodec"] = setting(
        "auto", "what reads video files; auto is PyAV"
    )
    max_bad_share: Share = setting(0.005, "stop when more clips than this cannot be read")
    keep: Count | None = setting(None, "newest checkpoints to keep on disk beside the best (default: all)")
    log_every: Count = setting(20, "steps between log lines")
    profile_steps: Count | None = setting(None, "steps to trace with torch's profiler (default: none)")
    steps: Count | None = setting(None, "steps in all, also for the schedule (default: those of EPOCHS)")
    seed: Seed = setting(0, "seed of weights and dropout")
    data_seed: Seed | None = setting(None, "seed of data order and views (default: SEED)")
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = setting("tensorboard", "where curves go")


if is_starting(__name__):
    begin(ActionRecog, __doc__)

from accelerate import Accelerator
from accelerate.utils import set_seed

from moss_vllm.data.actions.datasets import ActionSplit, tell_shared_clips
from moss_vllm.recognition import checkpoint
from moss_vllm.recognition.batches import ActionTrainingSet
from moss_vllm.recognition.build import build_classifier, full_variant
from moss_vllm.recognition.hosts.classifier import VideoClassifier
from moss_vllm.recognition.in_training import PeriodicTest
from moss_vllm.recognition.loss import ClassLoss
from moss_vllm.recognition.memory import show_memory
from moss_vllm.recognition.schema import CLIP_SCHEMA
from moss_vllm.recognition.scores import Accuracy, collect_clips, save_accuracy
from moss_vllm.recognition.settings import (
    check_settings,
    choose_views,
    model_arguments,
    open_split,
    plan_steps,
    refuse_ignored,
)
from moss_vllm.recognition.testing import number_formats, score_clips
from moss_vllm.recognition.views import ViewSettings
from moss_vllm.runtime.precision import AUTOCAST
from moss_vllm.runtime.provenance import fingerprint
from moss_vllm.training import engines, run_folder, start
from moss_vllm.training.best import BEST
from moss_vllm.training.loop import train
from moss_vllm.training.optim import parameter_groups
from moss_vllm.training.temporal_settings import refused_options_named
from moss_vllm.video.cache import choose_frame_reader

SCHEDULES = Path(__file__).parent / "configs" / "action_recog.yaml"
VIEWS = ("frames", "size_px", "sampling", "clips", "crops", "repeats")


def main(argv: Sequence[str] | None = None) -> Accuracy | None:
    """Train, then test the best checkpoint; returns its accuracy (None for a dry run)."""
    settings, flags = parse(ActionRecog, argv, __doc__)
    settings = fill_in(settings)
    check_settings(settings)
    command = start.command_line("recipes/action_recog.py", argv)
    with start.open_run(settings, dry_run=flags.dry_run) as accelerator:
        engines.refuse_sharded(accelerator)
        return train_and_test(settings, accelerator, command, dry_run=flags.dry_run)


def train_and_test(
    settings: Any, accelerator: Accelerator, command: str, *, dry_run: bool
) -> Accuracy | None:
    """Build and report; train and test unless it is a dry run. Returns the test's accuracy."""
    out = Path(settings.out)
    resume = run_folder.choose_resume(out, settings.resume, dry_run=dry_run)
    where: dict[str, Any] = {"annotation": settings.annotation, "allow_missing": settings.allow_missing}
    with accelerator.main_process_first():
        splits = {name: open_split(settings.data, settings.root, name, **where) for name in ("train", "test")}
    if splits["train"].classes != splits["test"].classes:
        raise ValueError(f"{settings.data}: train and test name other classes; are they of one release?")
    set_seed(settings.seed)
    arguments = model_arguments(settings, len(splits["train"].classes))
    with refused_options_named(settings):
        model = build_classifier(**arguments)
    set_seed(settings.seed + accelerator.process_index)  # processes drop out different weights
    model.set_checkpoint_blocks(settings.checkpoint_blocks)
    model.set_encoder_precision(settings.encoder_precision, accelerator.device)
    views = choose_run_views(settings, splits["train"], arguments["variant"], model)
    if settings.start and not resume:
        checkpoint.restore(Path(settings.start), model, but_head=True)
    table = model.rate_table(settings.lr, settings.weight_decay, settings.layer_decay)
    groups = parameter_groups(model, table)
    read = choose_frame_reader(settings.cache, settings.cache_gib, settings.decoder)
    dataset = ActionTrainingSet(splits["train"], views, seed=start.data_seed(settings), read=read)
    _, loop = plan_steps(settings, len(dataset), accelerator.num_processes)
    record = {
        **start.describe_training(settings, accelerator, model, table, command),
        "data_lines": [split.report() for split in splits.values()] + tell_shared_clips(**splits),
        "views": dataclasses.asdict(views),
        "steps": loop.steps,
        "disk": start.plan_disk(model, out, loop, resume),
        "clips_a_step": loop.batch_size * loop.accumulate * accelerator.num_processes,
    }
    if accelerator.is_main_process:
        show(record, model)
        if dry_run:
            shown = {**record["views"], "frames": record["views"]["frames"] // model.frames_per_encoded}
            shown["randaugment"] = record["views"]["randaugment"] or "none"
            start.show_settings_and_batch(record, dataset, shown)
            sizes: dict[str, Any] = {"frames": views.frames, "size_px": views.size_px}
            number, precision = loop.batch_size * views.repeats, settings.precision
            show_memory(Screen(), model, views=number, **sizes, precision=precision)
    if dry_run:
        return None
    start.refuse_full_disk(record["disk"], out)
    run = {
        "model": arguments,
        "classes": list(splits["train"].classes),
        "data": settings.data,
        "protocol": settings.protocol,
        **{name: record[name] for name in ("views", "settings", "processes", "engine", "command")},
    }
    test: dict[str, Any] = {
        "batch_size": settings.eval_batch_size,
        "workers": settings.workers,
        "device": accelerator.device,
        "dtype": AUTOCAST[settings.precision],
        "shard": Shard(accelerator.process_index, accelerator.num_processes),
        "read": read,
    }
    keeper = checkpoint.Keeper(model, run)
    test_model = PeriodicTest(accelerator, model, splits["test"], views, out, keeper=keeper, test=test)
    lines = train(
        accelerator,
        ClassLoss(model.to(accelerator.device), test["dtype"], smoothing=settings.smoothing),
        groups,
        dataset,
        loop,
        out=out,
        keeper=keeper,
        resume=resume,
        started=lambda: start.announce(accelerator, settings, record, out, resume),
        data={f"{name} split": split.digest() for name, split in splits.items()},
        evaluate=test_model,
    )
    if lines and lines[-1]["step"] < loop.steps:  # stopped by a signal
        engines.end(accelerator)
        return None
    if test_model.best.last_step() != loop.steps:
        test_model(loop.steps)
    best = checkpoint.load(out / BEST, weights=arguments["weights"], device=accelerator.device)
    best.model.set_encoder_precision(settings.encoder_precision, accelerator.device)
    header: dict[str, Any] = {"checkpoint": str(out / BEST), "run": {"step": best.run["step"]}}
    header |= {"model_settings": best.settings_digest(), "data": splits["test"].digest()}
    if accelerator.is_main_process:
        tested = {
            "weights": fingerprint(best.model.state_dict()),
            "run": header["run"],
            "data": header["data"],
            **number_formats(best.model, test["dtype"]),
        }
        drop_other(out / "test" / ANSWERS, CLIP_SCHEMA, tested)
    accelerator.wait_for_everyone()
    score_clips(best.model, splits["test"], views, out / "test", header=header, **test)
    accelerator.wait_for_everyone()
    accuracy = collect_clips(out / "test", splits["test"])  # of all processes
    if accelerator.is_main_process:
        finish(accuracy, out / "test", settings.data, views, best.run["step"])
        run_folder.mark_finished(out, loop.steps)
    engines.end(accelerator)
    return accuracy


def choose_run_views(
    settings: ActionRecog, train: ActionSplit, variant: str, model: VideoClassifier
) -> ViewSettings:
    """The views of the protocol, changed by the settings that are not None."""
    values = {name: getattr(settings, name) for name in (*VIEWS, "randaugment")}
    values["flip"] = None if train.may_mirror else 0.0
    views = choose_views(settings.data, settings.protocol, variant, values, model)
    return dataclasses.replace(views, randaugment=None) if settings.randaugment == "none" else views


def fill_in(settings: ActionRecog) -> Any:
    """The settings, with those that are None taken from the table of schedules; see `refuse_ignored`."""
    refuse_ignored(settings)
    mini = settings.data == "mini"
    variant = full_variant(settings.variant or ("mini" if mini else "s"))
    mini_vit = variant == "mini" and settings.backbone is None
    weights = "random" if mini_vit and settings.weights == "pretrained" else settings.weights
    table = yaml.safe_load(SCHEDULES.read_text())
    rows = table[settings.data]
    if variant not in rows:  # the paper has no row for this variant on this data
        rows = table["mini" if variant == "mini" else "ssv"]
    row = {
        "weight_decay": 0.15,
        **(rows.get(variant) or next(iter(rows.values()))),
        **table["hosts"].get(settings.host, {}),
    }
    filled = {name: value for name, value in row.items() if getattr(settings, name) is None}
    if mini and settings.size_px is None and variant != "mini":
        filled["size_px"] = 224
    return dataclasses.replace(settings, variant=variant, weights=weights, **filled)


def show(record: dict[str, Any], model: VideoClassifier) -> None:
    """Print what the run will do."""
    console, settings, views = Screen(), record["settings"], record["views"]
    for line in record["data_lines"]:
        console.print(line)
    layers = ", ".join(f"after layer {layer}" for layer in model.attached_layers) or "nowhere"
    console.print(
        f"{settings['host']} {settings['variant']} beside {model.encoder_name}, weights "
        f"{settings['weights']}; {settings['temporal']} {layers}",
    )
    console.print(
        f"{record['engine']} x{record['processes']}, precision {settings['precision']}: {record['steps']} "
        f"steps of {record['clips_a_step']} clips x {views['repeats']} views of {views['frames']} frames, "
        f"{views['size_px']} px, sampled {views['sampling']}; tests show {views['clips']} x {views['crops']}",
    )
    start.show_parameters(console, record["parameters"])
    start.show_disk(record["disk"])


def finish(accuracy: Accuracy, folder: Path, data: str, views: ViewSettings, step: int) -> None:
    """Print the scores and write them beside the clips' lines."""
    about = {"data": data, "step": step, "views": f"{views.clips} clips x {views.crops} crops"}
    save_accuracy(accuracy, folder, about)
    say(f"test of step {step}, {about['views']}: {accuracy}; written to {folder}")
