"""Curves over a run's steps as inline SVG, thinned without losing a spike."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moss_vllm.report.html import Html, counted, tag

MOST_POINTS = 1000  # drawn of a curve
FEW_POINTS = 40  # a curve of no more points has a dot at each
COLOUR_COUNT = 7  # colours in page.css; further curves use them again, dotted
# Width and height of a drawing, then its margins: left, right, top, bottom.
LARGE_BOX, SMALL_BOX = (560, 250, 58, 14, 10, 40), (290, 150, 34, 12, 8, 38)
LARGEST, SMALLEST = 1e100, 1e-90  # larger numbers are gaps, as infinity is; smaller ones count as zero


@dataclass(frozen=True)
class Curve:
    """Values at steps; NaN is a gap. `colour` counts from 0."""

    name: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    colour: int = 0
    style: str = ""  # "faint", "dashed"


@dataclass(frozen=True)
class Chart:
    """Curves on one pair of axes; `ends` are values that the y axis always shows."""

    title: str
    unit: str
    curves: Sequence[Curve]
    log: bool = False
    ends: tuple[float, ...] = ()
    small: bool = False


@dataclass(frozen=True)
class Axes:
    """Maps steps and values to pixels of a drawing; `ticks` are those of the y axis."""

    box: tuple[int, int, int, int, int, int]
    first: float
    last: float
    low: float
    high: float
    ticks: Sequence[float]
    log: bool

    def x(self, step: float) -> float:
        """Pixels from the left edge."""
        width, _, left, right, _, _ = self.box
        return left + (width - left - right) * (step - self.first) / (self.last - self.first)

    def y(self, value: float) -> float:
        """Pixels from the top; NaN for a gap."""
        _, height, _, _, top, bottom = self.box
        scale = math.log10 if self.log else float
        share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return height - bottom - (height - bottom - top) * share


def curve(name: str, points: Mapping[int, Any], colour: int = 0, style: str = "") -> Curve:
    """A curve of values from a file; a value that is no finite number becomes a gap."""
    values = np.array([as_number(value) for value in points.values()], dtype=np.float64)
    return Curve(name, np.array(list(points), dtype=np.int64), values, colour, style)


def as_number(value: Any) -> float:
    """The value as a float; NaN if it is no number, not finite, or beyond LARGEST."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) <= LARGEST else math.nan


