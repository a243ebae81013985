"""Generic event boundary detection: BasicGEBD with MOSS on Kinetics-GEBD and TAPOS (Sec. C.2, Table 9).

    python recipes/boundaries.py                                       # the miniature, on two cores
    python recipes/boundaries.py --data kinetics_gebd --root DATA/Kinetics-GEBD --dry-run
    accelerate launch --multi_gpu recipes/boundaries.py --data kinetics_gebd --root ... --resume auto
    accelerate launch --multi_gpu recipes/boundaries.py --data tapos --root DATA/TAPOS --resume auto
    python eval/boundaries.py --ckpt runs/boundaries/best --root DATA/Kinetics-GEBD

Datasets: kinetics_gebd and tapos as their authors and EfficientGEBD distribute them; `json`, a file of your
own (docs/boundaries.md); `mini`, drawn by this repository. Settings that are left out follow EfficientGEBD's
configuration of BasicGEBD-L4 (recipes/configs/boundaries.yaml), for 8 GPUs of 2 clips.

    F1@0.05 / average F1   BasicGEBD, published   BasicGEBD, the paper's run   with MOSS
    Kinetics-GEBD          76.8 / 86.6            76.9 / 86.4                  79.4 / 89.0
    TAPOS                  60.0 / 71.0            60.1 / 71.2                  68.5 / 76.6

The paper names neither GPU nor hours for it. We did not train: no weights, data or GPU were at hand. The run
tests after every epoch, keeps the best by F1@0.05, and ends with a test of that from disk, written to
OUT/test. The best of many tests on one split flatters: the last is printed beside it. After a kill,
--resume auto continues.
"""

import dataclasses
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import yaml

