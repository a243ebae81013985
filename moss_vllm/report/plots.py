"""Pictures of losses and accuracy as PNG files."""

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from moss_vllm.runtime.files import whole_file as whole_file
from moss_vllm.runtime.screen import plain
from moss_vllm.runtime.tables import Cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which readers with any colour vision tell apart; the most distinct first.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
DOTS_PER_INCH = 150


def in_picture(text: str) -> str:
    """The text as matplotlib draws it: as it is written, no formula; a first _ would hide it in a legend."""
    return (" " if text.startswith("_") else "") + plain(text).replace("$", r"\$")


def plot_losses(
    curves: Mapping[str, Sequence[tuple[int, float]]],
    path: str | Path,
    *,
    held_out: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    title: str = "",
) -> None:
    """Draw curves of (step, loss) faintly with their running means on top, as a PNG of 1200 x 675 pixels.

    `held_out` has further curves by the same names, drawn with a dot at each point. The axis is logarithmic:
    at a loss of 4 early and 0.4 late, a linear one hides what lies between two curves.

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
        if unseen := (held_out or {}).get(name):
            label = in_picture(f"{name}, held out")
            axes.plot(*zip(*unseen, strict=True), "o--", color=colour, linewidth=1, markersize=4, label=label)
    axes.set(xlabel="step", ylabel="loss", title=in_picture(title), yscale="log")
    for label_ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        label_ticks(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "1235" else "")
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
        if len(results) <= 4:
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


def plot_test_curves(
    rows: Mapping[str, Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]],
    path: str | Path,
    *,
    chance: float,
) -> None:
    """Draw accuracy over steps, a panel per column and a colour per row, as a PNG.

    Args:
        rows: row -> column -> "test" (a line) and "train" (dotted) -> (step, percent).
        path: file to write.
        chance: percent, a dashed line in each panel.

    Raises: ValueError for no row.
    """
    if not rows:
        raise ValueError("a plot of tests needs one row or more")
    columns = list(next(iter(rows.values())))
    figure = _figure(4 * len(columns))
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        for (name, curves), colour in zip(rows.items(), cycle((*COLOURS, "#000000")), strict=False):
            for side, style in (("test", "-"), ("train", ":")):
                steps, percents = zip(*curves[column][side], strict=True)
                label = in_picture(name) if (axes is panels[0] and side == "test") else None
                axes.plot(steps, percents, color=colour, linestyle=style, linewidth=1.5, label=label)
        axes.axhline(chance, color="black", linestyle="dashed", linewidth=0.8)
        axes.set(xlabel="step", title=in_picture(column), ylim=(0, 102))
    panels[0].set_ylabel("right (%); dotted: training clips")
    figure.legend(loc="outside lower center", ncols=len(rows), frameon=False)
    _save(figure, path)


def _figure(width: float) -> "Figure":
    from matplotlib.figure import Figure  # half a second, which tables do not need

    return Figure(figsize=(width, 4.5), layout="constrained")


def _save(figure: "Figure", path: str | Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    save_png(figure, Path(path))


def save_png(figure: "Figure", path: Path) -> None:
    """Save with Agg, as a Figure made without pyplot does, whatever backend the caller has chosen.

    Letters that the font lacks become boxes, without a warning for each.
    """
    with whole_file(path) as part, warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")
        figure.savefig(part, dpi=DOTS_PER_INCH, format="png")
