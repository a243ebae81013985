"""Compare evaluations of one benchmark, or tests of detectors: each folder against each one named before it.

    python eval/compare.py runs/eval/motionbench/base runs/eval/motionbench/favor_lora
    python eval/compare.py BASE TUNED MOSS --names base tuned "tuned + MOSS" --json compare.json
    python eval/compare.py A B --changed 0 --markdown > compare.md
    python eval/compare.py runs/thumos_b_adatad/test runs/thumos_b/test --names AdaTAD "+ MOSS"

FOLDER is a result folder of eval/motionbench.py or eval/favor_bench.py, complete or not. Prints, per task and
for all questions: both accuracies, the difference in points with a 95 % interval (bootstrap over videos),
questions gained and lost, McNemar's exact test; then the questions that changed. A pair is compared on the
questions that both have answered, so the accuracies may differ from those in the folders' own tables; other
questions are counted and named.

Or FOLDER is that of a detector's test (OUT/test of recipes/detection.py, or of eval/detection.py). Prints mAP
of both, averaged over thresholds of temporal IoU and at each, and the average precision of each class, with
the difference and its 95 % interval (both tests on the same draws of videos).
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from textwrap import shorten
from typing import Any

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moss_vllm.commands import is_starting
from moss_vllm.evaluation.protocols import LETTERS
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.files import refuse_unwritable, write_whole
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.screen import Screen, plain, say
from moss_vllm.runtime.tables import in_markdown
from moss_vllm.runtime.versions import tell_changes


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    add = parser.add_argument
    folders_help = "two result folders or more, the baseline first"
    add("folders", nargs="+", type=Path, metavar="FOLDER", help=folders_help)
    add("--names", nargs="+", metavar="NAME", help="names of the folders (default: the last part of each)")
    changed = "show the first N gained and the first N lost questions"
    add("--changed", type=int, default=5, metavar="N", help=changed)
    add("--json", type=Path, metavar="FILE", help="write everything there, with all changed questions")
    add("--markdown", action="store_true", help="print markdown, for a file or an issue")
    return parser


def check(parser: Flags, args: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is read."""
    if args.changed < 0:
        raise ValueError(f"--changed is {args.changed}; it must be at least 0")
    if args.json:
        refuse_unwritable(args.json.parent, "the folder of --json,")


if is_starting(__name__):
    answer_help(options, check)

from moss_vllm.data.annotated_videos import name_first
from moss_vllm.detection.comparison import (
    MAP_DRAWS,
    MAP_SEED,
    DetectionComparison,
    compare_detections,
)
from moss_vllm.detection.predictions import same_detections
from moss_vllm.detection.scores import AVERAGE
from moss_vllm.evaluation.comparison import DRAWS, SEED, Comparison, compare
from moss_vllm.evaluation.result import read_evaluation
from moss_vllm.report.detection_files import DetectionTest, holds_detections, read_test

Tabulated = tuple[str, list[str], list[list[str]]]  # title, heads of columns, rows of cells

OTHER_COLUMNS = 64  # characters of the table beside the two columns of names


@errors_in_one_line("nothing is written")
def main(argv: list[str] | None = None) -> list[Comparison] | list[DetectionComparison]:
    """Read, compare, print, write; a wrong argument or folder ends the script with one line and status 1."""
    parser = options()
    args = parser.parse_args(argv)
    check(parser, args)
    folders = [folder.expanduser() for folder in args.folders]
    of_detectors = [holds_detections(folder) for folder in folders]
    if all(of_detectors):
        parser.refuse_given(["changed"], "between tests of detectors, which ask no questions")
    names = choose_names(folders, args.names)
    if any(of_detectors):
        return compare_detectors(dict(zip(names, folders, strict=True)), of_detectors, args)
    evaluations = [read_evaluation(folder, name) for folder, name in zip(folders, names, strict=True)]
    comparisons = [compare(first, second) for first, second in combinations(evaluations, 2)]
    content = {
        "bootstrap": {"draws": DRAWS, "seed": SEED, "resampled": "videos", "percentiles": [2.5, 97.5]},
        "evaluations": {one.name: {"folder": str(one.folder), **one.header} for one in evaluations},
        "comparisons": [{**asdict(one), "notes": one.notes} for one in comparisons],
    }
    show([(tabulate(one), one.notes, list_changed(one, args.changed)) for one in comparisons], args, content)
    return comparisons


