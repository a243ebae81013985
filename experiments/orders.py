"""The orders told apart: what each order sees of motion segments among look-alikes (Fig. 3, Sec. 3.2).

    python experiments/orders.py --seeds 3                                   # hours on two cores; resumable
    python experiments/orders.py --rows "1st order" MOSS --seeds 1 --steps 300 --out runs/try --json try.json

Twelve classes of moss_vllm/data/world/segments.py: camouflaged shapes that no frame shows, on a grid of 10 x
10 patches. The image encoder is the miniature Video-LLM's trained vision tower, frozen; it is run once, and
what it saw is kept in OUT. The ladder beside it is trained for each row and seed with the same clips in the
same order, which the seed decides, and is tested as it goes: on test clips, and on half as many training
clips, so that one sees whether a row has converged and whether it over-fits.

A run is OUT/ROW/seed-N; after a kill the same command continues, and repeats no finished run. At the end come
a table with the mean and spread over seeds, what order 2 adds seed by seed, and a picture of all curves.
"""

import json
import os
import platform
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.screen import Screen, say

ROW_NAMES = ("none", "1st order", "2nd order", "MOSS", "orders 1 and 3", "ATM", "SELFY", "R(2+1)D")
RESULTS = Path("benchmarks/results/orders-mini.json")


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"of {', '.join(ROW_NAMES)} (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="runs per row, from seed 0")
    parser.add_argument("--steps", type=int, default=1600, help="steps of each run")
    parser.add_argument("--train", type=int, default=2400, help="training clips, the same in all runs")
    parser.add_argument("--test", type=int, default=600, help="test clips")
    parser.add_argument("--base", default="miniature", help="folder of the miniature whose tower is used")
    parser.add_argument("--out", type=Path, default=Path("runs/orders"), help="folder of features and runs")
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs, which share the cores")
    parser.add_argument("--json", type=Path, default=RESULTS, help="every seed's numbers; a .png beside it")
    return parser


if __name__ == "__main__":
    answer_help(options)

import torch
from measuring import prepare_json, write_json
from orders_runs import CLIPS_A_STEP, NAMES, ROWS, Tower, draw_clips, features_of, train_run

from moss_vllm.data.world import segments
from moss_vllm.report.plots import plot_test_curves
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.files import whole_file
from moss_vllm.runtime.progress import show_progress
from moss_vllm.runtime.provenance import fingerprint
from moss_vllm.runtime.tables import Table, mean_and_spread
from moss_vllm.runtime.versions import versions

LOOK_EVERY_S = 1.0
COLUMNS = ("all", *segments.SEGMENT_GROUPS)


