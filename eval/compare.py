"""Compare evaluations of one benchmark question by question: each folder against each one named before it.

    python eval/compare.py runs/eval/motionbench/base runs/eval/motionbench/favor_lora
    python eval/compare.py BASE TUNED MOSS --names base tuned "tuned + MOSS" --json compare.json
    python eval/compare.py A B --changed 0 --markdown > compare.md

FOLDER is a result folder of eval/motionbench.py or eval/favor_bench.py, complete or not. Prints, per task and
for all questions: both accuracies, the difference in points with a 95 % interval (bootstrap over videos),
questions gained and lost, McNemar's exact test; then the questions that changed. A pair is compared on the
questions that both have answered, so the accuracies may differ from those in the folders' own tables; other
questions are counted and named.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from textwrap import shorten

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from moss_vllm.evaluation.protocols import LETTERS
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.files import write_whole
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.screen import Screen, plain, say
from moss_vllm.runtime.tables import in_markdown


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


if __name__ == "__main__":
    answer_help(options)

from moss_vllm.evaluation.comparison import DRAWS, SEED, Comparison, compare
from moss_vllm.evaluation.result import read_evaluation

OTHER_COLUMNS = 64  # characters of the table beside the two columns of names


@errors_in_one_line("nothing is written")
def main(argv: list[str] | None = None) -> list[Comparison]:
    """Read, compare, print, write; a wrong argument or folder ends the script with one line and status 1."""
    args = options().parse_args(argv)
    if args.changed < 0:
        raise ValueError(f"--changed is {args.changed}; it must be at least 0")
    folders = [folder.expanduser() for folder in args.folders]
    names = choose_names(folders, args.names)
    evaluations = [read_evaluation(folder, name) for folder, name in zip(folders, names, strict=True)]
    comparisons = [compare(first, second) for first, second in combinations(evaluations, 2)]
    if args.json:
        content = {
            "bootstrap": {"draws": DRAWS, "seed": SEED, "resampled": "videos", "percentiles": [2.5, 97.5]},
            "evaluations": {one.name: {"folder": str(one.folder), **one.header} for one in evaluations},
            "comparisons": [{**asdict(one), "notes": one.notes} for one in comparisons],
        }
        write_whole(args.json, json.dumps(content, indent=2) + "\n")
    if args.markdown:
        say(*"\n".join(markdown(one, args.changed) for one in comparisons).rstrip().split("\n"), sep="\n")
    else:
        console = Screen()
        console.print(*(render(one, args.changed, console.width) for one in comparisons), sep="\n")
    if args.json:
        say(f"written to {args.json}", file=sys.stderr)
    return comparisons


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


def render(comparison: Comparison, changed: int, width: int) -> Group:
    """The comparison for a terminal `width` characters wide, with the first `changed` gains and losses.

    A and B stand for names that are too long for the heads of columns.
    """
    title, heads, rows = tabulate(comparison)
    fit = max(map(len, comparison.names)) <= (width - OTHER_COLUMNS) // 2
    heads[2:4] = comparison.names if fit else "AB"
    letters = [] if fit else [(0, f"{a}: {name}") for a, name in zip("AB", comparison.names, strict=True)]
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    lines = [*((2, note) for note in comparison.notes), *list_changed(comparison, changed)]
    above, below = ([Padding(plain(line), (0, 0, 0, n)) for n, line in some] for some in (letters, lines))
    return Group(Text(plain(title), style="bold"), *above, Padding(table, (1, 0)), *below)


def markdown(comparison: Comparison, changed: int) -> str:
    """The comparison as GitHub's markdown."""
    title, heads, rows = tabulate(comparison)
    heads = [in_markdown(head) for head in heads]
    lines = [
        f"**{in_markdown(title)}**",
        "",
        f"| {' | '.join(heads)} |",
        "|---|" + "---:|" * (len(heads) - 1),
    ]
    lines += [*(f"| {' | '.join(map(in_markdown, row))} |" for row in rows), ""]
    lines += [f"- {in_markdown(note)}" for note in comparison.notes]
    listed = [" " * n + plain(line).replace("```", "'''") for n, line in list_changed(comparison, changed)]
    return "\n".join([*lines, *(["", "```text", *listed, "```"] if listed else []), "", ""])


def tabulate(comparison: Comparison) -> tuple[str, list[str], list[list[str]]]:
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


if __name__ == "__main__":
    main()
