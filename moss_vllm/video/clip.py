"""Read one clip, frames and their times, from a video file or from a folder of frames.

PyAV lists the packets of a file to learn every frame's presentation time; then the decoder delivers the
frames chosen by those times. All decoders thus share one choice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import av
import numpy as np

from moss_vllm.runtime.ranges import FPS, FROM_ONE, SECOND, SHORTER_PX
from moss_vllm.video.container import open_file
from moss_vllm.video.decoders import ROUNDING_S, Resized, check_decoder, decode
from moss_vllm.video.frames import (
    ANY_SIDES,
    REPLACE_FILE,
    BadVideo,
    FrameSize,
    list_images,
    read_images,
    scaled_size,
    stack_resized,
    target_size,
    unique_frames,
)
from moss_vllm.video.packets import Index, index_frames


@dataclass(frozen=True)
class Clip:
    """Frames of one video and when they are shown.

    Shape: frames uint8 (T, H, W, 3), RGB; frame_times_s float64 (T,), strictly increasing, seconds from the
    first frame of the video or from `start_s`.
    """

    frames: np.ndarray
    frame_times_s: np.ndarray


@dataclass(frozen=True)
class Sampling:
    """Which frames of a clip are read, and at which size; the defaults are the paper's.

    Args:
        sample_fps: frames per second of video.
        short_side_px: the shorter side after resizing; None keeps the video's own size.
        max_frames: more are thinned evenly, first and last kept.
        sides: the sizes that the model takes.

    Raises: ValueError for a number out of range.
    Reference: Sec. 4.5.
    """

    sample_fps: float = 2.0
    short_side_px: int | None = 224
    max_frames: int = 180
    sides: FrameSize = ANY_SIDES

    def __post_init__(self) -> None:
        FPS.check(sample_fps=self.sample_fps)
        if self.sides.square_px is None:
            SHORTER_PX.check(short_side_px=self.short_side_px)
        FROM_ONE.check(max_frames=self.max_frames)

    @property
    def settings(self) -> dict[str, Any]:
        """What a user chooses: all but `sides`, which are the model's."""
        return {name: value for name, value in vars(self).items() if name != "sides"}

    @property
    def key(self) -> dict[str, Any]:
        """What tells two samplings apart, without the usual `sides`, which earlier caches do not name."""
        return {**self.settings, **({} if self.sides == ANY_SIDES else asdict(self.sides))}


PAPER_SAMPLING = Sampling()


@dataclass(frozen=True)
class _Video:
    """An open file, or a folder and the names of its images, with the index of the frames."""

    path: str
    index: Index
    names: list[str]
    container: av.container.InputContainer | None

    def read(self, chosen: np.ndarray, resized: Resized, decoder: str) -> np.ndarray:
        if self.container is not None:
            return decode(self.path, self.container, self.index, chosen, resized, decoder)
        images = read_images(self.path, [self.names[i] for i in chosen])
        return stack_resized(self.path, images, len(chosen), resized)


@contextmanager
def _open_video(path: str, folder_fps: float = 1.0) -> Iterator[_Video]:
    if os.path.isdir(path):
        names = list_images(path)
        yield _Video(path, Index(np.arange(len(names)) / folder_fps, len(names) / folder_fps), names, None)
        return
    with open_file(path) as container:
        yield _Video(path, _index_of(path, container), [], container)


_known: dict[tuple[object, ...], Index] = {}  # the index of one file, by its state


def _index_of(path: str, container: av.container.InputContainer) -> Index:
    """The index of an open file; the last one is kept, as a detector's test reads a video in parts."""
    try:
        state = os.stat(path)
    except OSError:  # gone, but open: it can be read
        return index_frames(path, container)
    key = (path, state.st_ino, state.st_size, state.st_mtime_ns)
    index = _known.get(key)
    if index is None:
        index = index_frames(path, container)
        _known.clear()
        _known[key] = index
    return index


