"""Where a training step's time goes, what waiting for data costs, and how long the paper's run would take.

    python experiments/benchmark_training.py                          # the demo's runs on the CPU, 15 minutes
    python experiments/benchmark_training.py --shape 2b --device cuda # the paper's shape on a GPU
    python experiments/benchmark_training.py --shape miniature --clip-s 5 --steps 3   # the same code on a CPU

Without --shape, `recipes/favor_lora.py` trains as in `experiments/demo.py`: without and with MOSS side by
side, the demo's flags, threads, clips and order, only fewer steps. Clips come from the videos or from a
frame cache filled before (the demo fills its own as it trains: it lies between the two), through the
recipe's 1 worker or without a worker, where nothing hides the reading. Shown are the share of each part in a
step, waiting for data among them, and the clips read per second.

With --shape, the same training loop runs on random weights (base in bf16; LoRA, projector, MOSS in float32)
and random clips of the paper's frames (Sec. 4.5: 2 a second, short side 224), one clip a step, without and
with MOSS and recomputation of the LLM's activations: seconds a step, clips and tokens a second, peak memory
beside the estimate of `moss_vllm.vlm.video_llama3.memory`, the parts of a step, and hours for the paper's
1,000 iterations of 15 clips. The hours are an upper estimate: each clip pays for an optimizer step, and no
token is compressed away."""

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from moss_vllm.data.world.benchmarks import DEFAULT_ROOT, ensure_world
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.ranges import FROM_ONE, Range
from moss_vllm.runtime.screen import Screen


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    add = parser.add_argument
    shape = "random weights of this shape; without it, the runs of the demo"
    add("--shape", choices=("2b", "7b", "miniature"), help=shape)
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to train")
    add("--steps", type=FROM_ONE, default=20, help="steps timed in a run, after the warm-up")
    add("--repeats", type=FROM_ONE, default=3, help="repeats of the demo's runs")
    add("--clip-s", type=Range(float, 1), nargs="+", default=[10, 30], help="seconds of --shape's clips")
    add("--world", type=Path, default=DEFAULT_ROOT, help="folder of the motion world, for the demo's runs")
    add("--json", type=Path, help="write the results here")
    return parser


if __name__ == "__main__":
    answer_help(options)

import demo
import torch
from measuring import (
    cpu_name,
    load_recipe,
    prepare_json,
    run_jobs,
    show_spread,
    spread,
    write_json,
)
from side_by_side import run_commands
from step_parts import FRAMES_PX, PARTS, PROTOCOL, WARM_UP, run_shape, shares

from moss_vllm.commands.scripts import cache_frames
from moss_vllm.core.encoder import stss_path
from moss_vllm.core.presets import VIDEO_LLM
from moss_vllm.data.sources import read_sources
from moss_vllm.runtime.versions import versions
from moss_vllm.video.cache import choose_reader
from moss_vllm.vlm.batches import TrainingSet
from moss_vllm.vlm.processor import load_processor
from moss_vllm.vlm.settings import fit_clips, sampling_of

READ_CLIPS = 200
CLAIM = 0.05
# The first from Sec. 4.5, the second from configs/favor_videollama3_2b.yaml: the paper states no batch.
ITERATIONS, CLIPS_A_STEP, PAPER_GPU_HOURS = 1000, 15, 8


class Way(NamedTuple):
    """The source of clips and the number of workers of the demo's two runs."""

    cached: bool
    workers: int

    def __str__(self) -> str:
        return f"{'frame cache' if self.cached else 'videos'}, {self.workers or 'no'} worker"


