"""Segments: clips of camouflaged shapes, which exist only as places that move unlike the wall around them.

Wall and shapes are mosaics of random squares of one and the same kind, cut between patches. So every frame of
every clip is a picture of independent random squares, whatever the class: no frame tells anything. Nothing
wraps around: what leaves the frame does not come back.

The class is which places move alike. In the groups "shape" and "pair" the wall moves or stands still, and
one or two shapes move otherwise; each motion is drawn at random, so where something moves, and how, tells
nothing. A shape stays where it is, and its squares flow through it. In the group "direction" the wall alone
moves, and the one coherent motion is the class.

    group      classes                                        what a model has to see
    direction  the wall moves left, right, up, down           one motion
    shape      tall, wide, square, hollow                     the outline of what moves alike (Fig. 3)
    pair       side by side or one above the other,           which of two segments move alike, and how they
               alike or each its own way                      are arranged
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moss_vllm.data.world.drawing import DIRECTIONS

SEGMENT_FRAMES = 6
SEGMENT_GRID = 10  # patches in a row and in a column of a frame
PATCH_SQUARES = 2  # squares in a row of a patch
SQUARE_PX = 7
SEGMENT_FRAME_PX = SEGMENT_GRID * PATCH_SQUARES * SQUARE_PX  # 140
# From one frame to the next a motion goes a patch in one of 8 ways (y, x), or stands still.
WAYS = np.array([(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)])

# Class -> group; a class's label is its place here.
SEGMENT_CLASSES = {
    **{f"the wall moves {direction}": "direction" for direction in DIRECTIONS},
    "a tall shape": "shape",
    "a wide shape": "shape",
    "a square shape": "shape",
    "a hollow shape": "shape",
    "two side by side, alike": "pair",
    "two side by side, each its own way": "pair",
    "one above the other, alike": "pair",
    "one above the other, each its own way": "pair",
}
SEGMENT_GROUPS = tuple(dict.fromkeys(SEGMENT_CLASSES.values()))
# Height and width in patches of the shapes of about one size: 12 patches, the square one 9 or 16.
SEGMENT_SHAPES = {"tall": [(6, 2)], "wide": [(2, 6)], "square": [(3, 3), (4, 4)], "hollow": [(4, 4)]}
PAIRED, ROOM = (3, 3), 4  # of each of two shapes, and the strip at the edge of the frame where it lies


@dataclass(frozen=True)
class Segment:
    """A shape, and the way (y, x) that its squares go from frame to frame, in patches."""

    mask: NDArray[np.bool_]  # (SEGMENT_GRID, SEGMENT_GRID)
    way: NDArray[np.int64]  # (2,)


@dataclass(frozen=True)
class SegmentScene:
    """A clip: the wall's way, the shapes, and the seed of all squares' colours."""

    seed: int
    wall_way: NDArray[np.int64]
    segments: tuple[Segment, ...]


def draw_segments(rng: np.random.Generator, name: str) -> SegmentScene:
    """Draw a clip of a class.

    Raises:
        ValueError: unknown class.
    """
    if name not in SEGMENT_CLASSES:
        raise ValueError(f"unknown class '{name}'; known are {', '.join(SEGMENT_CLASSES)}")
    group, seed = SEGMENT_CLASSES[name], int(rng.integers(2**31))
    if group == "direction":
        x, y = DIRECTIONS[name.split()[-1]]
        return SegmentScene(seed, np.array((y, x)), ())
    wall, first, second = WAYS[rng.permutation(len(WAYS))[:3]]
    if group == "shape":
        kind = name.split()[1]
        mask = np.ones(SEGMENT_SHAPES[kind][rng.integers(len(SEGMENT_SHAPES[kind]))], dtype=bool)
        if kind == "hollow":
            mask[1:-1, 1:-1] = False
        return SegmentScene(seed, wall, (_place(rng, mask, first, (0, 0), (SEGMENT_GRID, SEGMENT_GRID)),))
    stacked, alike = name.startswith("one above"), name.endswith("alike")
    far = SEGMENT_GRID - ROOM
    corners = ((0, 0), (far, 0) if stacked else (0, far))
    size = (ROOM, SEGMENT_GRID) if stacked else (SEGMENT_GRID, ROOM)
    places = zip(corners, (first, first if alike else second), strict=True)
    mask = np.ones(PAIRED, dtype=bool)
    return SegmentScene(seed, wall, tuple(_place(rng, mask, way, corner, size) for corner, way in places))


def render_segments(scene: SegmentScene) -> NDArray[np.uint8]:
    """Draw the clip.

    Shape:
        returns: (T, SEGMENT_FRAME_PX, SEGMENT_FRAME_PX, 3) uint8, T = SEGMENT_FRAMES.
    """
    rng = np.random.default_rng(scene.seed)
    frames = _flow(rng, scene.wall_way)
    for segment in scene.segments:
        squares = segment.mask.repeat(PATCH_SQUARES, 0).repeat(PATCH_SQUARES, 1)
        frames[:, squares] = _flow(rng, segment.way)[:, squares]
    return frames.repeat(SQUARE_PX, axis=1).repeat(SQUARE_PX, axis=2)


def _flow(rng: np.random.Generator, way: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Squares (T, H, W, 3) of a mosaic larger than the frame that goes `way` each time."""
    side, farthest = SEGMENT_GRID * PATCH_SQUARES, PATCH_SQUARES * (SEGMENT_FRAMES - 1)
    mosaic = rng.integers(0, 256, (side + 2 * farthest, side + 2 * farthest, 3), dtype=np.uint8)
    starts = farthest - PATCH_SQUARES * np.arange(SEGMENT_FRAMES)[:, None] * way
    return np.stack([mosaic[y : y + side, x : x + side] for y, x in starts])


def _place(
    rng: np.random.Generator,
    mask: NDArray[np.bool_],
    way: NDArray[np.int64],
    corner: tuple[int, int],
    size: tuple[int, int],
) -> Segment:
    """The shape at a random place of a part of the frame, both in patches."""
    y, x = (int(c + rng.integers(s - m + 1)) for c, s, m in zip(corner, size, mask.shape, strict=True))
    whole = np.zeros((SEGMENT_GRID, SEGMENT_GRID), dtype=bool)
    whole[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    return Segment(whole, way)
