"""Accuracy by action group of two tests of the same clips, and what the second gains: the paper's Fig. 8.

    python scripts/action_groups.py runs/stss1/test runs/moss/test --out groups.png
    python scripts/action_groups.py A B --groups data/mini_actions/groups.csv --json groups.json

A and B are folders that eval/action_recog.py wrote, or OUT/test or OUT/evals/step-NNNNNN of the recipe. A
group's accuracy is the share of its clips whose likeliest class is the right one. Something-Something has 50
groups (Goyal et al., 2017), the mini actions five, FineGym one for each event; other data need --groups, a
csv `name,group` of all classes, or `id,group` where names repeat. The table shows both accuracies, B - A in
points with a 95 % interval (bootstrap over clips), and clips gained and lost; --out draws the differences as
bars.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from moss_vllm.report.plots import COLOURS, DOTS_PER_INCH
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.files import read_json, whole_file
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.line_store import ANSWERS, Stored, holds_answers, read_answers
from moss_vllm.runtime.screen import Screen, say


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    add = parser.add_argument
    add("folders", nargs=2, type=Path, metavar="FOLDER", help="result folders A and B; B - A is shown")
    add("--groups", type=Path, metavar="CSV", help="'name,group' of every class (default: the data's own)")
    add("--out", type=Path, metavar="PNG", help="draw the differences there")
    add("--json", type=Path, metavar="FILE", help="write the numbers there")
    return parser


if __name__ == "__main__":
    answer_help(options)

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from moss_vllm.data.actions.groups import find_groups, read_groups
from moss_vllm.evaluation.comparison import DRAWS, SEED, Difference, measure_difference
from moss_vllm.recognition.schema import CLIP_SCHEMA
from moss_vllm.runtime.provenance import RUN_FILE
from moss_vllm.training.best import BEST

GAIN, LOSS, PALE = COLOURS[0], COLOURS[5], 0.4
NAMED = 3


@dataclass(frozen=True)
class Tested:
    """A result folder with a test's clips."""

    folder: Path
    stored: Stored

    @property
    def header(self) -> Mapping[str, Any]:
        """The test: dataset, checkpoint, views."""
        return self.stored.header or {}

    @property
    def rows(self) -> Mapping[str, Mapping[str, Any]]:
        """A row for each clip that was scored, by the clip's id."""
        return self.stored.answers

    def classes(self) -> dict[int, str]:
        """Names by class id: all of the checkpoint's if it is found, or those in the rows."""
        named: dict[int, str] = {}
        for row in self.rows.values():
            named |= {row["label"]: row["answer"]}
            named |= {label: name for label, (name, _) in zip(row["guesses"], row["top5"], strict=True)}
        for place in (
            Path(self.header["checkpoint"]),
            self.folder.parent / BEST,
            self.folder.parents[1] / BEST,
        ):
            if (file := place / RUN_FILE).is_file():
                classes = read_json(file, "restore it, or name --groups").get("classes", [])
                if named.items() <= (whole := dict(enumerate(classes))).items():
                    return whole
        return named


