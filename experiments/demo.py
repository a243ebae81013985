"""The main job in minutes on a laptop: fine-tune the miniature VideoLLaMA3 with and without MOSS; evaluate.

    python experiments/demo.py            # or: make demo

Draws the motion world (once), evaluates the miniature on it, fine-tunes it on captions without MOSS and with
MOSS on the same clips in the same order, and evaluates both in both benchmarks' formats. It ends with the
scores, the points that MOSS adds with their 95 % interval, and commands to try next; it writes table.md in
the shape of the paper's Table 5, losses.png and a chart per benchmark. Every stage is a command of this
repository, printed before it runs; a demo that was interrupted repeats no finished stage.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from moss_vllm.data.world.benchmarks import DEFAULT_ROOT, WorldSize, ensure_world
from moss_vllm.report import plots
from moss_vllm.runtime.files import write_whole
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.screen import Screen, say


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder of checkpoints and results"
    )
    parser.add_argument("--world", type=Path, default=DEFAULT_ROOT, help="folder of the motion world")
    parser.add_argument("--seed", type=int, default=0, help="seed of first weights and the clips' order")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: those of the recipe)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few clips and steps, to see it run; too few to learn",
    )
    return parser


if __name__ == "__main__":
    answer_help(options)

from moss_vllm.evaluation.tables import table_5
from moss_vllm.runtime.tables import Table
from moss_vllm.training.run_folder import latest_checkpoint

BENCHMARKS = {
    "FAVOR-Bench": ("eval/favor_bench.py", "FAVOR"),
    "MotionBench-Dev": ("eval/motionbench.py", "MotionBench"),
}
RECIPE = "recipes/favor_lora.py"
LOGS, SHOWN_OF_A_FAILURE = "logs", 15
PROGRESS = re.compile(r"step \d+/|done: |kept |stopped|row |\d+ of \d+ questions|measured ")
CLIP, QUESTION = "FAVOR/videos/FAVOR-Bench/world_0006.mp4", "What does the white triangle do?"
BASE, TRAINED, WITH_MOSS = "miniature", "+ train", "+ train + MOSS"
QUICK_WORLD = WorldSize(train_clips=48, motionbench_questions=24, withheld_questions=4, favor_questions=24)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run every stage; returns accuracy in percent by row, benchmark and task."""
    args = options().parse_args(argv)
    started = time.monotonic()
    if args.quick:
        ensure_world(args.out / "world", QUICK_WORLD)
        world, steps = args.out / "world", args.steps or 4
    else:
        world, steps = ensure_world(args.world), args.steps

    arms = train_arms(args.out, world, args.seed, steps)
    results = evaluate_arms({BASE: "miniature", **arms}, world, args.out)
    rows: dict[str, Any] = {
        name: {benchmark: result["accuracy_percent"] for benchmark, result in by_benchmark.items()}
        for name, by_benchmark in results.items()
    }
    chance = {benchmark: result["chance_percent"] for benchmark, result in results[BASE].items()}
    notes = ["questions of the motion world in the benchmarks' formats: no number compares with the paper's"]
    table = table_5({"chance": chance, **rows}, title="Motion world, accuracy (%)", notes=notes)
    write_whole(args.out / "table.md", table.markdown())
    write_whole(args.out / "results.json", json.dumps({"chance": chance, **rows}, indent=2) + "\n")
    curves = {name: losses(Path(ckpt).parent) for name, ckpt in arms.items() if name != BASE}
    plots.plot_losses(curves, args.out / "losses.png", title="Loss on the motion world's captions")
    for benchmark in BENCHMARKS:
        shown = {name: scores[benchmark] for name, scores in rows.items()}
        picture, title = args.out / f"{benchmark.lower()}.png", f"Motion world in {benchmark}'s format"
        plots.plot_accuracy(shown, picture, chance=chance[benchmark], title=title)
    conclude(args.out, results, rows, chance, Path(arms[WITH_MOSS]), world / CLIP)
    say(f"The demo took {(time.monotonic() - started) / 60:.1f} min. Logs are in {args.out / LOGS}.")
    return rows


def conclude(
    out: Path,
    results: Mapping[str, Mapping[str, Any]],
    rows: Mapping[str, Any],
    chance: Mapping[str, Any],
    ckpt: Path,
    clip: Path,
) -> None:
    """Print the scores, what MOSS adds with its interval, why rows lie below chance, and what to do next."""
    from moss_vllm.evaluation.comparison import compare
    from moss_vllm.evaluation.result import read_evaluation

    whole = {
        name: {benchmark: {"all": values["all"]} for benchmark, values in scores.items()}
        for name, scores in {"chance": chance, **rows}.items()
    }
    title = "Right answers on the motion world (%)"
    columns = {benchmark: ["all"] for benchmark in rows[BASE]}
    say()
    Screen().print(Table(title, columns, whole))
    for benchmark, (_, folder) in BENCHMARKS.items():
        sides = [read_evaluation(out / "eval" / folder / arm, arm) for arm in ("plain", "moss")]
        change = compare(*sides).tasks["all"]
        low, high = change.interval or (change.points, change.points)
        counts = [results[name][benchmark]["counts"] for name in (TRAINED, WITH_MOSS)]
        without, with_ = (1 - count["answered"]["all"] / count["total"]["all"] for count in counts)
        say(
            f"{benchmark}: {change.points:+.1f} points by MOSS, against the same training without it "
            f"(95 % interval {low:+.1f} to {high:+.1f}).",
            f"  Without MOSS {without:.0%} of the answers name no option, with it {with_:.0%}.",
            sep="\n",
        )
    table, commands = out / "table.md", [f"python scripts/report.py {ckpt.parent}"]
    commands.append(f"python scripts/report.py {out}/eval/MotionBench/moss")
    commands.append(f"python eval/compare.py {out}/eval/MotionBench/plain {out}/eval/MotionBench/moss")
    if clip.is_file():
        commands.append(f'python scripts/ask.py {clip} "{QUESTION}" --ckpt {ckpt}')
    say(
        "An answer that names no option counts as wrong, while a guess always names one: a row may lie",
        f"below chance. {table} has the scores of each task; charts are beside it.",
        "",
        "Next, a page of the run, a page of its answers, what MOSS changed, and a question of your own:",
        *(f"  {command}" for command in commands),
        sep="\n",
    )


