"""Self-similarity as seen from one position, order by order, and the toy clip of Figs. 3 and 7.

Without weights, g is flattening over (L, U, V), as in those figures; a trained MOSS has a learned g.

The toy clip's numbers (`toy_similarity`, and the tests): order 1 lights up both cubes alike; order 2 the
query's own set, three times as much as the twin cube and its set; order 3 both sets, the other one at 0.7 to
0.9 of the query's own. The objects' places do not matter. Over a static textured wall, with features less
their mean, order 2 shows the same, while order 3 lights up the wall too. Over a white wall, with plain
pixels, both fail, because all looks alike to the cosine. Objects that move less than half their size per
frame are told apart less well.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from moss_vllm.core.moss import OrderMaps
from moss_vllm.core.stss import Window, check_window, stss
from moss_vllm.data.world.drawing import shape_distance
from moss_vllm.video.clip import Clip

FloatArray = NDArray[np.floating[Any]]

TOY_GRID, TOY_FRAMES, TOY_CELL_PX = (20, 24), 7, 16
TOY_WINDOW: Window = (5, 39, 47)  # reaches from any position of the grid to any other
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
STILL_LEVELS = 1.0  # of 255, root mean square over a cell; smaller changes come from compression
TOY_COLOURS = {"circle": (20, 30, 255), "heart": (255, 25, 25), "cube": (0, 200, 0)}


class Query(NamedTuple):
    """The position whose similarity to its neighbours is shown, in frames and grid cells."""

    t: int
    y: int
    x: int


@dataclass(frozen=True)
class OrderView:
    """One order of one clip.

    Shape: similarity (T, H, W, L, U, V), 0 outside the clip and the frame; strength (T, H, W), the L2 norm of
    a learned M^(n) at each position or, without weights, how much the position's map changes.
    """

    order: int
    similarity: Tensor
    strength: Tensor


@dataclass(frozen=True)
class ToyClip:
    """Two sets of three objects on black, one moving sideways, the other down.

    Shape: cells int (T, H, W): 0 for background, 1 to 3 for circle, heart and cube of the first set, 4 to 6
    for those of the second, -1 at their rims. queries: the two cubes in the middle frame.
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


def _toy_object(name: str, u: FloatArray, v: FloatArray) -> tuple[NDArray[np.bool_], FloatArray]:
    """The object's mask and brightness; the cube shows three faces."""
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

    The strength is the standard deviation of a map's entries over the time offset l, as a root mean square
    over the map: 0 where nothing moves in the window. The map's norm is largest where all looks alike.

    Shape:
        features: (1, T, H, W, C).

    Raises: ValueError for a window larger than `largest_window`.
    """
    window = check_window(window)
    useful = largest_window(features)
    if any(side > most for side, most in zip(window, useful, strict=True)):
        raise ValueError(
            f"window {','.join(map(str, window))} reaches past all of the clip; the largest useful one for "
            f"{' x '.join(map(str, features.shape[1:4]))} (T x H x W) is {','.join(map(str, useful))}"
        )
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


def largest_window(features: Tensor) -> Window:
    """The window that reaches from any position of the clip to any other.

    Shape:
        features: (1, T, H, W, C).
    """
    frames, height, width = features.shape[1:4]
    return 2 * frames - 1, 2 * height - 1, 2 * width - 1


def learned_orders(maps: Sequence[OrderMaps], orders: Iterable[int] | None) -> list[OrderView]:
    """A trained MOSS's orders, all of them for None; the strength is the L2 norm of M^(n).

    Raises: ValueError for an order that this MOSS does not have.
    """
    views = {m.order: OrderView(m.order, m.similarity[0], m.motion[0].norm(dim=-1)) for m in maps}
    if missing := set(orders or ()) - set(views):
        raise ValueError(f"this MOSS has orders {sorted(views)}, not {sorted(missing)}; leave those out")
    return [views[order] for order in sorted(set(orders or views))]


class QueryMap(NamedTuple):
    """The part of a U x V map that lies in the frame, and the grid cell of its first entry."""

    values: FloatArray
    top: int = 0
    left: int = 0


def query_map(similarity: Tensor, query: Query, offset: int) -> QueryMap:
    """Similarity of the query to the part of its window `offset` frames later.

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

    The smaller of the two distances counts, because background that an object has just left or is about to
    cover differs from one of them only. Frames whose window of `length` frames reaches outside the clip are
    taken only if those of all frames do.

    Raises: ValueError for a clip of one frame, or one in which nothing moves.
    """
    frames = len(clip.frames)
    if frames < 2:
        raise ValueError("motion takes two frames or more, got one; read more of the video, or give a query")
    pixels = torch.from_numpy(clip.frames).float()
    cells = rearrange(pixels, "t (h p) (w q) c -> t (h w) (p q c)", h=grid[0], w=grid[1])
    change = (cells[1:] - cells[:-1]).norm(dim=-1)  # (T-1, H*W)
    least = torch.minimum(torch.cat([change[:1], change]), torch.cat([change, change[-1:]]))
    first = min(length // 2, (frames - 1) // 2)
    least = least[first : frames - first] / cells.shape[-1] ** 0.5
    if least.max() < STILL_LEVELS:
        raise ValueError(
            f"nothing moves in the {frames} frames read; give --query T,Y,X, or read more of them"
        )
    t, cell = divmod(int(least.argmax()), grid[0] * grid[1])
    return Query(first + t, *divmod(cell, grid[1]))
