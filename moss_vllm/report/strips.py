"""Small frames of videos for a page, as JPEG in base64: videos of wrong answers first, the tasks in turn."""

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import numpy as np
from PIL import Image

from moss_vllm.report.answer_files import Asked
from moss_vllm.report.html import Html, tag
from moss_vllm.runtime.progress import show_progress
from moss_vllm.video.clip import Clip, Sampling, read_clip
from moss_vllm.video.frames import BadVideo, list_images

MOST_FRAMES = 8
STRIP_FPS = 1.0  # of a test's videos; of these MOST_FRAMES are kept, spread evenly
SHORT_SIDE_PX = 112
QUALITY = 60
PICTURE_FRAMES, PICTURE_SIDE_PX = 9, 168  # of a video by itself
MOST_VIDEOS, MOST_BYTES = 200, 10_000_000  # without --strips
# {"times": seconds, "frames": JPEGs as base64, "size": [width, height]}, or {"failed": reason}
Strip = dict[str, Any]


def limits(strips: int | None) -> tuple[int, int | None]:
    """The most videos with frames, and the most bytes of frames, for the value of --strips.

    Raises: ValueError for a negative number.
    """
    if strips is None:
        return MOST_VIDEOS, MOST_BYTES
    if strips < 0:
        raise ValueError(f"--strips {strips} is negative; 0 makes a page without frames")
    return strips, None


def choose_videos(asked: Sequence[Asked]) -> list[str]:
    """Videos with an answer that is not right before the others; within both, the tasks take turns."""
    chosen: dict[str, None] = {}
    for right in (False, True):
        of_tasks: dict[str, dict[str, None]] = {}
        for one in asked:
            if (one.outcome == "right") == right and one.video_id not in chosen:
                of_tasks.setdefault(one.task, {})[one.video_id] = None
        for turn in zip_longest(*of_tasks.values()):
            chosen |= dict.fromkeys(video for video in turn if video is not None)
    return list(chosen)


def read_strips(
    paths: Mapping[str, str],
    sample_fps: float,
    most_bytes: int | None = None,
    read: Callable[..., Clip] = read_clip,
    *,
    durations_s: Mapping[str, float] | None = None,
) -> dict[str, Strip]:
    """A strip of each video, in order, until `most_bytes` are full.

    `durations_s` has the length of videos that may be folders of frames, or shorter than a strip at
    `sample_fps`.
    """
    strips: dict[str, Strip] = {}
    used = 0
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "strip")
    try:
        made = pool.map(
            lambda video: _read_strip(paths[video], sample_fps, read, (durations_s or {}).get(video)), paths
        )
        for video, strip in zip(paths, show_progress(made, len(paths), "videos"), strict=False):
            used += sum(map(len, strip.get("frames", ())))
            if most_bytes is not None and used > most_bytes:
                break
            strips[video] = strip
    finally:
        pool.shutdown(cancel_futures=True)
    return strips


def draw_frames(video_id: str, strip: Strip | None) -> Html:
    """The frames above a video's timeline, or why they cannot be read; empty without a strip."""
    if strip is None:
        return Html("")
    if "frames" not in strip:
        return tag("p", f"its frames cannot be read: {strip['failed']}", class_="gone")
    width, height = strip["size"]
    images = (
        tag(
            "img",
            src=f"data:image/jpeg;base64,{frame}",
            alt=f"{video_id} at {time:.1f} s",
            title=f"{time:.1f} s",
            width=width,
            height=height,
            loading="lazy",
        )
        for frame, time in zip(strip["frames"], strip["times"], strict=True)
    )
    return tag("div", *images, class_="frames")


def read_spread(path: str, duration_s: float) -> tuple[Clip | None, str]:
    """Frames for a picture, spread over a video or a folder of frames; or none, and why."""
    if not path:
        return None, "; without frames, as the video is not there"
    try:
        sampling = Sampling(PICTURE_FRAMES / max(duration_s, 1.0), PICTURE_SIDE_PX, PICTURE_FRAMES)
        return read_clip(path, sampling, **_rate_of(path, duration_s)), ""
    except (BadVideo, OSError) as error:
        return None, f"; without frames: {error}"


def _rate_of(path: str, duration_s: float) -> dict[str, Any]:
    """For a folder, the frames a second that make it as long as it should be."""
    if not os.path.isdir(path):
        return {}
    return {"folder_fps": min(max(len(list_images(path)) / max(duration_s, 1e-3), 1e-3), 1000.0)}


def _read_strip(
    path: str, sample_fps: float, read: Callable[..., Clip], duration_s: float | None = None
) -> Strip:
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        return {"failed": f"{path} is a pipe or a device, no video"}  # opening one may block for ever
    try:
        rate = {} if duration_s is None else _rate_of(path, duration_s)
        sample_fps = max(sample_fps, MOST_FRAMES / max(duration_s or np.inf, 1.0))
        clip = read(path, sampling=Sampling(sample_fps, SHORT_SIDE_PX, MOST_FRAMES), **rate)
    except Exception as error:  # one bad video must not cost the page; the page names it
        return {"failed": str(error) or type(error).__name__}
    height, width = clip.frames.shape[1:3]
    times = [round(float(time), 2) for time in clip.frame_times_s]
    return {"times": times, "frames": [_jpeg(frame) for frame in clip.frames], "size": [width, height]}


def _jpeg(frame: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(file.getvalue()).decode()
