"""The orders told apart: what each order sees of motion segments among look-alikes (Fig. 3, Sec. 3.2).

    python experiments/orders.py --seeds 3                                   # hours on two cores; resumable
    python experiments/orders.py --rows "1st order" MOSS --seeds 1 --steps 300
    python experiments/orders.py --seeds 3 --json benchmarks/results/orders-mini.json

Twelve classes of moss_vllm/data/world/segments.py: camouflaged shapes that no frame shows, on a grid of 10 x
10 patches. The image encoder is the miniature Video-LLM's trained vision tower, frozen; it is run once, and
what it saw is kept in OUT. The ladder beside it is trained for each row and seed with the same clips in the
same order, which the seed decides, and is tested as it goes: on test clips, and on as many training clips, so
that one sees whether a row has converged and whether it over-fits.

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
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.screen import Screen, say

WINDOW = (3, 5, 5)  # a frame and two patches to each side
# What stands between encoder and ladder; the compared modules are as narrow as in Table 10c's miniature.
ROWS: dict[str, dict[str, Any]] = {
    "none": {"temporal": "none"},
    "1st order": {"temporal": "stss1"},
    "2nd order": {"temporal": "moss", "orders": (2,)},
    "MOSS": {"temporal": "moss", "orders": (1, 2)},
    "orders 1 and 3": {"temporal": "moss", "orders": (1, 3)},
    "ATM": {"temporal": "atm", "window": WINDOW, "d_hidden": 16},
    "SELFY": {"temporal": "selfy", "window": WINDOW, "d_hidden": 32},
    "R(2+1)D": {"temporal": "r2plus1d", "d_hidden": 32},
}


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="runs per row, from seed 0")
    parser.add_argument("--steps", type=int, default=1600, help="steps of each run")
    parser.add_argument("--train", type=int, default=2400, help="training clips, the same in all runs")
    parser.add_argument("--test", type=int, default=600, help="test clips")
    parser.add_argument("--base", default="miniature", help="folder of the miniature whose tower is used")
    parser.add_argument("--out", type=Path, default=Path("runs/orders"), help="folder of features and runs")
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs, which share the cores")
    parser.add_argument("--json", type=Path, help="file of every seed's numbers and curves; a .png beside it")
    return parser


if __name__ == "__main__":
    answer_help(options)

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from measuring import prepare_json, write_json
from torch import Tensor

from moss_vllm.core.ladder import Ladder
from moss_vllm.core.presets import MINI, build_ladder
from moss_vllm.data.world import segments
from moss_vllm.report.plots import plot_test_curves
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.files import whole_file
from moss_vllm.runtime.progress import show_progress
from moss_vllm.runtime.provenance import versions
from moss_vllm.runtime.tables import Table, mean_and_spread
from moss_vllm.training.optim import warmup_cosine
from moss_vllm.vlm.base import load_base
from moss_vllm.vlm.places import base_fingerprint

LAYERS = (3, 6)  # of the tower's 7; a temporal module reads the first
CLIPS_A_STEP, LR, WEIGHT_DECAY, SMOOTHING, CLIP_NORM = 16, 2e-3, 0.15, 0.1, 20.0  # as the recipe's miniature
WARMUP_SHARE, FLOOR = 0.1, 0.01
TESTS = 16  # of a run, evenly spaced
LOOK_EVERY_S = 1.0
NAMES = list(segments.SEGMENT_CLASSES)
COLUMNS = ("all", *segments.SEGMENT_GROUPS)


# ---- clips and what the tower sees of them


def draw_clips(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clips of all classes in equal parts, a pixel for each square, and their labels.

    Shape:
        returns: (N, T, 20, 20, 3) uint8, (N,).
    """
    rng = np.random.default_rng((seed, count))
    labels = rng.permutation(np.arange(count) % len(NAMES))
    side = segments.SQUARE_PX
    clips = [
        segments.render_segments(segments.draw_segments(rng, NAMES[label]))[:, ::side, ::side]
        for label in show_progress(labels.tolist(), count, "clips drawn")
    ]
    return torch.from_numpy(np.stack(clips)), torch.from_numpy(labels)


def pixels(squares: Tensor) -> Tensor:
    """Frames as encoder and ladder get them: (..., 20, 20, 3) -> (..., 3, 140, 140), from -1 to 1."""
    side = segments.SQUARE_PX
    whole = squares.movedim(-1, -3).float() / 127.5 - 1
    return whole.repeat_interleave(side, -1).repeat_interleave(side, -2)