WAYS = [Way(cached, workers) for workers in (1, 0) for cached in (False, True)]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and write the json file of --json; returns its content."""
    parser = options()
    args = parser.parse_args(argv)
    if wrong := refusal(args):
        parser.error(wrong)
    if args.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    prepare_json(parser, args.json)
    console, load = Screen(width=150), os.getloadavg()
    measured = measure_shape(args, console) if args.shape else measure_demo(args, console)
    words = sys.argv[1:] if argv is None else argv
    record = {
        "command": shlex.join(["python", "experiments/benchmark_training.py", *words]),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if args.device == "cuda" else "not run on a GPU",
        "stss": ": ".join(stss_path(torch.device(args.device), VIDEO_LLM.window)),
        "versions": versions(),
        "load_average": {"before": load[0], "after": os.getloadavg()[0]},
        **measured,
    }
    console.print(f"{record['machine']}; {record['gpu']}; load average {load[0]:.1f} before")
    write_json(args.json, record, console)
    return record


def refusal(args: argparse.Namespace) -> str | None:
    """An error message about the flags; None if they are valid."""
    elsewhere = "--shape miniature without --device runs the same code on the CPU"
    if args.device == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda is not None
        missing = "finds no GPU or no driver of one" if built else "is built without CUDA"
        return f"--device cuda needs a GPU, and torch {torch.__version__} {missing}; {elsewhere}"
    if args.shape in ("2b", "7b") and args.device == "cpu":
        return f"--shape {args.shape} needs a GPU: add --device cuda; {elsewhere}"
    return None


# ---- the demo's runs


def measure_demo(args: argparse.Namespace, console: Screen) -> dict[str, Any]:
    """The demo's two runs in every way of `WAYS`, in turns, then reading alone."""
    world, usual = ensure_world(args.world), load_recipe(Path(demo.RECIPE)).FavorLora()
    settings = fit_clips(usual, load_processor(usual.model), ())
    with tempfile.TemporaryDirectory() as folder:
        cache, jobs = Path(folder) / "frames", []
        fill_cache(settings, world / "FAVOR", cache)
        for turn in range(args.repeats):
            for way in WAYS:
                out = Path(folder) / f"{turn}, {way}"
                jobs.append((str(way), partial(run_pair, way, world, cache, out, args.steps, settings.steps)))
        pairs = run_jobs(jobs)
        reading = measure_row_reading(settings, world / "FAVOR", cache, args.repeats)
    arms = [
        {"moss": run == "moss", **way._asdict(), **summary([pair[run] for pair in pairs[n :: len(WAYS)]])}
        for n, way in enumerate(WAYS)
        for run in ("plain", "moss")
    ]
    largest = max(arm["waited_of_run"]["max"] for arm in arms if arm["cached"] and arm["workers"])
    claim = f"with the frame cache, less than {CLAIM:.0%} of the demo's training is waiting for data"
    print_arms(console, arms, reading)
    console.print(f"{claim}: {'yes' if largest < CLAIM else 'NO'}, at most {largest:.2%} in any of the runs")
    return {
        "steps": args.steps,
        "warm_up": WARM_UP,
        "repeats": args.repeats,
        "threads": pairs[0]["threads"],
        "load_averages": [pair["load_average"] for pair in pairs],
        "claim": {"text": claim, "largest_share": largest, "holds": largest < CLAIM},
        "arms": arms,
        "reading": reading,
    }


def fill_cache(settings: Any, data: Path, cache: Path) -> None:
    """Fill the cache with `scripts/cache_frames.py`, at the recipe's sampling."""
    flags = ["--data", str(data), "--cache", str(cache)]
    for name in ("sample_fps", "short_side_px", "max_frames"):
        flags += [f"--{name.replace('_', '-')}", f"{getattr(settings, name):g}"]
    if status := cache_frames.main(flags):
        raise SystemExit(f"the frame cache of {data} is not whole (status {status}); the reason is above")


def run_pair(way: Way, world: Path, cache: Path, out: Path, steps: int, whole_run: int) -> dict[str, Any]:
    """The demo's two runs side by side; `whole_run` is the demo's own number of steps."""
    flags = demo.training_flags(out, world, 0, steps + WARM_UP, cache=cache if way.cached else None)
    out.mkdir()
    files = {name: out / f"{name}.json" for name in flags}
    step_parts = str(Path(__file__).with_name("step_parts.py"))
    workers = ["--workers", str(way.workers)]
    run_commands(
        {name: [[step_parts, str(files[name]), demo.RECIPE, *flags[name], *workers]] for name in flags}
    )
    runs = {name: json.loads(file.read_text()) for name, file in files.items()}
    numbers = {name: summarise_run(run["lines"], run["steps"], whole_run) for name, run in runs.items()}
    return {**numbers, "threads": runs["moss"]["threads"]}


def summarise_run(
    lines: Sequence[dict[str, Any]], steps: Sequence[dict[str, float]], whole_run: int
) -> dict[str, Any]:
    """Numbers of one run's timed steps; `waited_of_run` includes the wait for the first batch."""
    first, timed = lines[0]["waited_s"], lines[WARM_UP:]
    step_s, waited_s = (statistics.mean(line[key] for line in timed) for key in ("seconds", "waited_s"))
    waited = first + (whole_run - 1) * waited_s
    return {
        "step_s": step_s,
        "clips_per_s": statistics.mean(line["clips"] for line in timed) / step_s,
        "first_waited_s": first,
        "waited_of_run": waited / (waited + whole_run * (step_s - waited_s)),
        "shares": shares(steps[WARM_UP:]),
    }


