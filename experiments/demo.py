"""The main job in minutes on a laptop: fine-tune a miniature Video-LLM with and without MOSS; evaluate.

    python experiments/demo.py            # or: make demo

Draws the motion world (once), fine-tunes the miniature on its captions without MOSS and with MOSS on the same
clips in the same order, and evaluates the miniature and both models in both benchmarks' formats, by the
benchmark's own protocol and by option_text. The control is the model with MOSS on clips whose every frame is
the middle one. It ends with the scores, the points that MOSS adds, a page with examples, and commands to try
next; it writes table.md in the shape of the paper's Table 5, losses.png and charts. Every stage is a command
of this repository, printed before it runs; a demo that was interrupted repeats no finished stage.
"""

import json
import os
import shlex
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moss_vllm.data.world.benchmarks import DEFAULT_ROOT, WorldSize, ensure_world
from moss_vllm.report import plots
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.files import refuse_unwritable, write_whole
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.ranges import FROM_ONE, FROM_ZERO, SEEDS
from moss_vllm.runtime.screen import Screen, say

MODELS = ("miniature", "miniature_qwen2_5_vl")


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder of checkpoints and results"
    )
    model = f"one of {', '.join(MODELS)} (default: {MODELS[0]})"
    parser.add_argument("--model", choices=MODELS, default=MODELS[0], metavar="MODEL", help=model)
    parser.add_argument("--world", type=Path, default=DEFAULT_ROOT, help="folder of the motion world")
    parser.add_argument("--seed", type=SEEDS, default=0, help="seed of first weights and the clips' order")
    parser.add_argument("--steps", type=FROM_ONE, help="optimizer steps (default: those of the recipe)")
    held_out = "rows kept out of training for the held-out loss (default: 0, as for the numbers in README)"
    parser.add_argument("--held-out", type=FROM_ZERO, default=0, metavar="N", help=held_out)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few clips and steps, to see it run; too few to learn",
    )
    return parser


if __name__ == "__main__":
    answer_help(options)

from demo_page import choose_examples, demo_page
from side_by_side import run_commands

from moss_vllm.data.motionbench import read_motionbench
from moss_vllm.evaluation import protocols
from moss_vllm.evaluation.comparison import compare
from moss_vllm.evaluation.result import read_evaluation
from moss_vllm.evaluation.tables import table_5
from moss_vllm.report.answer_files import read_results
from moss_vllm.report.html import PAGE_FILE, write_page
from moss_vllm.report.runs_page import SIDE_BY_SIDE, runs_page
from moss_vllm.runtime.tables import Cell, Table
from moss_vllm.training.run_folder import latest_checkpoint

