"""Temporal action detection: AdaTAD with MOSS on THUMOS-14 (Sec. C.1, Table 8).

    python recipes/detection.py                                       # the miniature, on two cores
    python recipes/detection.py --data thumos14 --root DATA/thumos-14 --dry-run
    accelerate launch --multi_gpu recipes/detection.py --data thumos14 --root DATA/thumos-14 --resume auto
    python eval/detection.py --ckpt runs/detection/best --root DATA/thumos-14

Datasets: thumos14 as OpenTAD and ActionFormer distribute it; `json`, a file of your own in the same format
(docs/detection.md); `mini`, drawn by this repository. Settings that are left out follow AdaTAD's
configuration (recipes/configs/detection.yaml).

    average mAP (tIoU 0.3:0.7)   AdaTAD, published   AdaTAD, the paper's run   with MOSS
    VideoMAE-B                   71.5                71.4                      72.2
    VideoMAE-L                   73.5                73.5                      74.1

The paper names neither GPU nor hours for it. We did not train: no weights, data or GPU were at hand. The run
tests the average of its weights every few epochs, keeps the best, and ends with a test of that from disk,
written to OUT/test. The best of many tests on one split flatters: the last is printed beside it. After a
kill, --resume auto continues.
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
from moss_vllm.training.settings import Count, FromZero, Positive, Seed, Share, begin, parse, setting
from moss_vllm.training.temporal_settings import Temporal


@dataclass(frozen=True)
class Detection:
    """Settings; None stands for AdaTAD's value for the dataset and variant, as `--help` says."""

    data: Literal["thumos14", "json", "mini"] = setting("mini", "dataset", heading="data")
    root: str | None = setting(None, "folder of annotations/ and raw_data/video/")
    videos: str | None = setting(
        None, "folder of videos or folders of frames, or several with ':' between (default: below the root)"
    )
    annotation: str | None = setting(None, "the json, or its folder (default: below the root)")
    train_subset: str | None = setting(
        None, "of the json, to train on (default: training, or ActionFormer's Validation)"
    )
    subset: str | None = setting(
        None, "of the json, to test on (default: validation, or ActionFormer's Test)"
    )
    allow_missing: bool = setting(False, "leave out videos that are not there, and print their number")
    out: str = setting("runs/detection", "where checkpoints and logs go")
    resume: str | None = setting(None, "'auto' for the newest checkpoint in OUT, or a step-NNNNNN folder")

    variant: Literal["s", "b", "l", "mini"] | None = setting(
        None, "AdaTAD's size (default: b; with --data mini: mini)", heading="model"
    )
    encoder: str | None = setting(
        None, "another video encoder: videomae_s, _b, _l, a hub id or a folder (default: the variant's)"
    )
    weights: str = setting("pretrained", "of the video encoder: pretrained, random or a .safetensors file")
    temporal: Temporal = setting("moss", "MOSS, or the module in its place")
    temporal_layers: str | None = setting(
        None,
        "layers of that module, such as '6' or '4,6', each before its adapter (default: 6; mini 1)",
    )
    temporal_options: str | None = setting(
        None, "arguments of that module as YAML, such as '{orders: [1, 2, 3]}' (default: the variant's)"
    )
    in_chunks: bool = setting(False, "that module reads chunks of 16 frames alone, not the whole window")
    one_frame: bool = setting(False, "a control: the encoder sees one frame of each chunk, so no motion")

    frames: Count | None = setting(None, "of a window (default: 768; mini 64)", heading="windows")
    stride: Count | None = setting(None, "frames of the video from one to the next (default: 4; mini 2)")
    size_px: Count | None = setting(
        None, "side of a frame; the paper has 224 (default: 160, AdaTAD's code; mini 64)"
    )
    augment: bool | None = setting(
        None, "cut, mirror and change training frames (default: yes; mini, where directions count: no)"
    )

    epochs: Count | None = setting(
        None, "passes over the videos (default: 60; mini 40)", heading="training and tests"
    )
    schedule_epochs: Count | None = setting(None, "over which the rates fall to 0 (default: 100; mini 40)")
    warmup_epochs: Positive | None = setting(None, "of linear warm-up (default: 5; mini 4)")
    clips_a_step: Count | None = setting(None, "windows of all processes (default: 2; mini 4)")
    batch_size: Count | None = setting(None, "windows per process and micro-batch (default: 2; mini 4)")
    lr: Share | None = setting(None, "peak learning rate of the detector (default: 1e-4; mini 2e-3)")
    adapter_lr: Share | None = setting(
        None, "peak learning rate of the adapters and MOSS (default: s 2e-4; b, l 1e-4; mini 4e-3)"
    )
    weight_decay: Share = setting(0.05, "of AdamW")
    clip_norm: Positive = setting(1.0, "largest norm of the gradient")
    ema_decay: Share | None = setting(
        None, "share of the average weights that a step keeps (default: 0.999; mini 0.99)"
    )
    eval_from: Count | None = setting(None, "epochs before the first test (default: 42; mini 40)")
    eval_every: Count | None = setting(
        None, "epochs from test to test, and of checkpoints (default: 2; mini 40)"
    )
    eval_batch_size: Count = setting(1, "windows tested at once")
    precision: Literal["fp32", "bf16", "fp16"] = setting(
        "fp32", "number format of the arithmetic; what trains is kept in fp32 in all; AdaTAD: fp16"
    )
    workers: FromZero = setting(2, "processes that read videos")
    cache: str | None = setting(None, "folder of decoded frames, read and filled")
    cache_gib: Positive | None = setting(None, "add to the cache up to this size (default: no limit)")
    decoder: Literal["auto", "pyav", "decord", "torchcodec"] = setting(
        "auto", "what reads video files; auto is PyAV"
    )
    max_bad_share: Share = setting(0.005, "stop when more videos than this cannot be read")
    keep: Count | None = setting(None, "newest checkpoints to keep on disk beside the best (default: all)")
    log_every: Count = setting(20, "steps between log lines")
    profile_steps: Count | None = setting(None, "steps to trace with torch's profiler (default: none)")
    steps: Count | None = setting(None, "steps in all; the schedule shrinks with them (default: of EPOCHS)")
    seed: Seed = setting(0, "seed of weights and dropped paths")
    data_seed: Seed | None = setting(None, "seed of data order, windows and views (default: SEED)")
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = setting("tensorboard", "where curves go")


