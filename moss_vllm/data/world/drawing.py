"""Draw textured shapes, plain or with a printed sign, on a textured wall.

Positions wrap around the frame, so that neither a single frame nor a start or end position tells how a shape
moves.
"""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.floating[Any]]

THING_COLOURS = {
    "red": (215, 45, 40),
    "green": (50, 170, 60),
    "blue": (50, 85, 220),
    "yellow": (235, 210, 50),
    "pink": (240, 130, 200),
    "white": (240, 240, 240),
}
THING_SHAPES = ("circle", "square", "triangle", "cross", "heart")
GLYPH_SHARE = 0.7  # of a thing's radius
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@contextmanager
def drawing_processes() -> Iterator[ProcessPoolExecutor]:
    """A process for each processor. Ctrl-C is for their parent: they end with what they are at."""
    ignore = (signal.SIGINT, signal.SIG_IGN)
    count = max(1, os.cpu_count() or 1)
    with ProcessPoolExecutor(count, initializer=signal.signal, initargs=ignore) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@dataclass(frozen=True)
class Thing:
    """One object. Paths are per frame; each of `glyphs` is printed on it for an equal part of the clip."""

    shape: str
    colour: str
    radius_px: float
    x_px: Array  # (T,)
    y_px: Array  # (T,)
    angle_rad: Array  # (T,)
    texture_phase: float
    glyphs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wall:
    """The background: periodic noise, perhaps papered with a dark or light glyph, shifted per frame."""

    seed: int
    x_px: Array  # (T,)
    y_px: Array  # (T,)
    glyph: str = ""
    light: bool = False
    things: tuple[Thing, ...] = field(default=())


def draw_wall(wall: Wall, size_px: int) -> NDArray[np.uint8]:
    """Paint the wall and its things.

    Shape:
        returns: (T, size_px, size_px, 3) uint8.
    """
    paper = _paper(wall, size_px)
    shifts = zip(np.rint(wall.y_px).astype(int), np.rint(wall.x_px).astype(int), strict=True)
    frames = np.stack([np.roll(paper, shift, axis=(0, 1)) for shift in shifts])
    for thing in wall.things:
        _paint(frames, thing, size_px)
    return frames.clip(0, 255).astype(np.uint8)


def _paper(wall: Wall, size_px: int) -> Array:
    rng = np.random.default_rng(wall.seed)
    cells = max(3, size_px // 12)
    noise = rng.uniform(0, 255, (cells, cells, 3))
    noise = 0.35 * noise + 0.65 * noise.mean(-1, keepdims=True)  # muted, so that objects stand out
    tiled = Image.fromarray(np.tile(noise, (3, 3, 1)).astype(np.uint8))
    smooth = np.asarray(tiled.resize((3 * size_px, 3 * size_px), Image.Resampling.BICUBIC), dtype=np.float32)
    paper = 60 + 0.4 * smooth[size_px : 2 * size_px, size_px : 2 * size_px]
    if wall.glyph:
        tiles = max(1, round(size_px / 28))
        axis = (np.arange(size_px, dtype=np.float32) + 0.5) * tiles / size_px % 1 * 2 - 1
        ink = glyph_mask(wall.glyph, axis[None, :] / 0.8, axis[:, None] / 0.8)
        paper += 0.65 * ink[..., None] * ((255 if wall.light else 0) - paper)
    return paper


def _paint(frames: Array, thing: Thing, size_px: int) -> None:
    axis = np.arange(size_px, dtype=np.float32) + 0.5
    half = size_px / 2
    dx = (axis - thing.x_px[:, None] + half) % size_px - half  # (T, W), the shortest way on the torus
    dy = (axis - thing.y_px[:, None] + half) % size_px - half  # (T, H)
    cos, sin = np.cos(thing.angle_rad)[:, None, None], np.sin(thing.angle_rad)[:, None, None]
    # (T, H, W), in the object's own frame
    u = (cos * dx[:, None, :] + sin * dy[:, :, None]) / thing.radius_px
    v = (cos * dy[:, :, None] - sin * dx[:, None, :]) / thing.radius_px
    cover = _soft(shape_distance(thing.shape, u, v), thing.radius_px)[..., None]
    stripes = 0.8 + 0.2 * np.cos(4 * u + 2.5 * v + thing.texture_phase)[..., None]
    colour = np.array(THING_COLOURS[thing.colour], dtype=np.float32) * stripes
    for index, glyph in enumerate(thing.glyphs):
        part = slice(len(frames) * index // len(thing.glyphs), len(frames) * (index + 1) // len(thing.glyphs))
        colour[part] *= 1 - glyph_mask(glyph, u[part] / GLYPH_SHARE, v[part] / GLYPH_SHARE)[..., None]
    frames += cover * (colour - frames)


def _soft(distance: Array, radius_px: float) -> Array:
    """1 inside, 0 outside, one pixel of slope between."""
    return np.clip(0.5 - distance * radius_px, 0, 1)


def shape_distance(shape: str, u: Array, v: Array) -> Array:
    """Negative inside the shape, positive outside; u points right and v down, the radius is 1."""
    if shape == "circle":
        return np.hypot(u, v) - 1
    if shape == "square":
        return np.maximum(abs(u), abs(v)) - 0.87
    if shape == "triangle":
        return np.maximum(v - 0.75, (2 * abs(u) - v - 1.15) / 2.2)
    if shape == "cross":
        bars = [np.maximum(abs(a) - 1, abs(b) - 0.42) for a, b in ((u, v), (v, u))]
        return np.minimum(*bars)
    if shape == "heart":
        lobes = np.hypot(abs(u) - 0.45, v + 0.35) - 0.52
        return np.minimum(lobes, np.maximum(abs(u) + 0.85 * v - 0.83, -0.3 - v))
    raise ValueError(f"unknown shape '{shape}'; known are {', '.join(THING_SHAPES)}")


def glyph_mask(glyph: str, u: Array, v: Array) -> Array:
    """1 where there is ink. Glyphs: a direction, 'direction quickly', (anti)clockwise, still, 1 to 3."""
    u, v = np.broadcast_arrays(u, v)
    name, _, quickly = glyph.partition(" ")
    if name in DIRECTIONS:
        x, y = DIRECTIONS[name]
        along, across = u * x + v * y, abs(v * x - u * y)
        head = np.maximum(across - 0.75 * (0.95 - along), -along)
        ink = np.minimum(head, np.maximum(across - 0.16, abs(along + 0.35) - 0.6))
        if quickly == "quickly":
            second = np.maximum(across - 0.75 * (0.1 - along), -along - 0.85)
            ink = np.minimum(head, second)
    elif name in ("clockwise", "anticlockwise"):
        u = u if name == "clockwise" else -u
        ring = np.maximum(abs(np.hypot(u, v) - 0.65) - 0.14, np.minimum(-u, v))
        ink = np.minimum(ring, np.maximum(abs(u - 0.65) - 0.8 * (0.4 - v), -v - 0.1))
    elif name == "still":
        ink = np.maximum(abs(np.maximum(abs(u), abs(v)) - 0.6) - 0.16, -1)
    elif name in ("1", "2", "3"):
        count = int(name)
        centres = [(0.62 * (i - (count - 1) / 2), 0.5 * (i % 2) - 0.25 * (count > 1)) for i in range(count)]
        ink = np.minimum.reduce([np.hypot(u - x, v - y) - 0.27 for x, y in centres])
    else:
        raise ValueError(f"unknown glyph '{glyph}'")
    return np.clip(0.5 - ink * 9, 0, 1).astype(np.float32)