def measure_row_reading(settings: Any, data: Path, cache: Path, repeats: int) -> dict[str, Any]:
    """Clips and rows ready for the model per second of one process, from the videos and from the cache."""
    rows = [row for row in read_sources(data).rows if row.path is not None][:READ_CLIPS]
    processor = load_processor(settings.model)
    sampling = sampling_of(settings, processor)
    compress, most = settings.compress_tokens, settings.max_tokens
    reading_settings = {"compress": compress, "max_tokens": most, "sampling": sampling}
    speeds: dict[tuple[str, str], list[float]] = {}
    torch.set_num_threads(1)  # as in a worker of the DataLoader
    for _ in range(repeats):
        for name, folder in (("videos", None), ("frame cache", cache)):
            dataset = TrainingSet(rows, processor, read=choose_reader(folder), **reading_settings)
            started = time.perf_counter()
            for row in rows:
                dataset.read(row.path, sampling=sampling, start_s=row.start_s or 0.0, end_s=row.end_s)
            middle = time.perf_counter()
            for index in range(len(rows)):
                dataset[index]
            ended = time.perf_counter()
            speeds.setdefault((name, "clips_per_s"), []).append(len(rows) / (middle - started))
            speeds.setdefault((name, "rows_per_s"), []).append(len(rows) / (ended - middle))
    result: dict[str, Any] = {"clips": len(rows)}
    for (name, key), values in speeds.items():
        result.setdefault(name, {})[key] = spread(values)
    return result


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Spreads over the runs of one arm."""
    parts = {part: spread([run["shares"][part] for run in runs]) for part in PARTS}
    return {
        **{key: spread([run[key] for run in runs]) for key in runs[0] if key != "shares"},
        "shares": parts,
    }


def print_arms(console: Screen, arms: Sequence[dict[str, Any]], reading: dict[str, Any]) -> None:
    """A row for each arm: its speed and its waiting, then the parts of its steps."""
    speed = Table("clips from", "MOSS", title="the demo's training, median (least-most)")
    for head in ("s a step", "clips/s", "waiting, % of a step", "% of the whole run"):
        speed.add_column(head, justify="right")
    parts = Table("clips from", "MOSS", *PARTS, title="share of a step, median")
    for arm in arms:
        name = [str(Way(arm["cached"], arm["workers"])), "yes" if arm["moss"] else "no"]
        waiting = [show_spread(arm["shares"][PARTS[0]], 100), show_spread(arm["waited_of_run"], 100)]
        speed.add_row(*name, show_spread(arm["step_s"]), show_spread(arm["clips_per_s"]), *waiting)
        parts.add_row(*name, *(f"{arm['shares'][part]['median']:.1%}" for part in PARTS))
    console.print(speed, parts)
    for name in ("videos", "frame cache"):
        clips, rows = (reading[name][key]["median"] for key in ("clips_per_s", "rows_per_s"))
        console.print(f"{name}, one process: {clips:.0f} clips/s read, {rows:.0f} rows/s ready for the model")


# ---- a shape with random weights


def measure_shape(args: argparse.Namespace, console: Screen) -> dict[str, Any]:
    """Steps on random clips of each length, without and with MOSS and recomputation."""
    cases: list[dict[str, Any]] = [
        {"clip_s": clip_s, "moss": moss, "recomputed": recomputed}
        for clip_s in args.clip_s
        for moss in (False, True)
        for recomputed in (False, True)
    ]
    jobs = []
    for case in cases:
        name = f"{case['clip_s']:g} s, {'with' if case['moss'] else 'without'} MOSS"
        name += ", recomputed" if case["recomputed"] else ""
        jobs.append((name, partial(run_shape, args.shape, args.device, args.steps, **case)))
    results = [case | result for case, result in zip(cases, run_jobs(jobs), strict=True)]
    for result in results:
        if "step_s" in result:
            result["hours"] = ITERATIONS * CLIPS_A_STEP * result["step_s"] / 3600
    print_shapes(console, args.shape, results)
    return {
        "shape": args.shape,
        "frames_px": FRAMES_PX[args.shape],
        **PROTOCOL,
        "steps": args.steps,
        "warm_up": WARM_UP,
        "hours_for": {"iterations": ITERATIONS, "clips_a_step": CLIPS_A_STEP},
        "paper_gpu_hours": PAPER_GPU_HOURS,
        "results": results,
    }


def print_shapes(console: Screen, shape: str, results: Sequence[dict[str, Any]]) -> None:
    """A row for each case: speed and memory, then the parts of its steps."""
    hours = f"h for {ITERATIONS:,} x {CLIPS_A_STEP} clips (paper: {PAPER_GPU_HOURS} GPU-h)"
    speed = Table("clip", "MOSS", "recomputed", title=f"training steps of one clip, shape {shape}")
    for head in ("s a step", "clips/s", "tokens/s", "peak GiB", "estimated", hours):
        speed.add_column(head, justify="right")
    parts = Table("clip", "MOSS", "recomputed", *PARTS, title="share of a step")
    for case in results:
        name = [f"{case['clip_s']:g} s", *("yes" if case[key] else "no" for key in ("moss", "recomputed"))]
        if "failed" in case:
            speed.add_row(*name, case["failed"])
            continue
        peak = "not measured" if case["peak_gib"] is None else f"{case['peak_gib']:.2f}"
        numbers = [f"{case['step_s']:.3g}", f"{case['clips_per_s']:.3g}", f"{case['tokens_per_s']:,.0f}"]
        speed.add_row(*name, *numbers, peak, f"{case['estimated_gib']:.2f}", f"{case['hours']:.2f}")
        parts.add_row(*name, *(f"{case['shares'][part]:.1%}" for part in PARTS))
    console.print(speed, parts)


if __name__ == "__main__":
    main()