from moss_vllm.commands import is_starting
from moss_vllm.runtime.line_store import ANSWERS, Shard, drop_other
from moss_vllm.runtime.screen import Screen, say
from moss_vllm.runtime.spelling import command
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
class Boundaries:
    """Settings; None stands for EfficientGEBD's value for the dataset, as `--help` says."""

    data: Literal["kinetics_gebd", "tapos", "json", "mini"] = setting("mini", "dataset", heading="data")
    root: str | None = setting(None, "folder of the annotation and the clips, or their frames")
    videos: str | None = setting(
        None, "folder of videos or folders of frames, or several with ':' between (default: below the root)"
    )
    annotation: str | None = setting(None, "json, or the folder of both splits (default: below the root)")
    train_subset: str | None = setting(None, "of a json, to train on (default: training)")
    subset: str | None = setting(None, "of a json, to test on (default: validation)")
    allow_missing: bool = setting(False, "leave out clips that are not there, and print their number")
    out: str = setting("runs/boundaries", "where checkpoints and logs go")
    resume: str | None = setting(None, "'auto' for the newest checkpoint in OUT, or a step-NNNNNN folder")

    variant: Literal["r50", "mini"] | None = setting(
        None, "BasicGEBD's ResNet (default: r50; with --data mini: mini)", heading="model"
    )
    weights: str | None = setting(
        None, "of the ResNet: pretrained, random or a .safetensors file (default: pretrained; mini random)"
    )
    temporal: Temporal = setting("moss", "MOSS, or the module in its place")
    temporal_layers: str | None = setting(None, "ResNet stages before that module: '2' or '2,3' (default: 2)")
    temporal_options: str | None = setting(
        None, "arguments of that module as YAML, such as '{orders: [1, 2, 3]}' (default: the variant's)"
    )
    one_frame: bool = setting(False, "a control: the clip's middle frame stands for all, so no motion")
    chunk_frames: FromZero | None = setting(
        None, "of the ResNet that backward computes again at once; 0: none, all is kept (default: 10; mini 0)"
    )
    checkpoint_moss: bool = setting(False, "recompute the activations of MOSS's orders: less memory, slower")

    frames: Count | None = setting(None, "of a clip, or of a slice (default: 100; mini 50)", heading="clips")
    size_px: Count | None = setting(None, "side of a frame (default: 224; mini 48)")
    sliced: bool | None = setting(
        None, "a frame every 0.1 s, in slices, not FRAMES over the clip (default: tapos yes, others no)"
    )
    raters: Literal[1, 2] | None = setting(
        None, "the most of a clip to train on, the best first (default: 2; tapos, mini 1)"
    )
    labels: Literal["gaussian", "cut", "hard"] | None = setting(
        None, "gaussian around boundaries, that cut to 0 and 1, or hard (default: gaussian; tapos cut)"
    )
    mask: bool | None = setting(
        None, "leave frames that fill up a slice out of the loss; EfficientGEBD: no (default: yes)"
    )
    augment: bool | None = setting(None, "mirror every other training clip (default: yes)")

    optimizer: Literal["sgd", "adamw"] | None = setting(
        None, "sgd with steps or adamw with a cosine (default: sgd; mini adamw)", heading="training and tests"
    )
    epochs: Count | None = setting(None, "passes over the rows (default: 15; tapos 10; mini 8)")
    milestones: str | None = setting(
        None, "epochs after which sgd's rates fall to a tenth, or none (default: '6,8,12')", old={"": "none"}
    )
    warmup_epochs: NotNegative | None = setting(None, "of linear warm-up of adamw (default: 1)")
    clips_a_step: Count | None = setting(None, "rows of all processes (default: 16; mini 4)")
    batch_size: Count | None = setting(None, "rows per process and micro-batch (default: 2; mini 4)")
    lr: Share | None = setting(None, "peak learning rate (default: sgd 1e-2, adamw 1e-4; mini 3e-3)")
    weight_decay: Share | None = setting(None, "of the optimizer (default: sgd 1e-4, adamw 0.05)")
    clip_norm: NotNegative | None = setting(None, "largest gradient norm; 0: any (default: sgd 0, adamw 1)")
    threshold: Share | None = setting(None, "least score of a boundary (default: 0.3; tapos: 0.2)")
    eval_every: Count | None = setting(None, "epochs between tests, and checkpoints (default: 1; mini: 8)")
    precision: Literal["fp32", "bf16", "fp16"] = setting(
        "fp32", "number format of the arithmetic; what trains is kept in fp32 in all; EfficientGEBD: fp16"
    )
    workers: FromZero = setting(2, "processes that read clips")
    cache: str | None = setting(None, "folder of decoded frames, read and filled")
    cache_gib: Positive | None = setting(None, "add to the cache up to this size (default: no limit)")
    decoder: Literal["auto", "pyav", "decord", "torchcodec"] = setting(
        "auto", "what reads video files; auto is PyAV"
    )
    max_bad_share: Share = setting(0.005, "stop when more rows than this cannot be read")
    keep: Count | None = setting(None, "newest checkpoints to keep on disk beside the best (default: all)")
    log_every: Count = setting(20, "steps between log lines")
    profile_steps: Count | None = setting(None, "steps to trace with torch's profiler (default: none)")
    steps: Count | None = setting(None, "steps in all; the schedule shrinks with them (default: of EPOCHS)")
    seed: Seed = setting(0, "seed of weights")
    data_seed: Seed | None = setting(None, "seed of data order and mirroring (default: SEED)")
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = setting("tensorboard", "where curves go")


if is_starting(__name__):
    begin(Boundaries, __doc__)

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from moss_vllm.boundaries import checkpoint
from moss_vllm.boundaries.batches import BoundaryTrainingSet, Example, note_other_counts
from moss_vllm.boundaries.build import build_gebd
from moss_vllm.boundaries.gebd import GEBD
from moss_vllm.boundaries.in_training import PeriodicTest
from moss_vllm.boundaries.memory import estimate_memory
from moss_vllm.boundaries.objective import BoundaryObjective
from moss_vllm.boundaries.rates import rate_table
from moss_vllm.boundaries.schema import BOUNDARY_SCHEMA
from moss_vllm.boundaries.scores import BoundaryScores, score_table, score_test
from moss_vllm.boundaries.settings import (
    STATES,
    check_settings,
    clip_settings,
    model_arguments,
    open_split,
    plan_steps,
)
from moss_vllm.boundaries.testing import describe_test, find_boundaries
from moss_vllm.core.boundary_presets import BOUNDARIES
from moss_vllm.core.moss import checkpoint_moss
from moss_vllm.runtime.precision import AUTOCAST
from moss_vllm.runtime.provenance import fingerprint
from moss_vllm.training import engines, run_folder, start
from moss_vllm.training.best import BEST
from moss_vllm.training.loop import train
from moss_vllm.training.optim import parameter_groups
from moss_vllm.training.step_memory import parts_table
from moss_vllm.training.temporal_settings import refused_options_named
from moss_vllm.video.cache import choose_frame_reader

