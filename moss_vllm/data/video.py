"""Read one clip, frames and their times, from a video file or from a folder of frames.

A file is read twice: PyAV lists the packets of the file to learn every frame's presentation time, then one
decoder delivers the frames chosen by those times. Both decoders thus share one choice. decord is only given
files it is known to count right; everything else (av1, gif, mpeg2, transport streams, edit lists, open GOPs,
lost packets) is decoded from its start by PyAV.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import av
import numpy as np

from moss_vllm.data.frames import (
    MULTIPLE_PX,
    REPLACE_FILE,
    BadVideo,
    list_images,
    read_images,
    scaled_size,
    stack_resized,
    target_size,
    unique_frames,
)
from moss_vllm.data.index import Index, decode_in_order, index_frames, native_size
from moss_vllm.screen import plain

DECODERS = ("auto", "decord", "pyav", "torchcodec")

# mkv and webm round times to 1 ms; half a step more keeps a tie from hanging on float noise.
ROUNDING_S = 1.5e-3
SAME_FRAME_S = 1e-5
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """Frames of one video and when they are shown.

    Shape: frames uint8 (T, H, W, 3), RGB; frame_times_s float64 (T,), strictly increasing, seconds from the
    first frame of the video or from `start_s`.
    """

    frames: np.ndarray
    frame_times_s: np.ndarray


def read_clip(
    path: str | os.PathLike[str],
    *,
    sample_fps: float = 2.0,
    short_side_px: int | None = 224,
    max_frames: int = 180,
    start_s: float = 0.0,
    end_s: float | None = None,
    folder_fps: float = 3.0,
    decoder: str = "auto",
) -> Clip:
    """Read the frames on screen at start_s + k / sample_fps, each frame at most once.

    More than max_frames are thinned evenly, first and last kept. The part read is [start_s, end_s) and may
    end after the video does. A frame already on screen at start_s has time 0. Frames with a negative time
    stamp (cut away by an edit list) are not shown and not counted. A folder of images is a video of
    folder_fps. Sides become multiples of MULTIPLE_PX; short_side_px=None keeps the size but for that.

    Shape: see Clip.
    Raises: BadVideo for what is wrong with the file, ValueError for an argument out of range, ImportError
    for a decoder that was named but is not installed. Damaged pictures that a decoder conceals without an
    error (overwritten bytes inside avi, mkv or webm) cannot be noticed.
    """
    path = os.fspath(path)
    if short_side_px is not None:
        _check_number("short_side_px", short_side_px, MULTIPLE_PX, 10_000)
    if decoder not in DECODERS:
        raise ValueError(f"decoder is {decoder!r}; it must be one of {', '.join(DECODERS)}")
    resized = partial(target_size, short_side_px=short_side_px)
    index, chosen, times_s, names = choose_frames(
        path,
        sample_fps=sample_fps,
        max_frames=max_frames,
        start_s=start_s,
        end_s=end_s,
        folder_fps=folder_fps,
    )
    if names:
        images = read_images(path, [names[i] for i in chosen])
        return Clip(stack_resized(path, images, len(chosen), resized), times_s)
    return Clip(_decode(path, index, chosen, resized, decoder), times_s)


def read_frames(
    path: str | os.PathLike[str],
    choose: Callable[[int], np.ndarray],
    *,
    scale: int | tuple[int, int] | None = None,
) -> np.ndarray:
    """Read the frames whose indices `choose` returns for the number of frames; any order, repeats allowed.

    `scale` is the length of the shorter side in pixels, or (height, width), or None for the video's own size.

    Shape: uint8 (T, H, W, 3), RGB.
    Raises: BadVideo as `read_clip`, ValueError for indices of other frames.
    """
    path = os.fspath(path)
    index, names = _list_frames(path, folder_fps=1.0)
    if index.damage:
        raise BadVideo(path, index.damage, REPLACE_FILE)
    shown, order = unique_frames(choose(len(index.frame_times_s)), len(index.frame_times_s))
    resized = partial(scaled_size, scale=scale)
    if names:
        images = read_images(path, [names[i] for i in shown])
        frames = stack_resized(path, images, len(shown), resized)
    else:
        frames = _decode(path, index, shown, resized, "auto")
    return frames if np.array_equal(order, np.arange(len(shown))) else frames[order]


def choose_frames(
    path: str,
    *,
    sample_fps: float,
    max_frames: int,
    start_s: float = 0.0,
    end_s: float | None = None,
    folder_fps: float = 3.0,
) -> tuple[Index, np.ndarray, np.ndarray, list[str]]:
    """What `read_clip` will show of a file or folder, without decoding a picture.

    Returns: the index of all frames, which of them are chosen, their times in the clip, and the names of a
    folder's images.

    Raises: as `read_clip`.
    """
    _check_number("sample_fps", sample_fps, 1e-3, 1000)
    _check_number("folder_fps", folder_fps, 1e-3, 1000)
    _check_number("max_frames", max_frames, 1, math.inf)
    _check_number("start_s", start_s, 0, 1e9)
    if end_s is not None and not end_s > start_s:
        raise ValueError(f"end_s is {end_s}; it must be above start_s, which is {start_s}")
    index, names = _list_frames(path, folder_fps)
    times_s = index.frame_times_s - index.frame_times_s[0]
    last_gap_s = times_s[-1] - times_s[-2] if len(times_s) > 1 else 1 / sample_fps
    video_end_s = float(times_s[-1] + last_gap_s)
    if start_s >= video_end_s:
        reason = f"start_s is {start_s}, the video ends at {video_end_s:.2f} s"
        raise BadVideo(path, reason, "check the annotation against the file")
    if index.damage and (end_s is None or end_s > video_end_s):
        raise BadVideo(path, index.damage, REPLACE_FILE)
    stop_s = video_end_s if end_s is None else min(end_s, video_end_s)
    chosen = _choose(times_s, sample_fps, max_frames, start_s, stop_s)
    return index, chosen, np.maximum(times_s[chosen] - start_s, 0.0), names


def _list_frames(path: str, folder_fps: float) -> tuple[Index, list[str]]:
    """The index of a file or folder, and the names of a folder's images."""
    if not os.path.isdir(path):
        return index_frames(path), []
    names = list_images(path)
    return Index(np.arange(len(names)) / folder_fps, "", False), names