def compare_detectors(
    folders: Mapping[str, Path], of_detectors: Sequence[bool], args: argparse.Namespace
) -> list[DetectionComparison]:
    """Compare tests of detectors, by name; ValueError where a folder is none."""
    if not all(of_detectors):
        none = next(folder for folder, one in zip(folders.values(), of_detectors, strict=True) if not one)
        raise ValueError(f"{none} holds no finished test of a detector, as others do; compare one kind")
    tests = {name: read_test(folder, find_videos=False) for name, folder in folders.items()}
    comparisons, shown = list[DetectionComparison](), list[tuple[Tabulated, list[str], list[Any]]]()
    for (one, first), (other, second) in combinations(tests.items(), 2):
        pair = (first, second)
        comparison = compare_detections(
            (one, other), (first.split, second.split), (first.predictions, second.predictions)
        )
        about = [
            f"{name}: {test.name} in {test.folder}" for name, test in zip((one, other), pair, strict=True)
        ]
        notes = [*about, *(f"WARNING: {text}" for text in warn((one, other), pair)), *comparison.notes]
        comparisons.append(comparison)
        shown.append((tabulate_detections(comparison), notes, []))
    content = {
        "bootstrap": {"draws": MAP_DRAWS, "seed": MAP_SEED, "resampled": "videos", "deviations": 1.96},
        "tests": {name: {"folder": str(test.folder), **test.about} for name, test in tests.items()},
        "comparisons": [
            {**asdict(one), "notes": notes} for one, (_, notes, _) in zip(comparisons, shown, strict=True)
        ],
    }
    show(shown, args, content)
    return comparisons


def warn(names: Sequence[str], tests: Sequence[DetectionTest]) -> list[str]:
    """Reasons other than the models why two tests may differ, or may not."""
    first, second = (test.about for test in tests)
    warnings = [
        f"{key} differs: {first.get(key)} and {second.get(key)}"
        for key in ("data", "size_px", "weights")
        if first.get(key) != second.get(key)
    ]
    if changes := tell_changes(first.get("environment", {}), second.get("environment", {})):
        warnings.append(f"the environments differ: {changes}")
    for name, test in zip(names, tests, strict=True):
        if failed := test.about.get("failed"):
            counted = f"{len(failed):,} videos that could not be read"
            warnings.append(f"{name} has {counted}, whose actions count as missed ({name_first([*failed])})")
    is_same = same_detections(*(test.predictions for test in tests))
    return [*warnings, *(["the detections are the same"] if is_same else [])]


def show(
    shown: Sequence[tuple[Tabulated, Sequence[str], Sequence[tuple[int, str]]]],
    args: argparse.Namespace,
    content: Mapping[str, Any],
) -> None:
    """Print the comparisons: of each its table, notes, and further lines with their indents; write --json."""
    if args.json:
        write_whole(args.json, json.dumps(content, indent=2) + "\n")
    if args.markdown:
        say(*"\n".join(markdown(*one) for one in shown).rstrip().split("\n"), sep="\n")
    else:
        console = Screen()
        console.print(*(render(*one, console.width) for one in shown), sep="\n")
    if args.json:
        say(f"written to {args.json}", file=sys.stderr)


def choose_names(folders: Sequence[Path], names: Sequence[str] | None) -> list[str]:
    """`--names`, or the last part of each folder, or the whole folders if their last parts are not unique.

    Raises: ValueError for fewer than two folders, or names that are not one for each and unique.
    """
    if len(folders) < 2:
        raise ValueError(f"{len(folders)} folder cannot be compared; name two or more")
    chosen = list(names) if names else [folder.resolve().name for folder in folders]
    if not names and len(set(chosen)) < len(folders):
        chosen = [str(folder) for folder in folders]
    if len(chosen) != len(folders) or len(set(chosen)) < len(folders):
        reason = f"{len(folders)} folders are called {', '.join(chosen)}"
        raise ValueError(f"{reason}; give each a name of its own with --names")
    return chosen