SCHEDULES = Path(__file__).parent / "configs" / "boundaries.yaml"
NORM_CLIPS, NORM_FRAMES = 8, 16


def main(argv: Sequence[str] | None = None) -> BoundaryScores | None:
    """Train, then test the best checkpoint; returns its scores in the main process (None for a dry run)."""
    settings, flags = parse(Boundaries, argv, __doc__)
    settings = fill_in(settings)
    check_settings(settings)
    command = start.command_line("recipes/boundaries.py", argv)
    with start.open_run(settings, dry_run=flags.dry_run) as accelerator:
        engines.refuse_sharded(accelerator)
        return train_and_test(settings, accelerator, command, dry_run=flags.dry_run)


def train_and_test(
    settings: Any, accelerator: Accelerator, command: str, *, dry_run: bool
) -> BoundaryScores | None:
    """Build and report; train and test unless it is a dry run. Returns the test's scores."""
    out = Path(settings.out)
    resume = run_folder.choose_resume(out, settings.resume, dry_run=dry_run)
    with accelerator.main_process_first():
        splits = {name: open_split(settings, name) for name in ("train", "test")}
    set_seed(settings.seed)
    arguments = model_arguments(settings)
    with refused_options_named(settings):
        model = build_gebd(**arguments)
    checkpoint_moss(model, settings.checkpoint_moss)
    clips, labels = clip_settings(settings)
    table = rate_table(model, settings.lr, settings.weight_decay, decay_vectors=settings.optimizer == "sgd")
    groups = parameter_groups(model, table)
    read = choose_frame_reader(settings.cache, settings.cache_gib, settings.decoder)
    dataset = BoundaryTrainingSet(
        splits["train"], clips, labels, mirror=settings.augment, seed=start.data_seed(settings), read=read
    )
    loop = plan_steps(settings, len(dataset), accelerator.num_processes)
    record = {
        **start.describe_training(settings, accelerator, model, table, command),
        "encoder": model.encoder.loaded.describe("ResNet"),
        "clips": dataclasses.asdict(clips),
        "rows": len(dataset),
        "steps": loop.steps,
        "disk": start.plan_disk(model, out, loop, resume, copies=1 + STATES[settings.optimizer]),
        "clips_a_step": loop.batch_size * loop.accumulate * accelerator.num_processes,
    }
    if accelerator.is_main_process:  # counting the frames of all clips takes minutes on a slow disk
        record["data_lines"] = [
            line
            for split in splits.values()
            for line in (split.report(), *split.notes, *note_other_counts(split))
        ]
        show(record, tuple(model.temporal_names))
        if dry_run:
            start.show_settings_and_batch(record, dataset)
            show_memory(record, model, loop.batch_size)
    if dry_run:
        return None
    start.refuse_full_disk(record["disk"], out)
    if settings.weights == "random" and not resume:
        set_norms(model, dataset, settings.seed)
    run = {
        "model": arguments,
        "data": settings.data,
        **{name: record[name] for name in ("clips", "settings", "processes", "engine", "command")},
    }
    model.to(accelerator.device)
    test: dict[str, Any] = {
        "workers": settings.workers,
        "device": accelerator.device,
        "dtype": AUTOCAST[settings.precision],
        "shard": Shard(accelerator.process_index, accelerator.num_processes),
        "read": read,
    }
    keeper = checkpoint.Keeper(model, run)
    shown = (splits["test"], clips)
    test_model = PeriodicTest(
        accelerator, model, *shown, out, keeper=keeper, threshold=settings.threshold, test=test
    )
    lines = train(
        accelerator,
        BoundaryObjective(model, test["dtype"]),
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
    best = checkpoint.load(out / BEST, device=accelerator.device)
    identity = {"step": best.run["step"], "weights": fingerprint(best.model.state_dict())}
    header = {"checkpoint": str(out / BEST), "run": identity, "model_settings": best.settings_digest()}
    if accelerator.is_main_process:
        tested = {"run": identity, **describe_test(best.model, *shown, dtype=test["dtype"])}
        drop_other(out / "test" / ANSWERS, BOUNDARY_SCHEMA, tested)
    accelerator.wait_for_everyone()
    find_boundaries(best.model, *shown, out / "test", header=header, **test)
    accelerator.wait_for_everyone()
    scores = None
    if accelerator.is_main_process:
        about = dict[str, Any](checkpoint=header["checkpoint"], variant=settings.variant, data=settings.data)
        about |= {"step": identity["step"], "size_px": clips.size_px}
        scores = score_test(out / "test", splits["test"], about, threshold=settings.threshold)
        finish(scores, settings, identity["step"], out / "test", test_model.best.report())
        run_folder.mark_finished(out, loop.steps)
    engines.end(accelerator)
    return scores


def fill_in(settings: Boundaries) -> Any:
    """The settings, with those that are None taken from the table: the dataset's row, its optimizer's."""
    table = yaml.safe_load(SCHEDULES.read_text())
    optimizers = table.pop("optimizers")
    row = table[settings.data]
    variant, optimizer = (getattr(settings, name) or row[name] for name in ("variant", "optimizer"))
    row = {**optimizers[optimizer], **row, "weights": BOUNDARIES[variant].weights}
    filled = {name: value for name, value in row.items() if getattr(settings, name) is None}
    return dataclasses.replace(settings, **filled)


def set_norms(model: GEBD, dataset: BoundaryTrainingSet, seed: int) -> None:
    """Set the norms of random weights by NORM_FRAMES frames of each of the first NORM_CLIPS clips."""
    dataset = copy(dataset)
    dataset.seed = seed  # that of the weights also decides which of these clips are mirrored
    rows = (dataset[row] for row in range(len(dataset)))
    read = islice((row.pixels for row in rows if isinstance(row, Example)), NORM_CLIPS)
    if clips := [pixels[:: max(1, len(pixels) // NORM_FRAMES)] for pixels in read]:
        model.encoder.set_norms(torch.stack(clips))


def show(record: dict[str, Any], stages: Sequence[int]) -> None:
    """Print what the run will do."""
    console, settings, clips = Screen(), record["settings"], record["clips"]
    console.print(*record["data_lines"], record["encoder"], sep="\n")
    place = ", ".join(f"after stage {stage}" for stage in stages) or "nowhere"
    console.print(f"BasicGEBD {settings['variant']}; {settings['temporal']} {place}")
    taken = "a frame every 0.1 s, in slices" if clips["sliced"] else "evenly spread over a clip"
    console.print(f"{record['rows']:,} rows of {clips['frames']} frames, {taken}, {clips['size_px']} px")
    raters = "the best rater" if settings["raters"] == 1 else "the best two raters"
    are_filled = clips["sliced"] and not settings["mask"]
    filled = "; frames that fill up a slice are no boundary" if are_filled else ""
    console.print(f"trained on {raters} of each clip, labels {settings['labels']}{filled}")
    shrunk = f", all shrunk to {settings['steps']} steps in all" if settings["steps"] else ""
    steps = f"{record['steps']} steps of {record['clips_a_step']} rows"
    console.print(f"{record['engine']} x{record['processes']}, precision {settings['precision']}: {steps}")
    falls = f"a tenth of the rates from epochs {settings['milestones']}"
    if settings["optimizer"] == "adamw":
        falls = f"{settings['warmup_epochs']:g} epochs of warm-up, a cosine to 0"
    console.print(f"{settings['optimizer']}: {falls}, the end after {settings['epochs']}{shrunk}")
    console.print("frozen: the first convolution, and the statistics and scales of the ResNet's norms")
    start.show_parameters(console, record["parameters"])
    start.show_disk(record["disk"])


def show_memory(record: dict[str, Any], model: GEBD, clips: int) -> None:
    """Print what a step of this size takes in each process."""
    sizes: dict[str, Any] = {name: record["clips"][name] for name in ("frames", "size_px")}
    settings = record["settings"]
    memory = estimate_memory(
        model, clips=clips, **sizes, precision=settings["precision"], copies=STATES[settings["optimizer"]]
    )
    columns = {f"{clips} clips at {sizes['size_px']} px": memory}
    Screen().print(parts_table(columns, title="memory of a step in each process, estimated"))


def finish(scores: BoundaryScores, settings: Any, step: int, folder: Path, tests: str) -> None:
    """Print the scores, of real data below the paper's rows."""
    Screen().print(score_table(f"BasicGEBD, {settings.temporal}", scores, settings.data))
    say(f"test of step {step}: {scores}; written to {folder}")
    say(f"tests during training: {tests}")
    pages = (command("scripts/report.py", of) for of in (folder, folder.parent))
    say("pages of the test and of the run:", *pages, sep="\n")