# ---- all runs


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is not finished; returns what `--json` writes."""
    parser = options()
    args = parser.parse_args(argv)
    for name in ("seeds", "steps", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least 1")
    for name in ("train", "test"):
        if getattr(args, name) < max(CLIPS_A_STEP, len(NAMES)):
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least {CLIPS_A_STEP}")
    chosen = args.rows or list(ROWS)
    if unknown := [row for row in chosen if row not in ROWS]:
        parser.error(f"argument --rows: invalid choice: {unknown[0]!r} (choose from {', '.join(ROW_NAMES)})")
    prepare_json(parser, args.json)
    settings = {"tower_fingerprint": fingerprint(Tower(args.base).vision.state_dict())}
    settings |= {"steps": args.steps, "train": args.train, "test": args.test}
    keep_settings(args.out, settings)
    files = prepare_clips(args)
    runs = {
        (row, seed): args.out / row.replace(" ", "-") / f"seed-{seed}"
        for seed in range(args.seeds)  # the first seed of all rows, then the second
        for row in chosen
    }
    run_all(runs, args, files)
    found = {
        row: [json.loads((runs[row, seed] / "result.json").read_text()) for seed in range(args.seeds)]
        for row in chosen
    }
    console = Screen(width=130)
    console.print(make_table(found, args))
    added = paired(found)
    say(*in_words(added), sep="\n")
    picture = args.json.with_suffix(".png")
    chance = 100 / len(NAMES)
    plot_test_curves({row: curves_of(results) for row, results in found.items()}, picture, chance=chance)
    say(f"curves are in {picture}")
    command = list(sys.argv[1:] if argv is None else argv)
    written = {
        "command": shlex.join(["python", "experiments/orders.py", *command]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {args.jobs} runs at once",
        "versions": versions(),
        **settings,
        "chance": chance,
        "rows": {row: {"set": ROWS[row], "seeds": results} for row, results in found.items()},
        "moss_minus_first_order": added,
    }
    write_json(args.json, written, console)
    return written


def keep_settings(out: Path, settings: Mapping[str, Any]) -> None:
    """ValueError if the runs in OUT have other clips, steps or another tower than now."""
    file = out / "settings.json"
    if file.is_file() and (was := json.loads(file.read_text())) != settings:
        raise ValueError(f"{out} has runs of {was}, not {dict(settings)}; remove it or name another --out")
    with whole_file(file) as part:
        part.write_text(json.dumps(settings) + "\n")


def prepare_clips(args: Any) -> list[Path]:
    """Files of the training and test clips with their labels, and of what the tower sees of them."""
    clip_files, feature_files = [], []
    for seed, side in enumerate(("train", "test")):
        file = args.out / f"{side}.pt"
        if not file.is_file():
            drawn = draw_clips(getattr(args, side), seed)
            with whole_file(file) as part:
                torch.save(drawn, part)
        clip_files.append(file)
        feature_files.append(args.out / f"{side}-features.npy")
        features_of(torch.load(file)[0], args.base, feature_files[-1])
    return clip_files + feature_files


def run_all(runs: Mapping[tuple[str, int], Path], args: Any, files: Sequence[Path]) -> None:
    """Train what is not finished, `--jobs` at a time, and show how far all of it is."""
    left = {run: folder for run, folder in runs.items() if not (folder / "result.json").is_file()}
    say(f"{len(runs)} runs, {len(runs) - len(left)} of them finished before", flush=True)
    total = sum(args.steps - steps_of(folder) for folder in left.values())
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the same command continues"))
    try:
        for _ in show_progress(follow(left, args, files), total, "steps", size=int):
            pass
    finally:
        signal.signal(signal.SIGTERM, before)


def follow(left: Mapping[tuple[str, int], Path], args: Any, files: Sequence[Path]) -> Iterator[int]:
    """Start the runs in turn; yields the steps done since the last look.

    Raises:
        RuntimeError: a run failed; the others are ended, and continue with the same command.
    """
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    waiting, running = list(left.items()), dict[Path, Any]()
    seen = sum(map(steps_of, left.values()))
    try:
        while waiting or running:
            while waiting and len(running) < args.jobs:
                (row, seed), folder = waiting.pop(0)
                given = (row, seed, args.steps, folder, files, threads)
                running[folder] = get_context("spawn").Process(target=train_run, args=given, daemon=True)
                running[folder].start()
            time.sleep(LOOK_EVERY_S)
            for folder, process in list(running.items()):
                if process.exitcode is not None:
                    del running[folder]
                    if process.exitcode or not (folder / "result.json").is_file():
                        raise RuntimeError(f"{folder}: the run ended with status {process.exitcode}")
            now = sum(map(steps_of, left.values()))
            yield now - seen
            seen = now
    finally:
        for process in running.values():
            process.terminate()


def steps_of(folder: Path) -> int:
    """The last step that a run has tested."""
    file = folder / "log.jsonl"
    return int(json.loads(file.read_text().splitlines()[-1])["step"]) if file.is_file() else 0


# ---- what came of them


def curves_of(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Mean over seeds of test and training accuracy by column: {"all": {"test": [(step, percent)], ...}}."""
    logs = [result["log"] for result in results]
    return {
        column: {
            side: [
                (lines[0]["step"], statistics.fmean(line[side][column] for line in lines))
                for lines in zip(*logs, strict=True)
            ]
            for side in ("test", "train")
        }
        for column in COLUMNS
    }


def make_table(found: Mapping[str, Sequence[Mapping[str, Any]]], args: Any) -> Table:
    """The last step of each row: mean and spread over seeds."""
    rows = {}
    for row, results in found.items():
        last = [result["log"][-1] for result in results]
        earlier = [result["log"][(len(result["log"]) * 3 - 1) // 4]["test"]["all"] for result in results]
        gains = [{"last quarter": a["test"]["all"] - b} for a, b in zip(last, earlier, strict=True)]
        rows[row] = {
            "test clips": mean_and_spread([one["test"] for one in last]),
            "training clips": mean_and_spread([{"all": one["train"]["all"]} for one in last]),
            "gain": mean_and_spread(gains),
            "run": {"trained (k)": round(results[0]["trainable"] / 1000)},
        }
    columns = {"test clips": list(COLUMNS), "training clips": ["all"], "gain": ["last quarter"]}
    notes = [
        f"after {args.steps:,} steps of {CLIPS_A_STEP} of {args.train:,} clips, tested on {args.test:,}",
        f"± is the sample sd over {args.seeds} seeds; chance is {100 / len(NAMES):.1f}",
        "gain: points that the last quarter of the steps added on the test clips",
    ]
    return Table("Segments (%)", {**columns, "run": ["trained (k)"]}, rows, notes)


def paired(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """MOSS minus its first order alone on the test clips, seed by seed; empty unless both were run."""
    if not {"MOSS", "1st order"} <= found.keys():
        return {}
    moss, first = ([one["log"][-1]["test"] for one in found[row]] for row in ("MOSS", "1st order"))
    return {column: [a[column] - b[column] for a, b in zip(moss, first, strict=True)] for column in COLUMNS}


def in_words(added: Mapping[str, Sequence[float]]) -> list[str]:
    """`paired` in lines."""
    lines = ["MOSS minus 1st order, percentage points, mean ± sample sd (seed by seed):"] if added else []
    for column, points in added.items():
        spread = f" ± {statistics.stdev(points):.1f}" if len(points) > 1 else ""
        seeds = " ".join(f"{value:+.1f}" for value in points)
        lines.append(f"- {column}: {statistics.fmean(points):+.1f}{spread} ({seeds})")
    return lines


if __name__ == "__main__":
    with errors_in_one_line("the same command continues, and repeats no finished run"):
        main()