def frame_size(path: str, short_side_px: int | None) -> tuple[int, int]:
    """Height and width of `read_clip`'s frames by the file's header; swapped where the video is turned.

    Raises: as `native_size`.
    """
    return target_size(*native_size(path), short_side_px)


def _check_number(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also false for NaN
        raise ValueError(f"{name} is {value}; it must be between {low:g} and {high:g}")


def _choose(times_s: np.ndarray, fps: float, max_frames: int, start_s: float, stop_s: float) -> np.ndarray:
    """Indices of the frames on screen at start_s + k / fps < stop_s, without a grid in memory."""
    grid = np.ceil((np.append(times_s, stop_s) - ROUNDING_S - start_s) * fps)
    grid[-1] = max(grid[-1], 1)  # one frame is always left, however short it is
    grid = np.clip(grid, 0, grid[-1])  # first k at or after each frame
    chosen = np.flatnonzero(np.diff(grid) > 0)
    if len(chosen) > max_frames:
        chosen = chosen[np.linspace(0, len(chosen) - 1, max_frames).round().astype(int)]
    return chosen


def _decode(
    path: str,
    index: Index,
    chosen: np.ndarray,
    resized: Callable[[int, int], tuple[int, int]],
    decoder: str,
) -> np.ndarray:
    """Deliver the chosen frames of a file, resized, from the decoder asked for."""
    if decoder == "torchcodec":
        return stack_resized(path, _torchcodec_frames(path, index, chosen), len(chosen), resized)
    if decoder == "decord" or (decoder == "auto" and index.suits_decord):
        try:
            return stack_resized(path, _decord_frames(path, index, chosen), len(chosen), resized)
        except BadVideo:
            raise
        except ImportError as error:  # no wheels for mac or arm, where PyAV gives the same frames
            if decoder == "decord":
                raise ImportError("decoder='decord' needs `pip install decord` (Linux, x86)") from error
        except Exception as error:  # decord raises its own kinds, RuntimeError and IndexError alike
            reason = f"decord failed ({str(error).splitlines()[0][:200]})"
            if decoder == "decord":
                raise BadVideo(path, reason, "use decoder='auto', which turns to PyAV") from error
            _log.warning("%s: %s; reading it with PyAV", plain(path), plain(reason))
    return stack_resized(path, _pyav_frames(path, index, chosen), len(chosen), resized)


def _decord_frames(path: str, index: Index, chosen: np.ndarray) -> Iterator[np.ndarray]:
    import decord

    if not index.suits_decord:
        raise RuntimeError("it returns wrong frames for this kind of file, so it was not asked")
    decord.logging.set_level(decord.logging.QUIET)
    # num_threads=0, decord's default, fails on vp9. The reader dies with this generator: kept ones deadlock.
    reader = decord.VideoReader(os.path.abspath(path), num_threads=1)
    times_s = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
    shown_s = index.frame_times_s - index.frame_times_s[0]
    if len(times_s) != len(shown_s) or not np.allclose(times_s - times_s[0], shown_s, atol=5e-3):
        raise RuntimeError(f"of {len(shown_s)} frames it counts {len(times_s)}, or gives them other times")
    for i in chosen:
        with decord.bridge._BridgeScope("native"):  # set_bridge("torch") elsewhere would change what we get
            frame = reader[int(i)].asnumpy()
        yield frame


def _pyav_frames(path: str, index: Index, chosen: np.ndarray) -> Iterator[np.ndarray]:
    n_seen, n_found, wanted_s = 0, 0, index.frame_times_s[chosen]
    reason = "the file ends"
    try:
        for frame in decode_in_order(path):
            n_seen += 1
            time_s = -1.0 if frame.time is None else frame.time
            if time_s < wanted_s[n_found] - SAME_FRAME_S:
                continue
            if time_s > wanted_s[n_found] + SAME_FRAME_S or frame.is_corrupt:
                reason = "a frame is lost or damaged"
                break
            # PyAV, unlike decord, leaves the turning to us; frame.rotation is counterclockwise.
            yield np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
            n_found += 1
            if n_found == len(wanted_s):
                return
    except av.FFmpegError as error:
        reason = str(error)
    at_s = wanted_s[n_found] - index.frame_times_s[0]
    total = len(index.frame_times_s)
    raise BadVideo(path, f"{n_seen} of {total} frames decode, then at {at_s:.2f} s: {reason}", REPLACE_FILE)


def _torchcodec_frames(path: str, index: Index, chosen: np.ndarray) -> Iterator[np.ndarray]:
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:
        text = "decoder='torchcodec' needs `pip install -e \".[torchcodec]\"` and FFmpeg's libraries"
        raise ImportError(text) from error
    try:  # approximate mode is wrong for variable frame rates
        video = VideoDecoder(path, seek_mode="exact", dimension_order="NHWC", num_ffmpeg_threads=1)
        for i, time_s in zip(chosen, index.frame_times_s[chosen], strict=True):
            frame = video.get_frame_at(int(i))  # get_frame_played_at of 0.17 gave other frames
            if abs(frame.pts_seconds - time_s) > ROUNDING_S:
                raise RuntimeError(f"asked for the frame at {time_s:.3f} s, got {frame.pts_seconds:.3f} s")
            yield frame.data.numpy()
    except (RuntimeError, ValueError, IndexError) as error:
        reason = f"torchcodec failed ({str(error).splitlines()[0][:200]})"
        raise BadVideo(path, reason, "use decoder='auto'") from error
