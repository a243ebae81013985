"""Self-similarity as seen from one position, order by order, and the toy clip of Figs. 3 and 7.

Without weights, g is flattening over (L, U, V), as in those figures; a trained MOSS has its own.

What the toy clip's numbers say (`toy_similarity`; the tests hold them): order 1 lights up both cubes alike;
order 2 the query's own set, three times as much as the twin cube and its set; order 3 both sets, the other
at 0.7 to 0.9 of the query's own. It holds wherever the objects are. Over a static textured wall, features
less their mean, order 2 holds and order 3 lights up the wall too; over a white wall, with plain pixels, both
fail: to the cosine all is alike. Objects slower than half their size per frame are told apart less well.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from moss_vllm.core.moss import OrderMaps
from moss_vllm.core.stss import Window, stss
from moss_vllm.data.drawing import shape_distance
from moss_vllm.data.video import Clip

Array = NDArray[np.floating[Any]]

TOY_GRID, TOY_FRAMES, TOY_CELL_PX = (20, 24), 7, 16
TOY_WINDOW: Window = (5, 39, 47)  # from any position of the grid to any other
TOY_RADIUS_CELLS = 1.5
# Shape, y and x in the middle frame, cells down and right per frame; half numbers are centres of cells.
TOY_OBJECTS = (
    ("circle", 3.5, 7.5, 0, 2),
    ("heart", 10.5, 9.5, 0, 2),
    ("cube", 16.5, 7.5, 0, 2),
    ("circle", 7.5, 18.5, 2, 0),
    ("heart", 9.5, 22.5, 2, 0),
    ("cube", 12.5, 18.5, 2, 0),
)
TOY_COLOURS = {"circle": (20, 30, 255), "heart": (255, 25, 25), "cube": (0, 200, 0)}
REGION_COLOUR = "#2ecc40"


class Query(NamedTuple):
    """A position that is compared with its neighbours, in frames and grid cells."""

    t: int
    y: int
    x: int


@dataclass(frozen=True)
class OrderView:
    """One order of one clip.

    Shape: similarity (T, H, W, L, U, V), 0 outside the clip and the frame; strength (T, H, W), how much there
    is to see at a position: the L2 norm of a learned M^(n); without weights, how much its map changes.
    """

    order: int
    similarity: Tensor
    strength: Tensor


@dataclass(frozen=True)
class ToyClip:
    """Two sets of three objects on black, one moving sideways, the other down.

    Shape: cells int (T, H, W): 0 where no object is, 1 to 3 for circle, heart and cube of the first set, 4 to
    6 of the second, -1 at their rims. queries: the two cubes in the middle frame.
    """

    clip: Clip
    cells: NDArray[np.int64]
    queries: dict[str, Query]


def toy_clip() -> ToyClip:
    """Draw the toy clip."""
    (height, width), middle = TOY_GRID, TOY_FRAMES // 2
    picture = np.zeros((TOY_FRAMES, height * TOY_CELL_PX, width * TOY_CELL_PX, 3), np.float32)
    cells = np.zeros((TOY_FRAMES, height, width), np.int64)
    y, x = ((np.arange(side * TOY_CELL_PX) + 0.5) / TOY_CELL_PX for side in TOY_GRID)
    for t in range(TOY_FRAMES):
        for number, (shape, top, left, down, right) in enumerate(TOY_OBJECTS, start=1):
            v = (y[:, None] - top - down * (t - middle)) / TOY_RADIUS_CELLS
            u = (x[None, :] - left - right * (t - middle)) / TOY_RADIUS_CELLS
            inside, shade = _toy_object(shape, u, v)
            colour = np.array(TOY_COLOURS[shape], np.float32) * shade[..., None]
            picture[t] = np.where(inside[..., None], colour, picture[t])
            covered = inside.reshape(height, TOY_CELL_PX, width, TOY_CELL_PX).mean((1, 3))
            cells[t] = np.where(covered >= 0.5, number, np.where(covered > 0, -1, cells[t]))
    cubes = [Query(middle, int(top), int(left)) for shape, top, left, *_ in TOY_OBJECTS if shape == "cube"]
    clip = Clip(picture.round().astype(np.uint8), np.arange(TOY_FRAMES) / 2)
    return ToyClip(clip, cells, dict(zip(("brown", "yellow"), cubes, strict=True)))


def _toy_object(name: str, u: Array, v: Array) -> tuple[NDArray[np.bool_], Array]:
    """Where the object is, and how bright; the cube shows three faces."""
    if name != "cube":
        inside = shape_distance(name, u, v) < 0
        return inside, np.ones(inside.shape, np.float32)
    inside = np.maximum(abs(u), abs(u) / 2 + abs(v) * 0.866) < 0.866
    return inside, np.where(v < -abs(u) / 1.732, 1.25, np.where(u < 0, 0.95, 0.65))


def toy_similarity(toy: ToyClip, view: OrderView, query: Query) -> dict[str, float]:
    """Mean similarity of a cube to the objects in the other frames of its window.

    Keys: query (itself), own set (its circle and heart), twin (the other cube), other set, background.
    """
    own, other = (1, 4) if toy.cells[query] <= 3 else (4, 1)
    groups = {"query": [own + 2], "own set": [own, own + 1], "twin": [other + 2]}
    groups |= {"other set": [other, other + 1], "background": [0]}
    length = view.similarity.shape[3]
    offsets = [offset for offset in range(-(length // 2), length // 2 + 1) if offset]
    maps = np.stack([query_map(view.similarity, query, offset).values for offset in offsets])
    cells = toy.cells[[query.t + offset for offset in offsets]]
    return {
        name: float(np.mean([maps[cells == index].mean() for index in indices]))
        for name, indices in groups.items()
    }


def patch_pixels(frames: NDArray[np.uint8], patch_px: int) -> Tensor:
    """The pixels of each patch as its feature, 0 (black) to 1.

    Shape:
        (T, H * patch_px, W * patch_px, 3) -> (1, T, H, W, patch_px * patch_px * 3).
    """
    pixels = torch.from_numpy(frames).float() / 255
    return rearrange(pixels, "t (h p) (w q) c -> 1 t h w (p q c)", p=patch_px, q=patch_px)


def flattened_orders(features: Tensor, window: Window, orders: Iterable[int]) -> list[OrderView]:
    """Eq. 3 with g = flattening over (L, U, V): order n + 1 compares the whole maps of order n.

    The strength is the standard deviation of a map's entries over the time offset l, root mean square over
    the map: 0 where nothing moves in the window. The map's norm is largest where all is alike.

    Shape:
        features: (1, T, H, W, C).
    """
    chosen, frames, length = set(orders), features.shape[1], window[0]
    offsets = torch.arange(frames)[:, None] + torch.arange(length) - length // 2
    inside = ((offsets >= 0) & (offsets < frames)).float().view(frames, 1, 1, length, 1, 1)
    views, read = [], features
    for order in range(1, max(chosen) + 1):
        similarity = stss(read, window)
        read = similarity.flatten(-3)
        if order in chosen:
            mean = similarity[0].sum(-3, keepdim=True) / inside.sum(-3, keepdim=True)
            change = ((similarity[0] - mean) * inside).square().sum((-3, -2, -1)) / inside.sum((-3, -2, -1))
            views.append(OrderView(order, similarity[0], (change / (window[1] * window[2])).sqrt()))
    return views


def learned_orders(maps: Sequence[OrderMaps], orders: Iterable[int] | None) -> list[OrderView]:
    """What a trained MOSS compares and says; the strength is the L2 norm of M^(n). None: all its orders.

    Raises: ValueError for an order it does not have.
    """
    views = {m.order: OrderView(m.order, m.similarity[0], m.motion[0].norm(dim=-1)) for m in maps}
    if missing := set(orders or ()) - set(views):
        raise ValueError(f"this MOSS has orders {sorted(views)}, not {sorted(missing)}; leave those out")
    return [views[order] for order in sorted(set(orders or views))]


class QueryMap(NamedTuple):
    """The part of a U x V map that lies in the frame, and the grid cell of its first entry."""

    values: Array
    top: int = 0
    left: int = 0


def query_map(similarity: Tensor, query: Query, offset: int) -> QueryMap:
    """Similarity of the query to its window `offset` frames later.

    Shape:
        similarity: (T, H, W, L, U, V).
    """
    _, height, width, length, rows, columns = similarity.shape
    first_y, first_x = query.y - rows // 2, query.x - columns // 2
    top, left = max(0, first_y), max(0, first_x)
    bottom, right = min(height, first_y + rows), min(width, first_x + columns)
    window = similarity[query.t, query.y, query.x, offset + length // 2]
    values = window[top - first_y : bottom - first_y, left - first_x : right - first_x]
    return QueryMap(values.float().numpy(), top, left)


def pick_query(clip: Clip, grid: tuple[int, int], length: int) -> Query:
    """The cell whose pixels differ most from both the previous and the next frame.

    The smaller of the two distances counts: background that something has just left, or is about to cover,
    has one only. Frames whose window of `length` frames leaves the clip are taken only where all do.

    Raises: ValueError for a clip of one frame.
    """
    frames = len(clip.frames)
    if frames < 2:
        raise ValueError("motion takes two frames or more, one was read; raise --fps or --frames")
    pixels = torch.from_numpy(clip.frames).float()
    cells = rearrange(pixels, "t (h p) (w q) c -> t (h w) (p q c)", h=grid[0], w=grid[1])
    change = (cells[1:] - cells[:-1]).norm(dim=-1)  # (T-1, H*W)
    least = torch.minimum(torch.cat([change[:1], change]), torch.cat([change, change[-1:]]))
    first = min(length // 2, (frames - 1) // 2)
    t, cell = divmod(int(least[first : frames - first].argmax()), grid[0] * grid[1])
    return Query(first + t, *divmod(cell, grid[1]))


class Marked(NamedTuple):
    """A query with the name and the colour it has in the figure."""

    name: str
    query: Query
    colour: str


@dataclass(frozen=True)
class Row:
    """A line of the figure: a map per column on one scale; None where the column is outside the clip."""

    label: str
    note: str
    colour: str
    maps: list[QueryMap | None]
    scale: tuple[float, float]
    colour_map: str


@dataclass(frozen=True)
class Sheet:
    """All that is drawn: a column per frame of the window, and under the frames groups of rows.

    Outside the clip a column has no picture. groups: a row per order for each query and for the strength.
    """

    title: str
    titles: list[str]
    pictures: list[NDArray[np.uint8] | None]
    grid: tuple[int, int]
    marked: list[Marked]
    regions: list[QueryMap]
    groups: list[list[Row]]


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
        clip: what the views, one or more orders of one window, were computed from.
        strength: what the views' strength is, in a few words; None leaves its rows and the times out.
        scale: of the similarities; None: for each order, from what is shown beside the queries' own frame.

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
    groups: list[list[Row]] = [[] for _ in range(len(marked) + bool(strength))]
    for view in views:
        label = f"order {view.order}"
        places = list(zip(shown, offsets, strict=True))
        maps = [
            [None if at is None else query_map(view.similarity, query, offset) for at, offset in places]
            for _, query, _ in marked
        ]
        beside = [m for line in maps for m, offset in zip(line, offsets, strict=True) if offset]
        for one, line, group in zip(marked, maps, groups, strict=False):
            group.append(Row(label, one.name, one.colour, line, scale or _limits(beside, 0.01), "magma"))
        if strength:
            whole = [None if at is None else QueryMap(view.strength[at].float().numpy()) for at in shown]
            groups[-1].append(Row(label, strength, "black", whole, _limits(whole, 0.0), "viridis"))
    titles = [f"$l$ = {offset:+d}" if offset else "$l$ = 0" for offset in offsets]
    if strength:
        times = ["" if at is None else f"   {clip.frame_times_s[at]:.2f} s" for at in shown]
        titles = list(map("".join, zip(titles, times, strict=True)))
    pictures = [None if at is None else clip.frames[at] for at in shown]
    regions = [query_map(views[0].similarity, query, 0) for _, query, _ in marked]
    return Sheet(title, titles, pictures, (height, width), list(marked), regions, groups)


def _limits(maps: Sequence[QueryMap | None], lowest: float) -> tuple[float, float]:
    """From the quantile `lowest` to the highest but 0.5 %."""
    values = [m.values.ravel() for m in maps if m is not None]
    low, high = np.quantile(np.concatenate(values), (lowest, 0.995)) if values else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))


def draw_frame(axes: Axes, sheet: Sheet, column: int) -> None:
    """The frame of a column, each query's region and, in their own frame, the queries."""
    if not _on_grid(axes, sheet, column, brightness=1.0):
        return
    for number, (one, region) in enumerate(zip(sheet.marked, sheet.regions, strict=True)):
        rows, columns = region.values.shape
        how: dict[str, Any] = {"fill": False, "clip_on": False}
        style = ("-", "--", ":", "-.")[number % 4]
        place = (region.left, region.top)
        axes.add_patch(Rectangle(place, columns, rows, color=REGION_COLOUR, lw=1.6, ls=style, **how))
        if column == len(sheet.titles) // 2:
            for colour, width in (("white", 2.8), (one.colour, 1.8)):
                axes.add_patch(Rectangle((one.query.x, one.query.y), 1, 1, color=colour, lw=width, **how))


def draw_map(axes: Axes, sheet: Sheet, row: Row, column: int) -> None:
    """A map at its place over the darkened frame."""
    found = row.maps[column]
    if not _on_grid(axes, sheet, column, brightness=0.5) or found is None:
        return
    rows, columns = found.values.shape
    extent = (found.left, found.left + columns, found.top + rows, found.top)
    axes.imshow(found.values, cmap=row.colour_map, norm=Normalize(*row.scale), extent=extent)
    axes.set(xlim=(0, sheet.grid[1]), ylim=(sheet.grid[0], 0))


def _on_grid(axes: Axes, sheet: Sheet, column: int, *, brightness: float) -> bool:
    """A panel with the column's frame, grey if darkened; False, and said there, where that is no frame."""
    picture, (height, width) = sheet.pictures[column], sheet.grid
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0), facecolor="#eeeeee")
    axes.spines[:].set_visible(False)
    if picture is None:
        axes.text(width / 2, height / 2, "outside\nthe clip", ha="center", va="center", fontsize=8)
    else:
        shown = picture if brightness == 1 else picture.mean(-1) * brightness
        axes.imshow(shown, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    return picture is not None