if is_starting(__name__):
    begin(Detection, __doc__)

from accelerate import Accelerator
from accelerate.utils import set_seed

from moss_vllm.core.detection_presets import DETECTORS
from moss_vllm.detection import checkpoint
from moss_vllm.detection.adatad import AdaTAD
from moss_vllm.detection.batches import DetectionTrainingSet
from moss_vllm.detection.build import build_adatad
from moss_vllm.detection.in_training import PeriodicTest
from moss_vllm.detection.memory import estimate_memory
from moss_vllm.detection.objective import DetectionObjective
from moss_vllm.detection.rates import rate_table
from moss_vllm.detection.schema import DETECTION_SCHEMA
from moss_vllm.detection.scores import PAPER_TABLE_8, DetectionScores, score_table, score_test
from moss_vllm.detection.settings import (
    MINI_DATA,
    check_settings,
    choose_sizes,
    model_arguments,
    open_split,
    plan_steps,
)
from moss_vllm.detection.testing import describe_test, detect_videos
from moss_vllm.runtime.precision import AUTOCAST
from moss_vllm.runtime.provenance import fingerprint
from moss_vllm.training import engines, run_folder, start
from moss_vllm.training.average import WeightAverage, tell_young
from moss_vllm.training.best import BEST
from moss_vllm.training.loop import train
from moss_vllm.training.optim import parameter_groups
from moss_vllm.training.step_memory import parts_table
from moss_vllm.training.temporal_settings import refused_options_named
from moss_vllm.video.cache import choose_frame_reader

SCHEDULES = Path(__file__).parent / "configs" / "detection.yaml"


def main(argv: Sequence[str] | None = None) -> DetectionScores | None:
    """Train, then test the best checkpoint; returns its scores in the main process (None for a dry run)."""
    settings, flags = parse(Detection, argv, __doc__)
    settings = fill_in(settings)
    check_settings(settings)
    command = start.command_line("recipes/detection.py", argv)
    with start.open_run(settings, dry_run=flags.dry_run) as accelerator:
        engines.refuse_sharded(accelerator)
        return train_and_test(settings, accelerator, command, dry_run=flags.dry_run)


