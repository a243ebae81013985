"""Long videos in a frame cache: every n-th frame of them, in pieces, each of them an entry.

A window of a detector has 768 frames, every 4th of 3,072 in a video of 8,000. An entry of all frames would be
1.4 GB, so the cache keeps the frames of the grid on which the chosen ones lie, and of the video no more than
was asked for.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from moss_vllm.video.clip import count_shown, read_frames
from moss_vllm.video.frames import BadVideo, unique_frames

if TYPE_CHECKING:
    from moss_vllm.video.cache import FrameCache

PIECE = 128
LEAST_USED = 0.25  # share of its pieces that must be asked for; a few frames of a long video are decoded


def read_pieces(
    cache: "FrameCache",
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
    direct = partial(read_frames, path, lambda _: chosen, **how)
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
                whole = read_frames(path, lambda _, grid=grid: grid, **how)
            except BadVideo:  # the chosen frames may be good
                return direct()
            if key == describe():
                cache.add_frames(piece_key, whole)
            frames = whole[places]
        parts.append(frames)
    return np.concatenate(parts)[order]


def count_key(key: str | None) -> str:
    """The key of the entry with a long video's number of frames, from the key of its state."""
    return f"{key} frames"


def _take_count(entry: Any) -> int:
    return int(entry.get_tensor("n_frames")[0])