def with_mean(raw: Curve) -> list[Curve]:
    """The curve drawn faintly, and its running mean over a twentieth of its points, five at least."""
    half = min(max(2, len(raw.values) // 40), (len(raw.values) - 1) // 2)
    if half < 1:
        return [raw]
    mean = running_mean(raw.values, half)
    faint = Curve(raw.name, raw.steps, raw.values, raw.colour, "faint")
    return [faint, Curve(f"mean of {2 * half + 1:,} steps", raw.steps, mean, raw.colour)]


def running_mean(values: NDArray[np.float64], half: int) -> NDArray[np.float64]:
    """The mean of the finite values within `half` places on both sides; gaps stay gaps."""
    places = np.arange(len(values))
    first, last = np.maximum(0, places - half), np.minimum(len(values), places + half + 1)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    mean = (sums[last] - sums[first]) / np.maximum(1, counts[last] - counts[first])
    return np.where(finite, mean, np.nan)


def thin(values: NDArray[np.float64], most: int = MOST_POINTS) -> NDArray[np.int64]:
    """Indices to keep: the first, the last, and each stretch's smallest, largest and first gap."""
    if len(values) <= most:
        return np.arange(len(values))
    kept = {0, len(values) - 1}
    for first, last in pairwise(np.linspace(0, len(values), most // 2).astype(int).tolist()):
        part = values[first:last]
        finite = np.isfinite(part)
        if finite.any():
            kept |= {first + int(np.nanargmin(part)), first + int(np.nanargmax(part))}
        if not finite.all():
            kept.add(first + int(np.argmin(finite)))
    return np.array(sorted(kept))


def draw_chart(chart: Chart, number: int, span: tuple[int, int]) -> tuple[Html, dict[str, Any]]:
    """The figure, and the data for the readout of run.js.

    Args:
        chart: one with a point in at least one curve.
        number: the chart's place on its page, from 0.
        span: first and last step of the x axis.
    """
    curves = [_above_zero(one) for one in chart.curves] if chart.log else list(chart.curves)
    kept = [thin(one.values) for one in curves]
    shown = np.concatenate([*(one.values for one in curves), np.array(chart.ends)])
    first, last = span if span[0] < span[1] else (span[0] - 1, span[0] + 1)
    box = SMALL_BOX if chart.small else LARGE_BOX
    axes = Axes(box, first, last, *_range(shown[np.isfinite(shown)], chart), chart.log)
    svg = tag(
        "svg",
        *_drawn_axes(axes),
        *(_path(one, ids, axes) for one, ids in zip(curves, kept, strict=True)),
        viewBox=f"0 0 {box[0]} {box[1]}",
        role="img",
        aria_label=f"{chart.title} over steps",
        tabindex=0,
    )
    caption = [tag("b", chart.title), tag("span", chart.unit), *([] if chart.small else [_legend(curves)])]
    notes = (tag("p", note) for note in _notes(chart, curves, kept))
    figure = tag("figure", tag("figcaption", *caption), svg, *notes, data_chart=number)
    data = {
        "box": box,
        "span": [first, last],
        "range": [axes.low, axes.high],
        "log": chart.log,
        "curves": [_for_script(one, ids) for one, ids in zip(curves, kept, strict=True)],
    }
    return figure, data


def _above_zero(one: Curve) -> Curve:
    values = np.where(one.values > SMALLEST, one.values, np.nan)
    return Curve(one.name, one.steps, values, one.colour, one.style)


def _range(values: NDArray[np.float64], chart: Chart) -> tuple[float, float, list[float]]:
    """The ends of the y axis, a little beyond the values, and its ticks."""
    about = 2 if chart.small else 5
    if not len(values):
        return (1.0, 10.0, [1.0, 10.0]) if chart.log else (0.0, 1.0, [0.0, 1.0])
    low, high = float(values.min()), float(values.max())
    if chart.log:
        low, high = low / 1.15, high * 1.15
        return low, high, _log_ticks(low, high)
    size = max(abs(low), abs(high))
    if size < SMALLEST:
        low, high = 0.0, 1.0
    elif high - low <= 1e-9 * size:
        low, high = low - size / 2, high + size / 2
    air = (high - low) * 0.04
    return (low - air if low < 0 else max(0.0, low - air)), high + air, _nice(low, high, about)


def _nice(low: float, high: float, about: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    unit = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    # The rounding removes binary noise: 3 * 0.1 is 0.30000000000000004.
    return [float(f"{n * unit:.12g}") for n in range(math.ceil(low / unit), math.floor(high / unit) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, (last - first) // 6)
    powers = range(first, last + 1, every)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = [float(f"{f}e{power}") for power in powers for f in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            return ticks
    return [tick for tick in _nice(low, high, 4) if tick > 0]


def _drawn_axes(axes: Axes) -> Iterator[Html]:
    width, height, left, right, top, bottom = axes.box
    base, end = height - bottom, width - right
    for value in axes.ticks:
        y = axes.y(value)
        yield Html(f'<path class="grid" d="M{left} {y:.1f}H{end}"/>')
        yield Html(f'<text class="y" x="{left - 7}" y="{y + 4:.1f}">{value:,.10g}</text>')
    yield Html(f'<path class="axis" d="M{left} {top}V{base}H{end}"/>')
    for step in _nice(axes.first, axes.last, 6 if axes.box == LARGE_BOX else 3):
        if step == round(step):
            x = axes.x(step)
            yield Html(f'<path class="axis" d="M{x:.1f} {base}v4"/>')
            yield Html(f'<text class="x" x="{x:.1f}" y="{base + 18}">{step:,.16g}</text>')
    yield Html(f'<text class="x" x="{(left + end) / 2}" y="{height - 4}">step</text>')


def _path(one: Curve, places: NDArray[np.int64], axes: Axes) -> Html:
    """One path, interrupted at each gap; a lone point is a dot."""
    points = [(axes.x(int(one.steps[i])), axes.y(float(one.values[i]))) for i in places]
    written, pen_down = [], False
    for x, y in points:
        if not math.isnan(y):
            # h0, a line of length 0, makes a dot of a point between two gaps.
            written.append(f"L{x:.1f} {y:.1f}" if pen_down else f"M{x:.1f} {y:.1f}h0")
        pen_down = not math.isnan(y)
    path = f'<path class="{_class(one)}" d="{"".join(written)}"/>'
    if len(points) > FEW_POINTS or one.style:
        return Html(path)
    dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points if not math.isnan(y))
    return Html(f'{path}<path class="{_class(one)} dots" d="{dots}"/>')


def _class(one: Curve) -> str:
    dotted = ["dotted"] if one.colour >= COLOUR_COUNT else []
    return " ".join(["curve", f"c{one.colour % COLOUR_COUNT}", *([one.style] if one.style else []), *dotted])


def _legend(curves: Sequence[Curve]) -> Html:
    def line(one: Curve) -> Html:
        return Html(f'<svg viewBox="0 0 18 8"><path class="{_class(one)}" d="M1 4H17"/></svg>')

    return tag("span", *(tag("span", line(one), one.name) for one in curves), class_="legend")


def _notes(chart: Chart, curves: Sequence[Curve], kept: Sequence[NDArray[np.int64]]) -> list[str]:
    """Sentences about the values that the drawing does not show."""
    notes = []
    for before, after in zip(chart.curves, curves, strict=True):
        if before.name.startswith("mean of"):
            continue
        gaps = before.steps[~np.isfinite(before.values)].tolist()
        if gaps:
            notes.append(
                f"{before.name}: {len(gaps):,} of {len(before.steps):,} values not finite, left as gaps at "
                f"step {_some(gaps)}"
            )
        below = int((before.values <= SMALLEST).sum()) if chart.log else 0
        if below:
            notes.append(
                f"{after.name}: {counted(below, 'value')} of zero or below cannot be shown on this axis"
            )
    thinned = [len(one.steps) for one, ids in zip(curves, kept, strict=True) if len(ids) < len(one.steps)]
    if thinned:
        notes.append(
            f"Thinned: of {max(thinned):,} points about {MOST_POINTS:,} a curve are drawn, among them the "
            "smallest and the largest of every stretch"
        )
    return notes


def _some(steps: Sequence[int], most: int = 10) -> str:
    more = f" and {len(steps) - most:,} more" if len(steps) > most else ""
    return ", ".join(f"{step:,}" for step in steps[:most]) + more


def _for_script(one: Curve, ids: NDArray[np.int64]) -> dict[str, Any]:
    """The curve's points for run.js: six digits of each value, null for a gap."""
    values = [float(f"{v:.6g}") if math.isfinite(v) else None for v in one.values[ids].tolist()]
    return {"name": one.name, "colour": one.colour % COLOUR_COUNT, "x": one.steps[ids].tolist(), "y": values}


def draw_all(charts: Sequence[Chart]) -> tuple[list[Html], list[Html], list[dict[str, Any]]]:
    """Large figures, small ones and the data of their readouts, over the same steps, without empty charts."""
    filled = [chart for chart in charts if any(len(one.steps) for one in chart.curves)]
    last = max((int(one.steps[-1]) for chart in filled for one in chart.curves if len(one.steps)), default=0)
    drawn = [(chart, *draw_chart(chart, number, (0, last))) for number, chart in enumerate(filled)]
    large = [figure for chart, figure, _ in drawn if not chart.small]
    return large, [figure for chart, figure, _ in drawn if chart.small], [data for *_, data in drawn]