def render(tabulated: Tabulated, notes: Sequence[str], more: Sequence[tuple[int, str]], width: int) -> Group:
    """A comparison for a terminal `width` characters wide.

    A and B stand for names that are too long for the heads of columns.
    """
    title, heads, rows = tabulated
    names = heads[2:4]
    fit = max(map(len, names)) <= (width - OTHER_COLUMNS) // 2
    heads = [*heads[:2], *(names if fit else "AB"), *heads[4:]]
    letters = [] if fit else [(0, f"{a}: {name}") for a, name in zip("AB", names, strict=True)]
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    lines = [*((2, note) for note in notes), *more]
    above, below = ([Padding(plain(line), (0, 0, 0, n)) for n, line in some] for some in (letters, lines))
    return Group(Text(plain(title), style="bold"), *above, Padding(table, (1, 0)), *below)


def markdown(tabulated: Tabulated, notes: Sequence[str], more: Sequence[tuple[int, str]]) -> str:
    """A comparison as GitHub's markdown."""
    title, heads, rows = tabulated
    heads = [in_markdown(head) for head in heads]
    lines = [
        f"**{in_markdown(title)}**",
        "",
        f"| {' | '.join(heads)} |",
        "|---|" + "---:|" * (len(heads) - 1),
    ]
    lines += [*(f"| {' | '.join(map(in_markdown, row))} |" for row in rows), ""]
    lines += [f"- {in_markdown(note)}" for note in notes]
    listed = [" " * n + plain(line).replace("```", "'''") for n, line in more]
    return "\n".join([*lines, *(["", "```text", *listed, "```"] if listed else []), "", ""])


def tabulate(comparison: Comparison) -> Tabulated:
    """Title, heads of columns, and a row of cells for each task."""
    (first, second), whole = comparison.names, comparison.tasks["all"]
    counts = f"{whole.questions:,} questions about {whole.videos:,} videos"
    rows = [
        [
            task,
            f"{row.questions:,}",
            *(f"{value:.1f}" for value in row.accuracy),
            signed(row.points),
            " to ".join(map(signed, row.interval)) if row.interval else "-",
            f"{row.gained:,}",
            f"{row.lost:,}",
            f"{row.p:.3f}" if row.p >= 0.001 else "<0.001",
        ]
        for task, row in comparison.tasks.items()
    ]
    heads = ["task", "questions", first, second, "difference", "95 % interval", "gained", "lost", "p"]
    return f"{comparison.benchmark}: {second} against {first}, {counts}", heads, rows


def tabulate_detections(comparison: DetectionComparison) -> Tabulated:
    """Title, heads of columns, and a row of cells for each column of mAP and each class."""
    (first, second), whole = comparison.names, next(iter(comparison.columns.values()))
    named = {
        ("mAP, average" if name == AVERAGE else f"mAP at tIoU {name}"): one
        for name, one in comparison.columns.items()
    }
    rows = [
        [
            name,
            f"{row.actions:,}",
            *(f"{value:.1f}" for value in row.precision),
            signed(row.points),
            " to ".join(map(signed, row.interval)) if row.interval else "-",
        ]
        for name, row in (*named.items(), *comparison.classes.items())
    ]
    heads = ["", "actions", first, second, "difference", "95 % interval"]
    counts = f"{whole.actions:,} actions in {whole.videos:,} videos"
    return f"{second} against {first}, {counts}", heads, rows


def list_changed(comparison: Comparison, shown: int) -> list[tuple[int, str]]:
    """Lines about the first questions gained and the first lost, each with its indent."""
    lines = []
    for kind in ("gained", "lost") if shown else ():
        rows = [row for row in comparison.changed if row["change"] == kind]
        first = f", the first {shown} of them" if len(rows) > shown else ""
        lines.append((0, f"{kind}: {len(rows):,}{first}"))
        for row in rows[:shown]:
            answer, texts = row["answer"], dict(zip(LETTERS, row["options"], strict=False))
            right = f"{answer}. {texts[answer]}" if answer in texts else answer
            outputs = [("right", right), *row["output"].items()]
            lines.append((2, f"{row['task']} {row['uid']}, video {row['video_id']}: {row['question']}"))
            lines += [(4, shorten(f"{who}: {text}", 160, placeholder=" ...")) for who, text in outputs]
    return [(indent, " ".join(line.split())) for indent, line in lines]


def signed(points: float) -> str:
    """The number with its sign and one decimal; one that rounds to zero gets a plus."""
    return f"{round(points, 1) + 0.0:+.1f}"