@errors_in_one_line("nothing is written")
def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Read, compare, print, draw; returns what `--json` writes."""
    args = options().parse_args(argv)
    for name in ("out", "json"):
        if (file := getattr(args, name)) and file.is_dir():
            raise ValueError(f"--{name} {file} is a folder; name a file")
    first, second = (read_test(folder.expanduser().absolute()) for folder in args.folders)
    names = tell_apart(*args.folders)
    notes = refuse_other_clips(first, second)
    classes, data = first.classes(), first.header["benchmark"]
    if args.groups:
        source, groups = str(args.groups), read_groups(args.groups, classes)
    else:
        source, groups = f"the known groups of {data}", find_groups(data, classes)
    whole, by_group = compare_groups(first, second, groups, source)
    if empty := sorted(set(groups.values()) - set(by_group)):
        notes.append(f"no clip of {len(empty)} groups: {', '.join(empty)}")
    record = {
        "A": {"name": names[0], "folder": str(first.folder), **first.header},
        "B": {"name": names[1], "folder": str(second.folder), **second.header},
        "groups_of": source,
        "counts": count(by_group),
        "bootstrap": {"draws": DRAWS, "seed": SEED, "resampled": "clips", "percentiles": [2.5, 97.5]},
        "notes": notes,
        "all": asdict(whole),
        "groups": {group: asdict(difference) for group, difference in by_group.items()},
    }
    show(names, whole, by_group, notes)
    if args.json:
        with whole_file(args.json) as part:
            part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if args.out:
        draw(names, whole, by_group, args.out)
    for file in filter(None, (args.json, args.out)):
        say(f"written: {file}")
    return record


def read_test(folder: Path) -> Tested:
    """The test of a classifier in a folder.

    Raises:
        ValueError: the folder holds no such test.
    """
    remedy = f"name {CLIP_SCHEMA.source}"
    if not holds_answers(folder):
        raise ValueError(f"{folder} holds no tested clips; {remedy}")
    test = Tested(folder, read_answers(folder / ANSWERS, CLIP_SCHEMA))
    if not test.rows:
        raise ValueError(f"{folder} has no clip that was scored yet; wait for it, or {remedy}")
    if old := [uid for uid, row in test.rows.items() if not {"label", "guesses"} <= set(row)]:
        raise ValueError(
            f"{folder} holds {len(old):,} clips ({some(old)}) without a class id, as earlier versions wrote "
            "them; test again with eval/action_recog.py --overwrite"
        )
    return test


def refuse_other_clips(first: Tested, second: Tested) -> list[str]:
    """Notes on differences between two tests that can be compared.

    Raises:
        ValueError: the tests are of different data or clips, or give a clip different classes.
    """
    a, b = first.rows, second.rows
    datasets = [f"{test.folder} is of {test.header['benchmark']}" for test in (first, second)]
    if first.header["benchmark"] != second.header["benchmark"]:
        raise ValueError(f"{' and '.join(datasets)}; compare tests of one dataset")
    reasons = {
        f"only {first.folder} has": [uid for uid in a if uid not in b],
        f"only {second.folder} has": [uid for uid in b if uid not in a],
        "the two do not agree on the class of": [
            uid for uid in a if uid in b and any(a[uid][key] != b[uid][key] for key in ("label", "answer"))
        ],
    }
    if wrong := [f"{why} {len(uids):,} clips ({some(uids)})" for why, uids in reasons.items() if uids]:
        raise ValueError(f"{'; '.join(wrong)}; test both to the end, on the same clips")
    notes = []
    was, now = (test.header["protocol"] for test in (first, second))
    if differ := [key for key in {**was, **now} if was.get(key) != now.get(key)]:
        shown = ", ".join(f"{key} {was.get(key)} and {now.get(key)}" for key in differ)
        notes.append(f"WARNING: the views differ: {shown}")
    if failed := sorted({**first.stored.failed, **second.stored.failed}):
        notes.append(f"{len(failed):,} clips could not be read and are not counted ({some(failed)})")
    if pending := max(first.header["questions"], second.header["questions"]) - len(a) - len(failed):
        notes.append(f"WARNING: {pending:,} clips were not tested yet")
    return notes


def compare_groups(
    first: Tested, second: Tested, groups: Mapping[int, str], source: str
) -> tuple[Difference, dict[str, Difference]]:
    """The second test minus the first on all clips, and by group, the largest gain first.

    Raises:
        ValueError: classes without a group.
    """
    uids = np.array(list(first.rows))
    labels = {row["label"]: row["answer"] for row in first.rows.values()}
    if strange := [name for label, name in labels.items() if label not in groups]:
        raise ValueError(
            f"{source}: no group for {len(strange)} classes of {first.folder} "
            f"({some(list(map(repr, strange)))}); name a csv 'name,group' of all classes with --groups"
        )
    right = np.array([[test.rows[uid]["correct"] for test in (first, second)] for uid in first.rows], int)
    member = np.array([groups[row["label"]] for row in first.rows.values()])
    by_group = {
        group: measure_difference(right[member == group], uids[member == group])
        for group in sorted(set(member.tolist()))
    }
    ordered = sorted(by_group.items(), key=lambda item: -item[1].points)
    return measure_difference(right, uids), dict(ordered)


def count(by_group: Mapping[str, Difference]) -> dict[str, int]:
    """Numbers of groups in which the second test is better, worse, and equal."""
    net = [difference.gained - difference.lost for difference in by_group.values()]
    return {"up": sum(n > 0 for n in net), "down": sum(n < 0 for n in net), "equal": net.count(0)}


def summary(whole: Difference, by_group: Mapping[str, Difference]) -> str:
    """The difference over all clips, and the number of groups up, down and equal, in a line."""
    up, down, equal = count(by_group).values()
    a, b = whole.accuracy
    return (
        f"{up} of {len(by_group)} groups up, {down} down, {equal} equal; all {whole.questions:,} clips: "
        f"{a:.1f} to {b:.1f} % ({signed(whole.points)})"
    )


def show(
    names: Sequence[str], whole: Difference, by_group: Mapping[str, Difference], notes: Sequence[str]
) -> None:
    """Print the table."""
    table = Table("group", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for head in ("clips", "A", "B", "B - A", "95 % interval", "gained", "lost"):
        table.add_column(head, justify="right", no_wrap=True)
    for group, one in {**by_group, "all": whole}.items():
        interval = " to ".join(map(signed, one.interval)) if one.interval else "-"
        shares = [f"{share:.1f}" for share in one.accuracy]
        counts = [f"{one.gained:,}", f"{one.lost:,}"]
        cells = [f"{one.questions:,}", *shares, signed(one.points), interval, *counts]
        table.add_row(Text(group), *cells, end_section=group == list(by_group)[-1])
    console = Screen()
    console.print(f"A: {names[0]}", f"B: {names[1]}", "", table, "", summary(whole, by_group), sep="\n")
    for note in [*notes, "interval: bootstrap over clips, each group by itself"]:
        console.print(f"  {note}")


def draw(names: Sequence[str], whole: Difference, by_group: Mapping[str, Difference], path: Path) -> None:
    """Draw the differences as bars, the largest gain on top; pale where the interval holds 0."""
    figure = Figure(figsize=(9, 1.6 + 0.21 * len(by_group)), layout="constrained")
    axes = figure.subplots()
    places = range(len(by_group))
    for place, one in zip(places, by_group.values(), strict=True):
        is_sure = one.interval is not None and (one.interval[0] > 0 or one.interval[1] < 0)
        colour = GAIN if one.points >= 0 else LOSS
        axes.barh(place, one.points, 0.8, color=colour, alpha=1.0 if is_sure else PALE)
        side, move = ("left", 3) if one.points >= 0 else ("right", -3)
        axes.annotate(
            signed(one.points),
            (one.points, place),
            (move, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=7,
        )
    labels = [f"{group} ({one.questions:,})" for group, one in by_group.items()]
    axes.set_yticks(places, labels, fontsize=8)
    axes.set_ylim(len(by_group) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.08)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"top-1 of {names[1]} minus {names[0]}, in points")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.suptitle(summary(whole, by_group), fontsize=10)
    keys = [Patch(color=GAIN, label="gain"), Patch(color=LOSS, label="loss")]
    keys.append(Patch(color="grey", alpha=PALE, label="pale: the 95 % interval holds 0"))
    figure.legend(handles=keys, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    with whole_file(path) as part:
        figure.savefig(part, dpi=DOTS_PER_INCH, format="png")


def tell_apart(first: Path, second: Path) -> tuple[str, str]:
    """The parts in which two paths differ: a and b of runs/a/test and runs/b/test.

    Raises:
        ValueError: both paths are one folder.
    """
    a, b = ([*Path(os.path.abspath(path.expanduser())).parts] for path in (first, second))
    if a == b:
        raise ValueError(f"{first} is named twice; name two tests")
    for end in (0, -1):
        while len(a) > 1 and len(b) > 1 and a[end] == b[end]:
            a.pop(end), b.pop(end)
    return str(Path(*a)), str(Path(*b))


def some(names: Sequence[str]) -> str:
    """The first NAMED of them, in a line."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def signed(points: float) -> str:
    """Points with one decimal and a sign; +0.0 for those that round to zero."""
    return f"{round(points, 1) + 0.0:+.1f}"


if __name__ == "__main__":
    main()
