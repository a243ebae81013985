"""What a run shows: tables in the shape of the paper's Table 5, pictures of losses and accuracy."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from moss_vllm.evaluation.scoring import OFFICIAL_COUNTS, PAPER_TABLE_5, Score
from moss_vllm.runtime.files import whole_file as whole_file
from moss_vllm.runtime.screen import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A percentage, its mean and spread over seeds, or a number of questions.
Cell = float | tuple[float, float] | int

# Okabe and Ito's palette, which readers with any colour vision tell apart; the most distinct first.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
# A bracket or star at the start of a row would be an argument of the end of the row before.
LATEX = {sign: rf"\{sign}" for sign in "&%$#_{}"} | {sign: f"{{{sign}}}" for sign in "[]*"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
LIGATURE = re.compile(r"(?<=[-`'])(?=[-`'])")  # two hyphens would be a dash
# Also addresses, entities, headings; an underscore within a word marks nothing.
MARKDOWN = re.compile(r"([\\`*\[\]<>|~$]|(?<![^\W_])_|_(?![^\W_])|^#|&(?=#?\w+;)|:(?=//))")
DOTS_PER_INCH = 150


@dataclass(frozen=True)
class Table:
    """A table of named rows; its columns are those of each benchmark in turn. Print it with rich."""

    title: str
    columns: Mapping[str, Sequence[str]]
    rows: Mapping[str, Mapping[str, Mapping[str, Cell]]]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """The table as GitHub's markdown; the notes follow as a list."""
        lines = [f"**{in_markdown(self.title)}**", ""]
        places = [(name, column) for name, columns in self.columns.items() for column in columns]
        heads = [in_markdown(f"{name} {c}" if c == self.columns[name][0] else c) for name, c in places]
        lines += [f"| method | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
        for row in self.rows:
            cells = [in_markdown(row), *(format_cell(self._cell(row, *place)) for place in places)]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join([*lines, "", *(f"- {in_markdown(note)}" for note in self.notes)]).rstrip() + "\n"

    def latex(self) -> str:
        """Rows for a tabular, each under a comment with the columns; percentages with one decimal."""
        places = [(name, column) for name, columns in self.columns.items() for column in columns]
        heads = plain(" & ".join(column for _, column in places))
        lines = [f"% {plain(self.title)}", f"% method & {heads}"]
        for row in self.rows:
            cells = [row, *(format_cell(self._cell(row, *place)) for place in places)]
            lines.append(" & ".join(map(in_latex, cells)) + r" \\")
        return "\n".join(lines) + "\n"

    def __rich_console__(self, console: Any, options: ConsoleOptions) -> RenderResult:
        """One table where it fits the width, else one per benchmark below each other."""
        yield Text(plain(self.title), style="bold")
        whole = self._rich(list(self.columns))
        fits = Measurement.get(console, options.update(width=10_000), whole).maximum <= options.max_width
        yield from [whole] if fits else [self._rich([name]) for name in self.columns]
        for note in self.notes:
            yield Padding(Text(plain(note)), (0, 0, 0, 2))

    def _rich(self, benchmarks: Sequence[str]) -> RichTable:
        alone = len(benchmarks) < len(self.columns)
        table = RichTable(
            title=Text(plain(benchmarks[0])) if alone else None,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        table.add_column("method", overflow="fold")
        for name in benchmarks:
            for index, column in enumerate(self.columns[name]):
                above = f"{plain(name)}\n" if index == 0 and len(benchmarks) > 1 else ""
                table.add_column(Text(above + plain(column)), justify="right", vertical="bottom")
        for row in self.rows:
            cells = [format_cell(self._cell(row, name, c)) for name in benchmarks for c in self.columns[name]]
            table.add_row(Text(plain(row)), *cells)
        return table

    def _cell(self, row: str, benchmark: str, column: str) -> Cell | None:
        return self.rows[row].get(benchmark, {}).get(column)


def in_latex(text: str) -> str:
    """The text as LaTeX typesets it: as it is written, on one line."""
    return "".join(LATEX.get(sign, sign) for sign in LIGATURE.sub("\0", plain(text))).replace("\0", "{}")


def in_markdown(text: str) -> str:
    """The text as GitHub shows it: as it is written, on one line, with no link, tag or cell of its own."""
    return MARKDOWN.sub(r"\\\1", plain(text))


def in_picture(text: str) -> str:
    """The text as matplotlib draws it: as it is written, no formula; a first _ would hide it in a legend."""
    return (" " if text.startswith("_") else "") + plain(text).replace("$", r"\$")


def format_cell(value: Cell | None) -> str:
    """One decimal for percentages, digits grouped for counts, a dash for what was not measured."""
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return f"{value[0]:.1f} ± {value[1]:.1f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"


def table_5(
    rows: Mapping[str, Mapping[str, Mapping[str, Cell]]],
    *,
    title: str = "Accuracy on FAVOR-Bench and MotionBench-Dev (%)",
    notes: Sequence[str] = (),
) -> Table:
    """Rows (base, + train, ...) of benchmarks of tasks, in the column order of the paper's Table 5.

    A cell may be (mean, spread), see `mean_and_spread`. A task that no row has stays, as a column of dashes.

    Raises: ValueError for no row, or a benchmark or task that Table 5 does not have.
    """
    if not rows:
        raise ValueError("a table needs at least one row of results")
    known = {name: list(next(iter(paper.values()))) for name, paper in PAPER_TABLE_5.items()}
    for row, benchmarks in rows.items():
        for name, values in benchmarks.items():
            if strange := set(values) - set(known.get(name, [])):
                allowed = ", ".join(known.get(name, known))
                raise ValueError(f"row {row!r} has {sorted(strange)} of {name!r}; Table 5 has {allowed}")
    shown = {name for benchmarks in rows.values() for name in benchmarks}
    return Table(title, {name: columns for name, columns in known.items() if name in shown}, rows, notes)


def benchmark_table(
    benchmark: str,
    name: str,
    score: Score | None,
    chance: Mapping[str, float],
    *,
    partial: str = "",
    notes: Sequence[str] = (),
    paper: bool = True,
) -> Table:
    """One model on one benchmark: the paper's rows if asked for, chance and counts of this data, the model.

    The notes say so when the data have other numbers of questions than the published benchmark. Without a
    score nothing can be compared with the paper's rows, so they are left out.
    """
    rows: dict[str, dict[str, Mapping[str, Cell]]] = {
        f"{row} (paper)": {benchmark: values} for row, values in PAPER_TABLE_5[benchmark].items() if paper
    }
    title, notes = f"{benchmark}, accuracy (%)", list(notes)
    if score is None:
        title, rows = f"{benchmark.removesuffix('-Dev')}, answers withheld", {name: {benchmark: {}}}
        notes.append("no question asked has a public answer, so there is no score")
    else:
        counts = {task: count for task, count in score.total.items() if count}
        rows["chance (this data)"] = {benchmark: chance}
        rows[name] = {benchmark: score.accuracy}
        spans = [f"{task} {low:.1f}-{high:.1f}" for task, (low, high) in score.intervals.items()]
        notes.append(f"95 % intervals: {', '.join(spans)}")
        rows["answered"] = {benchmark: {task: score.answered[task] for task in counts}}
        rows["number of questions"] = {benchmark: counts}
        official = OFFICIAL_COUNTS[benchmark]
        published = sum(official.values())
        if {task: count for task, count in counts.items() if task != "all"} != official:
            notes.append(f"{counts['all']:,} questions scored; the published benchmark has {published:,}")
        unread = score.total["all"] - score.answered["all"]
        if unread:
            notes.append(f"no option could be read from {unread:,} answers; they count as wrong")
    return table_5(rows, title=f"{title}, {partial}" if partial else title, notes=notes)


def mean_and_spread(runs: Sequence[Mapping[str, float]]) -> dict[str, Cell]:
    """Per task the mean and the sample standard deviation over seeds; one run keeps its plain values.

    Raises: ValueError for no run, or runs with different tasks.
    """
    if not runs:
        raise ValueError("no run to average; pass one dict of accuracies per seed")
    if any(set(run) != set(runs[0]) for run in runs):
        tasks = [sorted(run) for run in runs]
        raise ValueError(f"runs have different tasks: {tasks}; evaluate all on the same data")
    if len(runs) == 1:
        return dict(runs[0])
    values = {task: [run[task] for run in runs] for task in runs[0]}
    return {task: (statistics.mean(seen), statistics.stdev(seen)) for task, seen in values.items()}


def plot_losses(
    curves: Mapping[str, Sequence[tuple[int, float]]], path: str | Path, *, title: str = ""
) -> None:
    """Draw curves of (step, loss) faintly with their running means on top, as a PNG of 1200 x 675 pixels.

    Raises: ValueError for no curve, an empty one, or a loss that is not finite.
    """
    if not curves or not all(curves.values()):
        lengths = {name: len(points) for name, points in curves.items()}
        raise ValueError(f"a plot needs curves with one (step, loss) or more each, got {lengths}")
    figure = _figure(8)
    axes = figure.subplots()
    for (name, points), colour in zip(curves.items(), cycle(COLOURS), strict=False):
        steps, losses = zip(*points, strict=True)
        if not all(map(math.isfinite, losses)):
            raise ValueError(f"curve {name!r} has a loss that is not finite; look at the run first")
        axes.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(steps, centred_mean(losses), color=colour, linewidth=2, label=in_picture(name))
    axes.set(xlabel="step", ylabel="training loss", title=in_picture(title))
    axes.legend(frameon=False)
    _save(figure, path)


def centred_mean(values: Sequence[float]) -> list[float]:
    """The mean over a twentieth of the values, centred on each; the window is narrower at the ends."""
    half = len(values) // 40
    reach = [min(half, i, len(values) - 1 - i) for i in range(len(values))]
    return [statistics.fmean(values[i - r : i + r + 1]) for i, r in enumerate(reach)]


def plot_accuracy(
    results: Mapping[str, Mapping[str, Cell]],
    path: str | Path,
    *,
    chance: Mapping[str, float] | None = None,
    title: str = "",
) -> None:
    """Draw a group of bars per task, one bar per model, as a PNG of 1500 x 675 pixels.

    A (mean, spread) gets an error bar. `chance` is a dashed line across each task's group.

    Raises: ValueError for no result.
    """
    tasks = list(dict.fromkeys(task for values in results.values() for task in values))
    if not tasks:
        raise ValueError(f"no accuracy to plot in {dict(results)}")
    figure = _figure(10)
    axes = figure.subplots()
    width = 0.8 / len(results)
    for number, ((name, values), colour) in enumerate(zip(results.items(), cycle(COLOURS), strict=False)):
        there = [i for i, task in enumerate(tasks) if task in values]
        cells = [values[tasks[i]] for i in there]
        means = [cell[0] if isinstance(cell, tuple) else cell for cell in cells]
        spreads = [cell[1] if isinstance(cell, tuple) else 0.0 for cell in cells]
        places = [i - 0.4 + (number + 0.5) * width for i in there]
        bars = axes.bar(places, means, width * 0.94, color=colour, label=in_picture(name))
        if any(spreads):
            axes.errorbar(places, means, spreads, fmt="none", ecolor="black", elinewidth=1, capsize=2.5)
        if len(results) <= 3:
            for bar, mean, spread in zip(bars, means, spreads, strict=True):
                at, text = (bar.get_x() + bar.get_width() / 2, mean + spread), f"{mean:.0f}"
                axes.annotate(text, at, (0, 2), textcoords="offset points", ha="center", fontsize=8)
    if chance:
        marked = [i for i, task in enumerate(tasks) if task in chance]
        heights = [chance[tasks[i]] for i in marked]
        ends = ([i - 0.45 for i in marked], [i + 0.45 for i in marked])
        axes.hlines(heights, *ends, colors="black", linestyles="dashed", linewidth=1.3, label="chance")
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set(ylabel="accuracy (%)", title=in_picture(title))
    axes.set_ylim(0, None)
    axes.margins(y=0.12)
    figure.legend(loc="outside upper center", ncols=len(results) + bool(chance), frameon=False)
    _save(figure, path)


def _figure(width: float) -> "Figure":
    from matplotlib.figure import Figure  # half a second, which tables do not need

    return Figure(figsize=(width, 4.5), layout="constrained")


def _save(figure: "Figure", path: str | Path) -> None:
    """Save with Agg, as a Figure made without pyplot does, whatever backend the caller has chosen."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    with whole_file(Path(path)) as part:
        figure.savefig(part, dpi=DOTS_PER_INCH, format="png")
