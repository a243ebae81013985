"""Tables of numbers with notes: for a terminal, as markdown and as LaTeX."""

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from moss_vllm.runtime.screen import plain

# A percentage, its mean and spread over seeds, or a count.
Cell = float | tuple[float, float] | int

# A bracket or star at the start of a row would be an argument of the end of the row before.
LATEX = {sign: rf"\{sign}" for sign in "&%$#_{}"} | {sign: f"{{{sign}}}" for sign in "[]*"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
LIGATURE = re.compile(r"(?<=[-`'])(?=[-`'])")  # two hyphens would be a dash
# Addresses, entities and headings as well; an underscore within a word needs no escape.
MARKDOWN = re.compile(r"([\\`*\[\]<>|~$]|(?<![^\W_])_|_(?![^\W_])|^#|&(?=#?\w+;)|:(?=//))")


@dataclass(frozen=True)
class Table:
    """A table of named rows, with a group of columns for each benchmark. Print it with rich."""

    title: str
    columns: Mapping[str, Sequence[str]]
    rows: Mapping[str, Mapping[str, Mapping[str, Cell]]]
    notes: Sequence[str] = ()
    rows_are: str = "method"

    def markdown(self) -> str:
        """The table as GitHub's markdown; the notes follow as a list."""
        lines = [f"**{in_markdown(self.title)}**", ""]
        places = [(name, column) for name, columns in self.columns.items() for column in columns]
        heads = [in_markdown(f"{name} {c}" if c == self.columns[name][0] else c) for name, c in places]
        rows = [
            [in_markdown(row), *(format_cell(self._cell(row, *place)) for place in places)]
            for row in self.rows
        ]
        lines += markdown_table([in_markdown(self.rows_are), *heads], rows)
        return "\n".join([*lines, "", *(f"- {in_markdown(note)}" for note in self.notes)]).rstrip() + "\n"

    def latex(self) -> str:
        """Rows for a tabular, below comments with the title and the columns."""
        places = [(name, column) for name, columns in self.columns.items() for column in columns]
        heads = plain(" & ".join(column for _, column in places))
        lines = [f"% {plain(self.title)}", f"% {plain(self.rows_are)} & {heads}"]
        for row in self.rows:
            cells = [row, *(format_cell(self._cell(row, *place)) for place in places)]
            lines.append(" & ".join(map(in_latex, cells)) + r" \\")
        return "\n".join(lines) + "\n"

    def __rich_console__(self, console: Any, options: ConsoleOptions) -> RenderResult:
        """One table if it fits the width, otherwise a table per benchmark, one below the other."""
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
        table.add_column(plain(self.rows_are), overflow="fold")
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


def markdown_table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: Sequence[str] | None = None
) -> list[str]:
    """The lines of a table of escaped cells; columns stand right, but for `left`, by default the first."""
    left = heads[:1] if left is None else left
    lines = [heads, ["---" if head in left else "---:" for head in heads], *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def in_latex(text: str) -> str:
    """The text escaped for LaTeX, which then typesets it as written, on one line."""
    return "".join(LATEX.get(sign, sign) for sign in LIGATURE.sub("\0", plain(text))).replace("\0", "{}")


def in_markdown(text: str) -> str:
    """The text escaped for GitHub's markdown, which then shows it as written, without links or tags."""
    return MARKDOWN.sub(r"\\\1", plain(text))


def format_cell(value: Cell | None) -> str:
    """A percentage with one decimal, a count with grouped digits, a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return f"{value[0]:.1f} ± {value[1]:.1f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"


def mean_and_spread(runs: Sequence[Mapping[str, float]]) -> dict[str, Cell]:
    """Mean and sample standard deviation of each task over seeds; one run keeps its plain values.

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
    return {task: (statistics.mean(some), statistics.stdev(some)) for task, some in values.items()}