class Tower:
    """The vision tower of a miniature Video-LLM as a frozen encoder: its layers' tokens.

    Shape:
        (N, 3, H', W') -> (layers, N, H*W, d_in), in the order of the grid.
    """

    def __init__(self, base: str) -> None:
        model: Any = load_base(base)
        self.vision = model.model.vision_model.eval().requires_grad_(False)
        self.patch_px: int = self.vision.config.patch_size

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """Tokens after each of LAYERS."""
        count, (rows, columns) = len(frames), (side // self.patch_px for side in frames.shape[-2:])
        patches = rearrange(frames, "n c (h p) (w q) -> (n h w) (c p q)", p=self.patch_px, q=self.patch_px)
        kept: dict[int, Tensor] = {}

        def keep(layer: int, output: Any) -> None:
            kept[layer] = output[0] if isinstance(output, tuple) else output

        hooks = [
            self.vision.encoder.layers[layer - 1].register_forward_hook(
                lambda module, given, output, layer=layer: keep(layer, output)
            )
            for layer in LAYERS
        ]
        try:
            grids = torch.tensor([[1, rows, columns]] * count)
            self.vision(patches, grids, torch.ones(count, dtype=torch.long))
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack([kept[layer].view(count, rows * columns, -1) for layer in LAYERS])


def features_of(clips: Tensor, base: str, file: Path) -> Tensor:
    """What the tower sees of the clips, run once and kept in `file`: (N, layers, T, H*W, d_in) float16."""
    if not file.is_file():
        tower = Tower(base)
        seen = []
        for clip in show_progress(clips, len(clips), "clips encoded"):
            seen.append(tower(pixels(clip)).half())
        with whole_file(file) as part:
            np.save(part, torch.stack(seen).numpy())
    return torch.from_numpy(np.load(file, mmap_mode="c"))


# ---- one run


def build(row: str, d_in: int) -> Ladder:
    """The ladder with the row's module."""
    preset = replace(MINI, d_in=d_in, layers=LAYERS, moss_layers=LAYERS[:1], window=WINDOW)
    return build_ladder(preset, classes=len(NAMES), image_size=segments.SEGMENT_FRAME_PX, **ROWS[row])


def taps_of(seen: Tensor) -> list[Tensor]:
    """The ladder's taps: the mean of a frame's patches stands for the class token that the tower lacks."""
    return [torch.cat([tap.mean(2, keepdim=True), tap], 2) for tap in seen.float().unbind(1)]


@torch.no_grad()
def accuracy(ladder: Ladder, seen: Tensor, clips: Tensor, labels: Tensor) -> dict[str, float]:
    """Percent right of all clips and of each group, all classes to choose from."""
    ladder.eval()
    rows = torch.arange(len(labels)).split(CLIPS_A_STEP)
    chosen = torch.cat([ladder(taps_of(seen[r]), pixels(clips[r])).argmax(-1) for r in rows])
    ladder.train()
    right = (chosen == labels).float()
    groups = np.array([segments.SEGMENT_CLASSES[NAMES[label]] for label in labels.tolist()])
    scores = {"all": float(right.mean())}
    scores |= {g: float(right[torch.from_numpy(groups == g)].mean()) for g in segments.SEGMENT_GROUPS}
    return {name: 100 * value for name, value in scores.items()}


def train_run(row: str, seed: int, steps: int, folder: Path, files: Sequence[Path], threads: int) -> None:
    """Train and test one ladder; writes log.jsonl, and result.json at the end. Continues a stopped run."""
    torch.set_num_threads(threads)
    (clips, labels), (test_clips, test_labels) = (torch.load(file) for file in files[:2])
    seen, test_seen = (torch.from_numpy(np.load(file, mmap_mode="c")) for file in files[2:])
    torch.manual_seed(seed)
    ladder = build(row, seen.shape[-1])
    optimizer = torch.optim.AdamW(ladder.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    state, log, begun = folder / "state.pt", list[dict[str, Any]](), 0
    folder.mkdir(parents=True, exist_ok=True)
    if state.is_file():
        kept = torch.load(state)
        ladder.load_state_dict(kept["ladder"])
        optimizer.load_state_dict(kept["optimizer"])
        begun, log = kept["step"], kept["log"]
    shown = slice(0, len(test_labels))
    an_epoch = len(labels) // CLIPS_A_STEP
    every = max(1, steps // TESTS)
    losses: list[float] = []
    for step in range(begun, steps):
        epoch, place = divmod(step, an_epoch)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        rows = order[place * CLIPS_A_STEP :][:CLIPS_A_STEP]
        factor = warmup_cosine(step, total=steps, warmup=max(1, int(WARMUP_SHARE * steps)), floor=FLOOR)
        for group in optimizer.param_groups:
            group["lr"] = LR * factor
        scores = ladder(taps_of(seen[rows]), pixels(clips[rows]))
        loss = F.cross_entropy(scores, labels[rows], label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ladder.parameters(), CLIP_NORM)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % every == 0 or step + 1 == steps:
            test = accuracy(ladder, test_seen, test_clips, test_labels)
            train = accuracy(ladder, seen[shown], clips[shown], labels[shown])
            log.append({"step": step + 1, "loss": statistics.fmean(losses), "test": test, "train": train})
            losses.clear()
            kept = {"ladder": ladder.state_dict(), "optimizer": optimizer.state_dict()}
            with whole_file(state) as part:
                torch.save({**kept, "step": step + 1, "log": log}, part)
            with whole_file(folder / "log.jsonl") as part:
                part.write_text("".join(json.dumps(line) + "\n" for line in log))
    trainable = sum(parameter.numel() for parameter in ladder.parameters())
    with whole_file(folder / "result.json") as part:
        part.write_text(json.dumps({"seed": seed, "trainable": trainable, "log": log}, indent=1) + "\n")
    state.unlink()


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
        parser.error(f"argument --rows: invalid choice: {unknown[0]!r} (choose from {', '.join(ROWS)})")
    prepare_json(parser, args.json)
    settings = {"base_fingerprint": base_fingerprint(args.base), "test": args.test}
    settings |= {"steps": args.steps, "train": args.train}
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
    picture = args.json.with_suffix(".png") if args.json else args.out / "orders.png"
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