def train_arms(out: Path, world: Path, seed: int, steps: int | None) -> dict[str, str]:
    """Fine-tune without and with MOSS, or resume both; returns the last checkpoints."""
    arms = training_flags(out, world, seed, steps, cache=out / "frames")  # each run reads its clips again
    run_commands({folder: [RECIPE, *flags] for folder, flags in arms.items()}, out / LOGS)
    return {TRAINED: last_checkpoint(out / "plain"), WITH_MOSS: last_checkpoint(out / "moss")}


def training_flags(
    out: Path, world: Path, seed: int, steps: int | None, *, cache: Path | None
) -> dict[str, list[str]]:
    """The recipe's flags without and with MOSS, by the run's folder in `out`."""
    flags = ["--data", str(world / "FAVOR"), "--seed", str(seed), "--resume", "auto"]
    flags += [] if steps is None else ["--steps", str(steps)]
    flags += [] if cache is None else ["--cache", str(cache)]
    arms = {"plain": "--no-use-moss", "moss": "--use-moss"}
    return {folder: [*flags, "--out", str(out / folder), moss] for folder, moss in arms.items()}


def last_checkpoint(out: Path) -> str:
    """The newest checkpoint folder of a run."""
    checkpoint = latest_checkpoint(out)
    if checkpoint is None:
        raise SystemExit(f"{out} has no step-* folder; remove {out} and run again")
    return str(checkpoint)


def evaluate_arms(arms: dict[str, str], world: Path, out: Path, *extra: str) -> dict[str, dict[str, Any]]:
    """Evaluate checkpoints through the benchmarks' scripts; returns result.json by arm and benchmark."""
    results: dict[str, dict[str, Any]] = {}
    for name, ckpt in arms.items():
        arm = "base" if ckpt == "miniature" else Path(ckpt).parent.name
        folders = {
            benchmark: out / "eval" / folder / "-".join([arm, *(flag.strip("-") for flag in extra)])
            for benchmark, (_, folder) in BENCHMARKS.items()
        }
        commands = {}
        for benchmark, (script, folder) in BENCHMARKS.items():
            command = [script, "--ckpt", ckpt, "--data", str(world / folder)]
            command += ["--out", str(folders[benchmark]), "--batch-size", "32", *extra]
            commands[f"{arm} {benchmark}"] = command
        run_commands(commands, out / LOGS)
        results[name] = {b: json.loads((path / "result.json").read_text()) for b, path in folders.items()}
    return results


def losses(out: Path) -> list[tuple[int, float]]:
    """(step, loss) of a run; a step that was repeated after an interruption counts once."""
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    return sorted({line["step"]: line["loss"] for line in lines}.items())


def run_commands(commands: dict[str, list[str]], logs: Path | None = None) -> None:
    """Run `python COMMAND`s side by side, sharing the cores; end the demo if one fails.

    With a folder for `logs`, all output of a command goes to NAME.txt in it, and only progress is shown.
    """
    threads = max(1, (os.cpu_count() or 1) // len(commands))
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    say()
    for name, command in commands.items():
        say(f"[{name}] $ python {shlex.join(command)}", flush=True)
    if logs:
        logs.mkdir(parents=True, exist_ok=True)

    def follow(name: str) -> int:
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
        kept: list[str] = []
        with subprocess.Popen([sys.executable, *commands[name]], **piped) as process:
            for line in map(str.rstrip, process.stdout):
                kept.append(line)
                if line and (logs is None or PROGRESS.match(line)):
                    say(f"[{name}] {line}", flush=True)
        if logs:
            (logs / f"{name}.txt").write_text("\n".join([*kept, ""]))
            if process.returncode:
                say(*(f"[{name}] {line}" for line in kept[-SHOWN_OF_A_FAILURE:]), sep="\n", flush=True)
        return process.returncode

    with ThreadPoolExecutor(len(commands)) as pool:
        codes = dict(zip(commands, pool.map(follow, commands), strict=True))
    if failed := [name for name, code in codes.items() if code]:
        raise SystemExit(
            f"{' and '.join(failed)} failed; the message is above. Run again to go on from here."
        )


if __name__ == "__main__":
    main()
