"""Long videos in a frame cache: every n-th frame of them, in pieces, each of them an entry.

A window of a detector has 768 frames, every 4th of 3,072 in a video of 8,000. An entry of all frames would be
1.4 GB, so the cache keeps the frames of the grid on which the chosen ones lie, and of the video no more than
was asked for.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np

from moss_vllm.video.clip import count_shown, read_frames
from moss_vllm.video.frames import BadVideo, unique_frames

PIECE = 128
LEAST_USED = 0.25  # share of its pieces that must be asked for; a few frames of a long video are decoded


class _Entries(Protocol):
    """What a `FrameCache` has that is needed here."""

    is_closed: bool

    def open_entry(self, key: str, take: Callable[[Any], Any]) -> Any: ...
    def add_entry(self, key: str, arrays: dict[str, np.ndarray], sums: dict[str, str]) -> None: ...
    def take_frames(self, key: str, shown: np.ndarray) -> np.ndarray | None: ...
    def add_frames(self, key: str, frames: np.ndarray) -> None: ...


def read_pieces(
    cache: _Entries,
    describe: Callable[[], str | None],
    path: str,
    choose: Callable[[int], np.ndarray],
    **how: Any,
) -> np.ndarray:
    """What `read_frames` returns for the same arguments, from entries of `cache`, which it adds.

    Args:
        describe: the key of the video's state, see `FrameCache.read_frames`.
        how: `scale` and `decoder` of `read_frames`.

    Raises: as `read_frames`.
    """
    key = describe()
    known = cache.open_entry(count_key(key), _take_count)
    n_frames = known or count_shown(path)
    chosen = choose(n_frames)
    shown, order = unique_frames(chosen, n_frames)
    step = max(1, int(np.gcd.reduce(shown)))
    piece_of = shown // (step * PIECE)
    pieces = np.unique(piece_of)
    direct = partial(read_frames, path, partial(_these, chosen), **how)
    if len(shown) < LEAST_USED * PIECE * len(pieces):
        return direct()
    if known is None:
        cache.add_entry(count_key(key), {"n_frames": np.array([n_frames])}, {})
    parts = []
    for piece in pieces.tolist():
        grid = np.arange(piece * PIECE, (piece + 1) * PIECE) * step
        grid = grid[grid < n_frames]
        places = shown[piece_of == piece] // step - piece * PIECE
        piece_key = f"{key} every {step}, piece {piece}"
        frames = cache.take_frames(piece_key, places)
        if frames is None:
            if cache.is_closed:
                return direct()
            try:
                whole = read_frames(path, partial(_these, grid), **how)
            except BadVideo:  # the chosen frames may be good
                return direct()
            if key == describe():
                cache.add_frames(piece_key, whole)
            frames = whole[places]
        parts.append(frames)
    frames = np.concatenate(parts)
    return frames if np.array_equal(order, np.arange(len(frames))) else frames[order]


def _these(frames: np.ndarray, n_frames: int) -> np.ndarray:
    return frames


def count_key(key: str | None) -> str:
    """The key of the entry with a long video's number of frames, from the key of its state."""
    return f"{key} frames"


def _take_count(entry: Any) -> int:
    return int(entry.get_tensor("n_frames")[0])
