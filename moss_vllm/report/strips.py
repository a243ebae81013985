"""Small frames of videos for a page, as JPEG in base64: videos of wrong answers first, the tasks in turn."""

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

from PIL import Image

from moss_vllm.report.answer_files import Asked
from moss_vllm.runtime.progress import show_progress
from moss_vllm.video.clip import Clip, Sampling, read_clip

MOST_FRAMES = 8
SHORT_SIDE_PX = 112
QUALITY = 60
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
) -> dict[str, Strip]:
    """A strip of each video, in order, until `most_bytes` are full."""
    strips: dict[str, Strip] = {}
    used = 0
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "strip")
    try:
        made = pool.map(lambda path: _read_strip(path, sample_fps, read), paths.values())
        for video, strip in zip(paths, show_progress(made, len(paths), "videos"), strict=False):
            used += sum(map(len, strip.get("frames", ())))
            if most_bytes is not None and used > most_bytes:
                break
            strips[video] = strip
    finally:
        pool.shutdown(cancel_futures=True)
    return strips


def _read_strip(path: str, sample_fps: float, read: Callable[..., Clip]) -> Strip:
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        return {"failed": f"{path} is a pipe or a device, no video"}  # opening one may block for ever
    try:
        clip = read(path, sampling=Sampling(sample_fps, SHORT_SIDE_PX, MOST_FRAMES))
    except Exception as error:  # one bad video must not cost the page; the page names it
        return {"failed": str(error) or type(error).__name__}
    height, width = clip.frames.shape[1:3]
    times = [round(float(time), 2) for time in clip.frame_times_s]
    return {"times": times, "frames": [_jpeg(frame) for frame in clip.frames], "size": [width, height]}


def _jpeg(frame: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(file.getvalue()).decode()