def train_and_test(
    settings: Any, accelerator: Accelerator, command: str, *, dry_run: bool
) -> DetectionScores | None:
    """Build and report; train and test unless it is a dry run. Returns the test's scores."""
    out = Path(settings.out)
    resume = run_folder.choose_resume(out, settings.resume, dry_run=dry_run)
    with accelerator.main_process_first():
        splits = {name: open_split(settings, name) for name in ("train", "test")}
    if splits["train"].classes != splits["test"].classes:
        raise ValueError(f"{settings.data}: train and test name other classes; are they of one release?")
    set_seed(settings.seed)
    arguments = model_arguments(settings, len(splits["train"].classes))
    with refused_options_named(settings):
        model = build_adatad(**arguments)
    set_seed(settings.seed + accelerator.process_index)  # processes drop other paths
    windows, pixels = choose_sizes(settings, model)
    table = rate_table(model, settings.lr, settings.adapter_lr, settings.weight_decay)
    groups = parameter_groups(model, table)
    read = choose_frame_reader(settings.cache, settings.cache_gib, settings.decoder)
    dataset = DetectionTrainingSet(
        splits["train"],
        windows,
        pixels,
        seed=start.data_seed(settings),
        read=read,
        levels=model.detector.levels,
    )
    steps_an_epoch, loop = plan_steps(settings, len(dataset), accelerator.num_processes)
    first_test = settings.eval_from * steps_an_epoch
    tests = range(loop.evaluate_every, loop.steps + 1, loop.evaluate_every)
    record = {
        **start.describe_training(settings, accelerator, model, table, command),
        "data_lines": [line for split in splits.values() for line in (split.report(), *split.notes)],
        "encoder": model.encoder.loaded.describe(),
        "windows": dataclasses.asdict(windows),
        "pixels": dataclasses.asdict(pixels),
        "steps": loop.steps,
        "disk": start.plan_disk(model, out, loop, resume, copies=4),
        "clips_a_step": loop.batch_size * loop.accumulate * accelerator.num_processes,
        "first_test": next((step for step in tests if step >= first_test), loop.steps),
    }
    if accelerator.is_main_process:
        show(record, tuple(model.temporal_names))
        if dry_run:
            sizes = {f"{kind} {key}": v for kind in ("windows", "pixels") for key, v in record[kind].items()}
            start.show_settings_and_batch(record, dataset, sizes)
            show_memory(record, model, loop.batch_size)
    if dry_run:
        return None
    start.refuse_full_disk(record["disk"], out)
    run = {
        "model": arguments,
        "classes": list(splits["train"].classes),
        "data": settings.data,
        **{
            name: record[name] for name in ("windows", "pixels", "settings", "processes", "engine", "command")
        },
    }
    model.to(accelerator.device)
    average = WeightAverage(model.trained_state, decay=settings.ema_decay)
    test: dict[str, Any] = {
        "batch_size": settings.eval_batch_size,
        "workers": settings.workers,
        "device": accelerator.device,
        "dtype": AUTOCAST[settings.precision],
        "shard": Shard(accelerator.process_index, accelerator.num_processes),
        "read": read,
    }
    keeper = checkpoint.Keeper(model, run, average)
    shown = (splits["test"], windows, pixels)
    test_model = PeriodicTest(
        accelerator, model, *shown, out, keeper=keeper, averaged=average.in_model, test=test
    )
    lines = train(
        accelerator,
        DetectionObjective(model, average, test["dtype"]),
        groups,
        dataset,
        loop,
        out=out,
        keeper=keeper,
        resume=resume,
        started=lambda: start.announce(accelerator, settings, record, out, resume),
        data={f"{name} split": split.digest() for name, split in splits.items()},
        evaluate=lambda step: test_model(step) if step >= first_test else None,
    )
    if lines and lines[-1]["step"] < loop.steps:  # stopped by a signal
        engines.end(accelerator)
        return None
    if test_model.best.last_step() != loop.steps:
        test_model(loop.steps)
    best = checkpoint.load(out / BEST, device=accelerator.device)
    identity = {"step": best.run["step"], "weights": fingerprint(best.model.state_dict())}
    header = {"checkpoint": str(out / BEST), "run": identity, "model_settings": best.settings_digest()}
    if accelerator.is_main_process:
        tested = {"run": identity, **describe_test(best.model, *shown, dtype=test["dtype"])}
        drop_other(out / "test" / ANSWERS, DETECTION_SCHEMA, tested)
    accelerator.wait_for_everyone()
    detect_videos(best.model, *shown, out / "test", header=header, **test)
    accelerator.wait_for_everyone()
    scores = None
    if accelerator.is_main_process:
        about = dict[str, Any](checkpoint=header["checkpoint"], variant=settings.variant, data=settings.data)
        about |= {"step": identity["step"], "size_px": pixels.size_px}
        scores = score_test(out / "test", splits["test"], about)
        finish(scores, settings, identity["step"], out / "test", test_model.best.report())
        run_folder.mark_finished(out, loop.steps)
    engines.end(accelerator)
    return scores


