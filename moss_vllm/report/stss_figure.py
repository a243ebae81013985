"""The figure of self-similarity: its rows and columns, and how each is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from moss_vllm.report.plots import DOTS_PER_INCH
from moss_vllm.report.stss_maps import OrderView, Query, QueryMap, query_map
from moss_vllm.video.clip import Clip

REGION_COLOUR = "#2ecc40"
WIDTH_IN = 1600 / DOTS_PER_INCH
LEFT_IN, RIGHT_IN, TOP_IN, GAP_IN, GROUP_IN = 1.1, 0.6, 0.68, 0.05, 0.14


class Marked(NamedTuple):
    """A query with the name and the colour it has in the figure."""

    name: str
    query: Query
    colour: str


@dataclass(frozen=True)
class MapRow:
    """A row of the figure: a map per column on one scale; None for a column outside the clip."""

    label: str
    note: str
    colour: str
    maps: list[QueryMap | None]
    scale: tuple[float, float]
    colour_map: str


@dataclass(frozen=True)
class Sheet:
    """The content of the figure: a column per frame of the window, and groups of rows below the frames.

    A column outside the clip has no picture. groups: for each query and for the strength, a row per order.
    """

    title: str
    titles: list[str]
    pictures: list[NDArray[np.uint8] | None]
    grid: tuple[int, int]
    marked: list[Marked]
    regions: list[QueryMap]
    groups: list[list[MapRow]]


def lay_out(
    clip: Clip,
    views: Sequence[OrderView],
    marked: Sequence[Marked],
    *,
    title: str,
    strength: str | None,
    scale: tuple[float, float] | None = None,
) -> Sheet:
    """Choose rows, columns and scales.

    Args:
        clip: the clip from which the views were computed, one or more orders of one window.
        strength: a few words for the views' strength; None leaves its rows and the times out.
        scale: of the similarities; None computes one per order, without the queries' own frame.

    Raises: ValueError for a query outside the grid, or queries of several frames.
    """
    frames, height, width, length = views[0].similarity.shape[:4]
    for name, query, _ in marked:
        if not all(0 <= at < side for at, side in zip(query, (frames, height, width), strict=True)):
            raise ValueError(
                f"{name} {query.t},{query.y},{query.x} is outside this clip's grid: t is 0 to {frames - 1}, "
                f"y 0 to {height - 1}, x 0 to {width - 1}"
            )
    t, *others = dict.fromkeys(query.t for _, query, _ in marked)
    if others:
        raise ValueError(f"the queries of a figure share their frame, got t = {[t, *others]}; draw one each")
    offsets = range(-(length // 2), length // 2 + 1)
    shown = [t + offset if 0 <= t + offset < frames else None for offset in offsets]
    groups: list[list[MapRow]] = [[] for _ in range(len(marked) + bool(strength))]
    for view in views:
        label = f"order {view.order}"
        places = list(zip(shown, offsets, strict=True))
        maps = [
            [None if at is None else query_map(view.similarity, query, offset) for at, offset in places]
            for _, query, _ in marked
        ]
        beside = [m for line in maps for m, offset in zip(line, offsets, strict=True) if offset]
        for one, line, group in zip(marked, maps, groups, strict=False):
            group.append(MapRow(label, one.name, one.colour, line, scale or _limits(beside, 0.01), "magma"))
        if strength:
            whole = [None if at is None else QueryMap(view.strength[at].float().numpy()) for at in shown]
            groups[-1].append(MapRow(label, strength, "black", whole, _limits(whole, 0.0), "viridis"))
    titles = [f"$l$ = {offset:+d}" if offset else "$l$ = 0" for offset in offsets]
    if strength:
        times = ["" if at is None else f"   {clip.frame_times_s[at]:.2f} s" for at in shown]
        titles = list(map("".join, zip(titles, times, strict=True)))
    pictures = [None if at is None else clip.frames[at] for at in shown]
    regions = [query_map(views[0].similarity, query, 0) for _, query, _ in marked]
    return Sheet(title, titles, pictures, (height, width), list(marked), regions, groups)


def _limits(maps: Sequence[QueryMap | None], lowest: float) -> tuple[float, float]:
    """From the quantile `lowest` to the quantile 0.995."""
    values = [m.values.ravel() for m in maps if m is not None]
    low, high = np.quantile(np.concatenate(values), (lowest, 0.995)) if values else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))


def draw_sheet(sheet: Sheet) -> Figure:
    """Rows of frames and maps, a column per frame."""
    columns, lines = len(sheet.titles), 1 + sum(map(len, sheet.groups))
    wide = min(2.3, (WIDTH_IN - LEFT_IN - RIGHT_IN + GAP_IN) / columns - GAP_IN)
    high = wide * sheet.grid[0] / sheet.grid[1]
    figure = Figure((WIDTH_IN, TOP_IN + lines * (high + GAP_IN) + len(sheet.groups) * GROUP_IN + 0.1))
    _add_text(figure, 0.12, 0.3, sheet.title, size=9, weight="bold", parse_math=False)
    lefts = [LEFT_IN + i * (wide + GAP_IN) for i in range(columns + 1)]
    for i, title in enumerate(sheet.titles):
        axes = _add_axes(figure, lefts[i], TOP_IN, wide, high)
        _draw_frame(axes, sheet, i)
        axes.set_title(title, fontsize=8, pad=4)
    top = TOP_IN
    for rows in sheet.groups:
        top += GROUP_IN
        for row in rows:
            top += high + GAP_IN
            label, note = top + high / 2, top + high / 2 + 0.17
            _add_text(figure, LEFT_IN - 0.12, label, row.label, size=9, weight="bold", ha="right")
            _add_text(figure, LEFT_IN - 0.12, note, row.note, size=8, color=row.colour, ha="right")
            for i in range(columns):
                _draw_map(_add_axes(figure, lefts[i], top, wide, high), sheet, row, i)
            _draw_bar(_add_axes(figure, lefts[-1], top + 0.1 * high, 0.09, 0.8 * high), row, "vertical")
    return figure


def draw_column(sheet: Sheet, column: int) -> NDArray[np.uint8]:
    """One column as a picture: a line per query, and one for the strength."""
    across, wide = 1 + len(sheet.groups[0]), 2.0
    high = wide * sheet.grid[0] / sheet.grid[1]
    step = high + 0.42
    figure = Figure((LEFT_IN + across * (wide + 0.1) + 0.1, TOP_IN + len(sheet.groups) * step), dpi=100)
    _add_text(figure, 0.12, 0.3, sheet.title, size=8, weight="bold", parse_math=False)
    for line, rows in enumerate(sheet.groups):
        top = TOP_IN + line * step
        note, colour = rows[0].note, rows[0].colour
        _add_text(figure, LEFT_IN - 0.12, top + high / 2, note, size=9, color=colour, ha="right")
        axes = _add_axes(figure, LEFT_IN, top, wide, high)
        _draw_frame(axes, sheet, column)
        axes.set_title(sheet.titles[column], fontsize=9, pad=3)
        for i, row in enumerate(rows, start=1):
            left = LEFT_IN + i * (wide + 0.1)
            axes = _add_axes(figure, left, top, wide, high)
            _draw_map(axes, sheet, row, column)
            axes.set_title(row.label, fontsize=9, pad=3)
            _draw_bar(_add_axes(figure, left, top + high + 0.05, wide, 0.06), row, "horizontal")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_bar(axes: Axes, row: MapRow, orientation: str) -> None:
    """The scale of a row."""
    colours = ScalarMappable(Normalize(*row.scale), row.colour_map)
    style: dict[str, Any] = {"ticks": row.scale, "format": "%.2f", "extend": "max"}
    bar = axes.figure.colorbar(colours, cax=axes, orientation=orientation, **style)
    bar.ax.tick_params(labelsize=7, length=2, pad=2)
    if orientation == "horizontal":  # centred numbers of neighbouring bars would overlap
        for label, side in zip(bar.ax.get_xticklabels(), ("left", "right"), strict=True):
            label.set(ha=side)
    bar.outline.set_linewidth(0.4)


def _add_axes(figure: Figure, left: float, top: float, wide: float, high: float) -> Axes:
    """Axes at a place in inches, from the left and the top."""
    width, height = figure.get_size_inches()
    return figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))


def _add_text(figure: Figure, left: float, top: float, text: str, **how: Any) -> None:
    """Text at a place in inches, from the left and the top."""
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, text, **how)


def _draw_frame(axes: Axes, sheet: Sheet, column: int) -> None:
    """The frame of a column, each query's region and, in their own frame, the queries."""
    if not _on_grid(axes, sheet, column, brightness=1.0):
        return
    for number, (one, region) in enumerate(zip(sheet.marked, sheet.regions, strict=True)):
        rows, columns = region.values.shape
        outline: dict[str, Any] = {"fill": False, "clip_on": False}
        style = ("-", "--", ":", "-.")[number % 4]
        place = (region.left, region.top)
        axes.add_patch(Rectangle(place, columns, rows, color=REGION_COLOUR, lw=1.6, ls=style, **outline))
        if column == len(sheet.titles) // 2:
            for colour, width in (("white", 2.8), (one.colour, 1.8)):
                axes.add_patch(Rectangle((one.query.x, one.query.y), 1, 1, color=colour, lw=width, **outline))


def _draw_map(axes: Axes, sheet: Sheet, row: MapRow, column: int) -> None:
    """A map at its place over the darkened frame."""
    placed = row.maps[column]
    if not _on_grid(axes, sheet, column, brightness=0.5) or placed is None:
        return
    rows, columns = placed.values.shape
    extent = (placed.left, placed.left + columns, placed.top + rows, placed.top)
    axes.imshow(placed.values, cmap=row.colour_map, norm=Normalize(*row.scale), extent=extent)
    axes.set(xlim=(0, sheet.grid[1]), ylim=(sheet.grid[0], 0))


def _on_grid(axes: Axes, sheet: Sheet, column: int, *, brightness: float) -> bool:
    """Draw the column's frame, grey if darkened; for a column outside the clip write so, and return False."""
    picture, (height, width) = sheet.pictures[column], sheet.grid
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0), facecolor="#eeeeee")
    axes.spines[:].set_visible(False)
    if picture is None:
        axes.text(width / 2, height / 2, "outside\nthe clip", ha="center", va="center", fontsize=8)
    else:
        shown = picture if brightness == 1 else picture.mean(-1) * brightness
        axes.imshow(shown, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    return picture is not None
