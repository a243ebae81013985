"""f: features -> space-time self-similarity (STSS), Eq. 1-2.

`stss_plain` is the definition written out, one offset at a time. The modules call `stss`, which gives the
same values: features are normalised once, each pair of frames is multiplied once for both of its directions,
in bands of rows, and only the unit features are kept for backward. Order n >= 2 (Eq. 3) applies the same
function to the encoded map of order n-1: see `moss.py`.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from operator import index
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd import forward_ad

Window = tuple[int, int, int]

# Below this norm a feature has no direction: its similarities and their gradient are 0.
MIN_NORM = 1e-6
MOST_CELLS = 2**20  # of a window: all of 180 frames of 27 x 27 cells has 1,008,431
# Query rows per matrix product, each with the rows that its window reaches: fewer rows waste less arithmetic,
# more rows make larger products. 4 was about the fastest on 14x14 to 32x32 grids with 9x9 or 11x11 windows.
BAND_ROWS = 4
# Frames are grouped until one product has this many elements. A CPU's should stay in its cache.
PRODUCT_ELEMENTS = {"cpu": 2**19}


def stss_plain(x: Tensor, window: Window) -> Tensor:
    """Cosine similarity of every position with its space-time neighbours, one offset at a time.

    Shape:
        x: (B, T, H, W, C) features, any floating type.
        returns: (B, T, H, W, L, U, V), float64 for float64 features and float32 for all others; entry
            [..., l, u, v] compares position (t, h, w) with (t + l - L//2, h + u - U//2, w + v - V//2) and is
            0 if the latter lies outside the clip or the frame.

    Raises:
        ValueError: `x` is not 5-D and floating, or a side of `window` is not a positive odd number.

    A feature whose norm overflows float32 (1e19) counts as zero, as does one below `MIN_NORM`.

    Reference: Eq. 1-2.
    """
    window = length, rows, columns = check(x, window)
    frames, height, width = x.shape[1:4]
    unit, _ = normalise(x)
    padded = F.pad(unit, (0, 0, *[columns // 2] * 2, *[rows // 2] * 2, *[length // 2] * 2))
    similarity = [
        (unit * padded[:, t : t + frames, u : u + height, v : v + width]).sum(-1)
        for t in range(length)
        for u in range(rows)
        for v in range(columns)
    ]
    return torch.stack(similarity, dim=-1).unflatten(-1, window)


def stss(x: Tensor, window: Window) -> Tensor:
    """`stss_plain` in less time and memory; arguments, values and errors are the same.

    It has first derivatives in reverse mode only; `stss_plain` has all derivatives.
    """
    return rearrange(stss_by_offset(x, window), "b t l h w (u v) -> b t h w l u v", u=window[1])


def stss_by_offset(x: Tensor, window: Window) -> Tensor:
    """`stss` with the axes in the order of its computation and encoding: (B, T, L, H, W, U*V), contiguous."""
    window = check(x, window)
    similarity, _, _ = stss_with_units(x, window)
    return similarity.view(*x.shape[:2], window[0], *x.shape[2:4], -1)


def stss_with_units(x: Tensor, window: Window) -> tuple[Tensor, Tensor, Tensor]:
    """Similarity (B, T, L, H*W, U*V), unit features (B, T, H*W, C) and 1 / norm (B, T, H*W, 1)."""
    if not torch.compiler.is_compiling() and forward_ad.unpack_dual(x).tangent is not None:
        raise NotImplementedError("stss has no forward-mode derivative; use stss_plain, which has all")
    return cast(tuple[Tensor, Tensor, Tensor], torch.ops.moss_vllm.stss(x, list(window)))


def check(x: Tensor, window: Sequence[int]) -> Window:
    """The window as ints, or a ValueError for a wrong `x` or `window`, see `stss_plain`."""
    if not isinstance(x, Tensor):
        raise ValueError(f"stss takes a tensor of features, got {type(x).__name__}; see torch.as_tensor")
    if x.dim() != 5 or not x.is_floating_point():
        raise ValueError(
            f"stss takes floating features of shape (B, T, H, W, C), got {x.dtype} of shape "
            f"{tuple(x.shape)}; add the missing axis or convert the dtype"
        )
    if 0 in x.shape:
        raise ValueError(f"stss takes at least one clip, frame, position and channel, got {tuple(x.shape)}")
    return check_window(window)


def check_window(window: Sequence[int]) -> Window:
    """`window` as a tuple of ints, or a ValueError unless it has three sides, positive, odd, of sane size."""
    try:
        length, rows, columns = (index(side) for side in window)
        odd = all(side > 0 and side % 2 == 1 for side in (length, rows, columns))
    except (TypeError, ValueError):
        odd = False
    if not odd:
        raise ValueError(
            f"window (L, U, V) needs three positive odd sizes so that it has a centre, got {window}; "
            "the paper uses (5, 9, 9) for action recognition and (7, 11, 11) for the Video-LLM"
        )
    if length * rows * columns > MOST_CELLS:
        raise ValueError(
            f"window {length}, {rows}, {columns} has more than {MOST_CELLS:,} cells; name a smaller one, the "
            "paper uses (5, 9, 9) for action recognition and (7, 11, 11) for the Video-LLM"
        )
    return length, rows, columns


def inverse_norm(x: Tensor) -> Tensor:
    """1 / norm, or 0 below `MIN_NORM`; float64 for float64 features and float32 for all others.

    Shape:
        (..., C) -> (..., 1).
    """
    square = (x if x.dtype == torch.float64 else x.float()).square().sum(-1, keepdim=True)
    return square.clamp_min(MIN_NORM**2).rsqrt() * (square > MIN_NORM**2)


def normalise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit features and `inverse_norm`, both in the dtype of `inverse_norm`.

    Shape:
        (..., C) -> (..., C) and (..., 1).
    """
    scale = inverse_norm(x)
    return x * scale, scale


def normalise_backward(grad_unit: Tensor, unit: Tensor, scale: Tensor) -> Tensor:
    """Gradient to features from that to unit features: its part orthogonal to each feature, over the norm.

    Shape:
        (..., C), (..., C) and (..., 1) -> (..., C).
    """
    return (grad_unit - unit * (unit * grad_unit).sum(-1, keepdim=True)) * scale


class _Band(NamedTuple):
    """Rows of queries, the rows their windows reach, and where each query's neighbours lie among those."""

    rows: slice  # of the H*W queries
    reach: slice  # of the H*W keys
    neighbour: Tensor  # (queries, U*V), index into reach; 0 for neighbours outside the frame
    inside: Tensor  # (queries, U*V), False for neighbours outside the frame
    target: Tensor  # (queries, U*V), index into reach; one past its end for neighbours outside the frame


class _Grid(NamedTuple):
    bands: list[_Band]
    opposite: Tensor  # (H*W * U*V,), see _turn


@torch.library.custom_op("moss_vllm::stss", mutates_args=())
def _stss(x: Tensor, window: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Similarity (B, T, L, H*W, U*V), unit features (B, T, H*W, C) and 1 / norm (B, T, H*W, 1)."""
    # Without autocast: Eq. 2 in bfloat16 would lose the small differences that show motion.
    with torch.autocast(x.device.type, enabled=False):
        unit, scale = normalise(rearrange(x, "b t h w c -> b t (h w) c").contiguous())
    return similarity_of_units(unit, list(x.shape[2:4]), window), unit, scale


@torch.library.custom_op("moss_vllm::similarity_of_units", mutates_args=())
def similarity_of_units(unit: Tensor, size: list[int], window: list[int]) -> Tensor:
    """Similarity (B, T, L, H*W, U*V) of unit features (B, T, H*W, C), without gradient; `size` is (H, W)."""
    length, rows, columns = window
    with torch.autocast(unit.device.type, enabled=False):
        grid = _grid(size[0], size[1], rows, columns, unit.device)
        similarity = unit.new_zeros(*unit.shape[:2], length, unit.shape[2], rows * columns)
        for clip, here, there, offset in _frame_pairs(unit, length, grid):
            query, key, maps = unit[clip, here], unit[clip, there], similarity[clip]
            ahead = maps[here, length // 2 + offset]
            for band in grid.bands:
                scores = query[:, band.rows] @ key[:, band.reach].transpose(-1, -2)  # Eq. 2, one offset l
                neighbours = scores.gather(-1, band.neighbour.expand(len(scores), -1, -1))
                torch.mul(neighbours, band.inside, out=ahead[:, band.rows])
            if offset:
                maps[there, length // 2 - offset] = _turn(ahead, grid)
    return similarity


@torch.library.custom_op("moss_vllm::stss_backward", mutates_args=())
def stss_backward(grad: Tensor, unit: Tensor, scale: Tensor, size: list[int], window: list[int]) -> Tensor:
    """Gradient to the features, (B, T, H*W, C), from that to the similarity; `size` is (H, W)."""
    length, rows, columns = window
    with torch.autocast(unit.device.type, enabled=False):
        grid = _grid(size[0], size[1], rows, columns, unit.device)
        grad_unit = torch.zeros_like(unit)
        for clip, here, there, offset in _frame_pairs(unit, length, grid):
            query, key, maps = unit[clip, here], unit[clip, there], grad[clip]
            ahead = maps[here, length // 2 + offset]
            if offset:
                ahead = ahead + _turn(maps[there, length // 2 - offset], grid)
            for band in grid.bands:
                keys = key[:, band.reach]
                scores = keys.new_zeros(len(keys), len(band.target), keys.shape[1] + 1)
                scores.scatter_(-1, band.target.expand(len(keys), -1, -1), ahead[:, band.rows])
                scores = scores[..., :-1]  # gradient of the product of this band
                grad_unit[clip, here, band.rows] += scores @ keys
                grad_unit[clip, there, band.reach] += scores.transpose(-1, -2) @ query[:, band.rows]
        return normalise_backward(grad_unit, unit, scale)


def _turn(maps: Tensor, grid: _Grid) -> Tensor:
    """S[t, p, l, d] -> S[t + l, p, -l, d] for all p, d, because S[t + l, p + d, -l, -d] = S[t, p, l, d].

    Shape:
        (frames, H*W, U*V) -> the same. It is its own inverse, and keeps entries for d outside the frame.
    """
    return maps.flatten(1).index_select(1, grid.opposite).view(maps.shape)


def _frame_pairs(unit: Tensor, length: int, grid: _Grid) -> Iterator[tuple[int, slice, slice, int]]:
    """(clip, frames, frames `offset` later, offset) for offsets 0 to L//2, in groups that fit the cache."""
    largest = max(band.neighbour.shape[0] * (band.reach.stop - band.reach.start) for band in grid.bands)
    step = max(1, PRODUCT_ELEMENTS.get(unit.device.type, 2**26) // largest)
    clips, frames = unit.shape[:2]
    # Clip by clip, because a group holds consecutive frames; slow on GPUs, which have the fused kernel.
    for clip, start, offset in product(range(clips), range(0, frames, step), range(length // 2 + 1)):
        if start < (stop := min(start + step, frames - offset)):
            yield clip, slice(start, stop), slice(start + offset, stop + offset), offset


@lru_cache(maxsize=32)
def _grid(height: int, width: int, rows: int, columns: int, device: torch.device) -> _Grid:
    """The positions that a window of rows x columns reaches on a grid of height x width."""
    y = torch.arange(height, device=device)[:, None, None, None] + _offsets(rows, device)[:, None]
    x = torch.arange(width, device=device)[:, None, None] + _offsets(columns, device)
    inside = ((y >= 0) & (y < height) & (x >= 0) & (x < width)).reshape(height * width, -1)
    position = (y * width + x).reshape(height * width, -1)
    bands = []
    for top in range(0, height, BAND_ROWS):
        bottom = min(top + BAND_ROWS, height)
        first, last = max(0, top - rows // 2) * width, min(height, bottom + rows // 2) * width
        queries = slice(top * width, bottom * width)
        among, valid = position[queries] - first, inside[queries]
        bands.append(
            _Band(
                queries,
                slice(first, last),
                among.where(valid, torch.zeros_like(among)),
                valid,
                among.where(valid, torch.full_like(among, last - first)),
            )
        )
    window = torch.arange(rows * columns, device=device)
    own = torch.arange(height * width, device=device)[:, None] * len(window) + window
    turned = position * len(window) + window.flip(0)
    return _Grid(bands, turned.where(inside, own).flatten())


def _offsets(side: int, device: torch.device) -> Tensor:
    return torch.arange(side, device=device) - side // 2


@_stss.register_fake
def _(x: Tensor, window: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    batch, frames, height, width, channels = x.shape
    unit = x.new_empty(
        batch, frames, height * width, channels, dtype=x.dtype if x.dtype == torch.float64 else torch.float32
    )
    maps = similarity_of_units(unit, [height, width], window)
    return maps, unit, unit.new_empty(batch, frames, height * width, 1)


@similarity_of_units.register_fake
def _(unit: Tensor, size: list[int], window: list[int]) -> Tensor:
    return unit.new_empty(*unit.shape[:2], window[0], unit.shape[2], window[1] * window[2])


@stss_backward.register_fake
def _(grad: Tensor, unit: Tensor, scale: Tensor, size: list[int], window: list[int]) -> Tensor:
    return torch.empty_like(unit)


def _save_unit_features(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.dtype, ctx.shape, ctx.window = inputs[0].dtype, inputs[0].shape, inputs[1]
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None]:
    unit, scale = ctx.saved_tensors
    gradient = stss_backward(grad, unit, scale, list(ctx.shape[2:4]), ctx.window)
    return gradient.view(ctx.shape).to(ctx.dtype), None


_stss.register_autograd(_differentiate, setup_context=_save_unit_features)