def fill_in(settings: Detection) -> Any:
    """The settings, with those that are None taken from the table of schedules and the preset."""
    table = yaml.safe_load(SCHEDULES.read_text())
    row = table[settings.data]
    variant = settings.variant or row["variant"]
    untrained = variant == "mini" and not settings.encoder and settings.weights == "pretrained"
    row["adapter_lr"] = DETECTORS[variant].adapter_lr
    filled = {name: value for name, value in row.items() if getattr(settings, name) is None}
    filled |= {"weights": "random"} if untrained else {}
    return dataclasses.replace(settings, **filled)


def show(record: dict[str, Any], layers: Sequence[int]) -> None:
    """Print what the run will do."""
    console, settings, windows = Screen(), record["settings"], record["windows"]
    for line in record["data_lines"]:
        console.print(line)
    place = ", ".join(f"after layer {layer}" for layer in layers) or "nowhere"
    span = "chunks of it" if settings["in_chunks"] else "the whole window"
    console.print(record["encoder"])
    console.print(f"AdaTAD {settings['variant']}; {settings['temporal']} {place}, on {span}")
    shrunk = f", all shrunk to {settings['steps']} steps in all" if settings["steps"] else ""
    sizes = "" if settings["data"] == MINI_DATA else " (AdaTAD's code has 160, the paper 224)"
    console.print(
        f"{record['engine']} x{record['processes']}, precision {settings['precision']}: {record['steps']} "
        f"steps of {record['clips_a_step']} windows of {windows['steps']} frames, every {windows['stride']}, "
        f"{record['pixels']['size_px']} px{sizes}"
    )
    console.print(
        f"{settings['warmup_epochs']:g} epochs of warm-up, a cosine to epoch {settings['schedule_epochs']}, "
        f"the end after {settings['epochs']}{shrunk}"
    )
    steps = (record["steps"], record["first_test"])
    if young := next(filter(None, (tell_young(settings["ema_decay"], step) for step in steps)), ""):
        say(young)
    start.show_parameters(console, record["parameters"])
    start.show_disk(record["disk"])


def show_memory(record: dict[str, Any], model: AdaTAD, windows: int) -> None:
    """Print what a step of this size takes in each process."""
    sizes: dict[str, Any] = {"frames": record["windows"]["steps"], "size_px": record["pixels"]["size_px"]}
    memory = estimate_memory(model, windows=windows, **sizes, precision=record["settings"]["precision"])
    head = f"{windows} windows at {sizes['size_px']} px"
    Screen().print(parts_table({head: memory}, title="memory of a step in each process, estimated"))


def finish(scores: DetectionScores, settings: Any, step: int, folder: Path, tests: str) -> None:
    """Print the scores below the paper's rows."""
    comparable = settings.data == "thumos14" and settings.variant in PAPER_TABLE_8
    name = f"{settings.temporal}, {settings.size_px} px"
    Screen().print(score_table(name, scores, variant=settings.variant if comparable else None))
    say(f"test of step {step}, the average of its weights: {scores}; written to {folder}")
    if young := tell_young(settings.ema_decay, step):
        say(young)
    say(f"tests during training: {tests}")