BENCHMARKS = {
    "FAVOR-Bench": ("eval/favor_bench.py", "FAVOR"),
    "MotionBench-Dev": ("eval/motionbench.py", "MotionBench"),
}
TEXT, NAMED = "option_text", "names an option"
PROTOCOLS = {name: (next(iter(protocols.BENCHMARKS[name].protocols)), TEXT) for name in BENCHMARKS}
RECIPE = "recipes/favor_lora.py"
LOGS = "logs"
CONTROL, BASE = "+ train + MOSS, one frame", "miniature"
TRAINED, WITH_MOSS = "+ train", "+ train + MOSS"
QUICK_WORLD = WorldSize(train_clips=48, motionbench_questions=24, withheld_questions=4, favor_questions=24)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run every stage; returns what results.json has, see `summarise`."""
    parser = options()
    args = parser.parse_args(argv)
    refuse_unwritable(args.out, "--out")
    started = time.monotonic()
    if args.quick:
        ensure_world(args.out / "world", QUICK_WORLD)
        world, steps = args.out / "world", args.steps or 4
    else:
        world, steps = ensure_world(args.world), args.steps

    more = ["--model", args.model, "--held-out", str(args.held_out)]
    train_and_evaluate(args.out, world, args.seed, steps, args.model, more)
    scores = summarise(args.out)
    write_whole(args.out / "results.json", json.dumps(scores, indent=2) + "\n")
    draw(args.out, scores)
    page, clip, question = write_examples(args.out, world, scores)
    took = f"{(time.monotonic() - started) / 60:.1f} min"
    say("", f"The demo took {took}. {args.out} has the scores of each task, charts and {LOGS}.", "", sep="\n")
    Screen().print(table_of_scores(scores))
    say(*describe_differences(scores), "", sep="\n")
    say(f"Ten clips with the answers without and with MOSS: {page}", "", sep="\n")
    commands = commands_to_try(args.out, clip, question, last_checkpoint(args.out / "moss"))
    say("Next, a question of your own, and what MOSS changed:", *(f"  {one}" for one in commands), sep="\n")
    return scores


def commands_to_try(out: Path, clip: Path, question: str, checkpoint: str) -> list[str]:
    """Commands for a shell: ask about a clip, and compare the models."""
    compared = [answers_folder(out, "MotionBench-Dev", arm, TEXT) for arm in ("plain", "moss")]
    some = [["scripts/ask.py", clip, question, "--ckpt", checkpoint], ["eval/compare.py", *compared]]
    return [shlex.join(["python", *map(str, words)]) for words in some]


def summarise(out: Path) -> dict[str, Any]:
    """The numbers of the evaluations in `out`, in percent.

    "chance": {benchmark: {task}}; "rows": {row: {benchmark: {protocol: {task}}}}; "named", the share of
    answers by the benchmark's own protocol that name an option: {row: {benchmark: {task}}}; "differences",
    the model with MOSS minus that without: {benchmark: {protocol: {points, interval, p, ...}}}.
    """
    results = {
        row: {name: {p: read_result(out, name, arm, p) for p in PROTOCOLS[name]} for name in BENCHMARKS}
        for row, arm in {CONTROL: "moss-still", BASE: "base", TRAINED: "plain", WITH_MOSS: "moss"}.items()
    }
    return {
        "chance": {name: by[TEXT]["chance_percent"] for name, by in results[BASE].items()},
        "rows": {
            row: {
                name: {p: result["accuracy_percent"] for p, result in by.items()} for name, by in some.items()
            }
            for row, some in results.items()
        },
        "named": {
            row: {name: share_named(by[PROTOCOLS[name][0]]["counts"]) for name, by in some.items()}
            for row, some in results.items()
        },
        "differences": {
            name: {protocol: difference(out, name, protocol) for protocol in PROTOCOLS[name]}
            for name in BENCHMARKS
        },
    }


def read_result(out: Path, benchmark: str, arm: str, protocol: str) -> dict[str, Any]:
    """The result.json of an evaluation."""
    content: dict[str, Any] = json.loads(
        (answers_folder(out, benchmark, arm, protocol) / "result.json").read_text()
    )
    return content


def share_named(counts: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    """Answers that name an option in percent, by task."""
    return {task: 100 * counts["answered"][task] / total for task, total in counts["total"].items() if total}


def difference(out: Path, benchmark: str, protocol: str) -> dict[str, Any]:
    """What MOSS changes in all questions, against the same training without it."""
    folders = [answers_folder(out, benchmark, arm, protocol) for arm in ("plain", "moss")]
    found = asdict(compare(*map(read_evaluation, folders)).tasks["all"])
    return {key: found[key] for key in ("points", "interval", "p", "gained", "lost", "questions")}


def table_of_scores(scores: Mapping[str, Any]) -> Table:
    """All questions by both protocols, and the share of answers that name an option."""
    columns = {name: [own, NAMED, text] for name, (own, text) in PROTOCOLS.items()}
    rows: dict[str, dict[str, dict[str, Cell]]] = {
        "chance": {name: dict.fromkeys(PROTOCOLS[name], by["all"]) for name, by in scores["chance"].items()}
    }
    for row, by_benchmark in scores["rows"].items():
        rows[row] = {
            name: {p: by[p]["all"] for p in by} | {NAMED: scores["named"][row][name]["all"]}
            for name, by in by_benchmark.items()
        }
    notes = [
        "questions of the motion world in the benchmarks' formats: no number compares with the paper's",
        f"{TEXT}: the option whose text has the lowest mean loss per token, so every question gets one; by "
        "the benchmark's own protocol an answer that names none is wrong, so a row may lie below chance",
    ]
    return Table("Motion world, all questions (%)", columns, rows, notes)


def describe_differences(scores: Mapping[str, Any]) -> list[str]:
    """A line for each benchmark and protocol."""
    lines = ["MOSS against the same training without it, in points:"]
    for name, by in scores["differences"].items():
        for protocol, found in by.items():
            low, high = found["interval"] or (found["points"],) * 2
            p = f"= {found['p']:.3f}" if found["p"] >= 0.001 else "< 0.001"
            points = f"{found['points']:+.1f} (95 % interval {low:+.1f} to {high:+.1f})"
            lines.append(f"  {name}, {protocol}: {points}, McNemar's test p {p}")
    return lines


def draw(out: Path, scores: Mapping[str, Any]) -> None:
    """Write table.md, losses.png, the charts, and the page with runs and evaluations side by side."""
    tables, bars, chance = [table_of_scores(scores)], dict[str, dict[str, Cell]](), dict[str, float]()
    for name, some in PROTOCOLS.items():
        for protocol in some:
            title = f"Motion world in {name}'s format, {protocol}"
            shown = {row: by[name][protocol] for row, by in scores["rows"].items()}
            file = out / f"{name.lower()}-{protocol}.png"
            plots.plot_accuracy(shown, file, chance=scores["chance"][name], title=title)
            for row, by_task in shown.items():
                bars.setdefault(row, {})[f"{name}\n{protocol}"] = by_task["all"]
            chance[f"{name}\n{protocol}"] = scores["chance"][name]["all"]
    for place, title in enumerate(("the benchmarks' own protocols", TEXT)):
        rows = {"chance": scores["chance"]}
        for row, by in scores["rows"].items():
            rows[row] = {name: by[name][some[place]] for name, some in PROTOCOLS.items()}
        tables.append(table_5(rows, title=f"Motion world by {title}, accuracy (%)"))
    write_whole(out / "table.md", "\n".join(table.markdown() for table in tables))
    plots.plot_accuracy(bars, out / "accuracy.png", chance=chance, title="Motion world, all questions")
    arms = {TRAINED: out / "plain", WITH_MOSS: out / "moss"}
    curves, held_out = (
        {row: losses(run, key) for row, run in arms.items()} for key in ("loss", "held_out_loss")
    )
    title = "Loss on the motion world's captions"
    plots.plot_losses(curves, out / "losses.png", held_out=held_out, title=title)
    answered = (
        answers_folder(out, name, arm, protocol)
        for name, some in PROTOCOLS.items()
        for protocol in some
        for arm in ("base", "plain", "moss")
    )
    write_page(runs_page([*arms.values(), *answered]), out / SIDE_BY_SIDE)


def write_examples(out: Path, world: Path, scores: Mapping[str, Any]) -> tuple[Path, Path, str]:
    """The page with examples; returns it, and the video and text of its first question."""
    name, data = "MotionBench-Dev", world / BENCHMARKS["MotionBench-Dev"][1]
    results = {
        arm: {p: read_results(answers_folder(out, name, arm, p)) for p in PROTOCOLS[name]}
        for arm in ("plain", "moss")
    }
    videos = read_motionbench(data, data)
    examples = choose_examples(videos, protocols.BENCHMARKS[name].tasks)
    page = out / PAGE_FILE
    answers = {"without MOSS": results["plain"], "with MOSS": results["moss"]}
    bars = {
        row: {f"{b}, {p}": by[b][p]["all"] for b, some in PROTOCOLS.items() for p in some}
        for row, by in scores["rows"].items()
    }
    chance = {f"{b}, {p}": scores["chance"][b]["all"] for b, some in PROTOCOLS.items() for p in some}
    said = describe_differences(scores)
    write_page(demo_page(table_of_scores(scores), said, bars, chance, examples, answers), page)
    video, question = examples[0]
    return page, Path(str(video.path)), question.text


def train_and_evaluate(
    out: Path, world: Path, seed: int, steps: int | None, model: str, more: list[str]
) -> None:
    """Fine-tune without and with MOSS, or resume both, and evaluate them and the miniature.

    The training with MOSS takes longest: beside it, the rest is evaluated when the other training is done.
    """
    flags = training_flags(out, world, seed, steps, cache=out / "frames")  # each run reads its clips again
    flags = {arm: [*words, *more] for arm, words in flags.items()}
    cores = os.cpu_count() or 1

    def train(arm: str) -> str:
        run_commands({arm: [[RECIPE, *flags[arm]]]}, out / LOGS, threads=cores // 2)
        return last_checkpoint(out / arm)

    def train_plain() -> None:
        some = {"base": [model], "plain": [train("plain")]}
        by_benchmark = evaluations(out, world, some)
        commands = [one for commands in by_benchmark.values() for one in commands]
        run_commands({" and ".join(some): commands}, out / LOGS, threads=cores // 2)

    with ThreadPoolExecutor(2) as pool:
        plain, moss = pool.submit(train_plain), pool.submit(train, "moss")
    plain.result()
    checkpoint = moss.result()
    arms = {"moss": [checkpoint], "moss-still": [checkpoint, "--still"]}
    run_commands(evaluations(out, world, arms), out / LOGS)


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


def evaluations(out: Path, world: Path, arms: Mapping[str, list[str]]) -> dict[str, list[list[str]]]:
    """Commands by benchmark that evaluate arms by both protocols; an arm is its --ckpt and more flags."""
    return {
        name: [
            [script, "--data", str(world / folder), "--out", str(answers_folder(out, name, arm, protocol))]
            + ["--protocol", protocol, "--batch-size", "32", "--cache", str(out / "frames"), "--ckpt", *ckpt]
            for arm, ckpt in arms.items()
            for protocol in PROTOCOLS[name]
        ]
        for name, (script, folder) in BENCHMARKS.items()
    }


def answers_folder(out: Path, benchmark: str, arm: str, protocol: str) -> Path:
    """The folder of an evaluation: eval/MotionBench/moss, or moss-option_text."""
    return out / "eval" / BENCHMARKS[benchmark][1] / (arm if protocol != TEXT else f"{arm}-{protocol}")


def losses(out: Path, key: str = "loss") -> list[tuple[int, float]]:
    """(step, loss) of a run; a step that was repeated after an interruption counts once."""
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    return sorted({line["step"]: line[key] for line in lines if key in line}.items())


if __name__ == "__main__":
    with errors_in_one_line():
        main()