def read_clip(
    path: str | os.PathLike[str],
    sampling: Sampling = PAPER_SAMPLING,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
    folder_fps: float = 3.0,
    decoder: str = "auto",
) -> Clip:
    """Read the frames on screen at start_s + k / sample_fps, each frame at most once.

    The part read is [start_s, end_s) and may end after the video does. A frame already on screen at start_s
    has time 0. Frames cut away by an edit list are not shown and not counted. Frames are turned, mirrored and
    as wide as a player shows them. A folder of images is a video of folder_fps. Sides become those of
    `sampling.sides`.

    Shape: see Clip.
    Raises: BadVideo for what is wrong with the file, ValueError for an argument out of range, ImportError
    for a decoder that is not installed. A damaged picture that a decoder conceals without an error
    (overwritten bytes inside avi, mkv or webm) goes unnoticed.
    """
    check_decoder(decoder)
    _check_part(start_s, end_s, folder_fps)
    resized = partial(target_size, short_side_px=sampling.short_side_px, sides=sampling.sides)
    with _open_video(os.fspath(path), folder_fps) as video:
        chosen, times_s = _choose(video, sampling, start_s, end_s)
        return Clip(video.read(chosen, resized, decoder), times_s)


def read_frames(
    path: str | os.PathLike[str],
    choose: Callable[[int], np.ndarray],
    *,
    scale: int | tuple[int, int] | None = None,
    decoder: str = "auto",
) -> np.ndarray:
    """Read the frames whose indices `choose` returns for the number of frames; any order, repeats allowed.

    `scale` is the length of the shorter side in pixels, or (height, width), or None for the video's own size.

    Shape: uint8 (T, H, W, 3), RGB.
    Raises: BadVideo as `read_clip`, ValueError for indices of other frames.
    """
    check_decoder(decoder)
    with _open_video(os.fspath(path)) as video:
        if video.index.damage:
            raise BadVideo(video.path, video.index.damage, REPLACE_FILE)
        n_frames = len(video.index.frame_times_s)
        shown, order = unique_frames(choose(n_frames), n_frames)
        frames = video.read(shown, partial(scaled_size, scale=scale), decoder)
    return frames if np.array_equal(order, np.arange(len(shown))) else frames[order]


def count_shown(path: str | os.PathLike[str]) -> int:
    """The number of frames that a file or folder shows; of a damaged one, those that are left.

    Raises: BadVideo for what cannot be opened.
    """
    with _open_video(os.fspath(path)) as video:
        return len(video.index.frame_times_s)


def choose_frames(
    path: str,
    sampling: Sampling,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
    folder_fps: float = 3.0,
) -> tuple[Index, np.ndarray, np.ndarray]:
    """Choose the frames that `read_clip` reads of a file or folder.

    Returns: the index of all frames, the chosen ones' places in it, and their times in the clip.

    Raises: as `read_clip`.
    """
    _check_part(start_s, end_s, folder_fps)
    with _open_video(path, folder_fps) as video:
        return video.index, *_choose(video, sampling, start_s, end_s)


def _check_part(start_s: float, end_s: float | None, folder_fps: float) -> None:
    FPS.check(folder_fps=folder_fps)
    SECOND.check(start_s=start_s)
    if end_s is not None and not end_s > start_s:
        raise ValueError(f"end_s is {end_s}; it must be above start_s, which is {start_s}")


def _choose(
    video: _Video, sampling: Sampling, start_s: float, end_s: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """The indices of the frames to read, and their times in seconds from start_s."""
    times_s = video.index.frame_times_s - video.index.frame_times_s[0]
    first_s = float(video.index.frame_times_s[0])
    video_end_s = video.index.end_s - first_s or 1 / sampling.sample_fps  # one frame may have no duration
    if start_s >= video_end_s:
        reason = f"start_s is {start_s}, the video ends at {video_end_s:.2f} s"
        raise BadVideo(video.path, reason, "check the annotation against the file")
    if video.index.damage and (end_s is None or end_s > video_end_s):
        raise BadVideo(video.path, video.index.damage, REPLACE_FILE)
    stop_s = video_end_s if end_s is None else min(end_s, video_end_s)
    chosen = _on_screen(times_s, sampling, start_s, stop_s)
    return chosen, np.maximum(times_s[chosen] - start_s, 0.0)


def _on_screen(times_s: np.ndarray, sampling: Sampling, start_s: float, stop_s: float) -> np.ndarray:
    """Indices of the frames on screen at start_s + k / sample_fps < stop_s, without a grid in memory."""
    grid = np.ceil((np.append(times_s, stop_s) - ROUNDING_S - start_s) * sampling.sample_fps)
    grid[-1] = max(grid[-1], 1)  # a part has at least one frame, however short it is
    grid = np.clip(grid, 0, grid[-1])  # first k at or after each frame
    chosen = np.flatnonzero(np.diff(grid) > 0)
    if len(chosen) > sampling.max_frames:
        chosen = chosen[np.linspace(0, len(chosen) - 1, sampling.max_frames).round().astype(int)]
    return chosen
