"""Testing a detector: a video's windows are decoded and merged, and its detections stored at once.

videos of this process -> new frames of each window (workers) -> whole windows -> model -> detections of a
window -> soft-NMS over the video -> a line per video, stored
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moss_vllm.data.detection.datasets import DetectionSplit, DetectionVideo
from moss_vllm.data.rows import Rejected
from moss_vllm.detection.decoding import DecodeSettings, decode_windows, merge_windows
from moss_vllm.detection.pixels import PixelSettings, fill_up, join_frames, read_new_frames
from moss_vllm.detection.points import pyramid_points
from moss_vllm.detection.predictions import Detections
from moss_vllm.detection.schema import DETECTION_SCHEMA, as_answer
from moss_vllm.detection.windows import VideoWindow, WindowSettings, count_test_windows
from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.line_store import ANSWERS, AnswerFile, Shard, read_answers
from moss_vllm.runtime.progress import show_progress
from moss_vllm.runtime.provenance import describe_environment, fingerprint
from moss_vllm.runtime.screen import say
from moss_vllm.training.loop import Objective
from moss_vllm.training.reading import Batches
from moss_vllm.video.clip import read_frames
from moss_vllm.video.file_state import describe_file, refuse_others
from moss_vllm.video.frames import BadVideo

NewFrames = tuple[VideoWindow, Tensor]
# A window of a video by its number, and its detections, or why its frames cannot be read.
Tested = tuple[DetectionVideo, int, Detections | Rejected]


class DetectionTestSet:
    """The windows of videos, in order, with their new frames.

    Args:
        videos, windows, pixels, read: as in `read_new_frames`.
    """

    def __init__(
        self,
        videos: Sequence[DetectionVideo],
        windows: WindowSettings,
        pixels: PixelSettings,
        *,
        read: Callable[..., np.ndarray] = read_frames,
    ) -> None:
        self.windows, self.pixels, self.read = windows, pixels, read
        self.counts = {video.video_id: count_test_windows(video, windows) for video in videos}
        self.rows = [(video, number) for video in videos for number in range(self.counts[video.video_id])]

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """The file or folder of a window's video."""
        return self.rows[index][0].path

    def __getitem__(self, index: int) -> NewFrames | Rejected:
        """A window and its new frames; Rejected for a video that cannot be read."""
        video, number = self.rows[index]
        try:
            window, new = read_new_frames(video, number, self.windows, self.pixels, read=self.read)
            return window, torch.from_numpy(new)  # which goes through shared memory, where an array does not
        except BadVideo as error:
            return Rejected(video.video_id, str(error))

    def batches(self, size: int) -> list[list[int]]:
        """Rows of up to `size` windows, each batch of one video.

        So a video's detections do not depend on what is tested beside it, and a test that was killed and one
        by several processes find the same.
        """
        ends = np.cumsum([0, *self.counts.values()]).tolist()
        return [
            list(range(first, min(first + size, stop)))
            for start, stop in pairwise(ends)
            for first in range(start, stop, size)
        ]


def detect_videos(
    model: nn.Module,
    split: DetectionSplit,
    windows: WindowSettings,
    pixels: PixelSettings,
    folder: Path,
    *,
    header: Mapping[str, Any],
    decode: DecodeSettings | None = None,
    batch_size: int = 1,
    workers: int = 2,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    shard: Shard | None = None,
    read: Callable[..., np.ndarray] | None = None,
    quiet: bool = False,
    overwrite: bool = False,
) -> int:
    """Test on the videos that `folder` has no line for; the same call resumes a test that was killed.

    Args:
        model: in evaluation mode.
        header: what is tested. A store of another test, of other weights or of another dtype is refused; with
            `model_settings` (`LoadedDetector.settings_digest`), a moved checkpoint is no other test.
        batch_size: windows of a video at once.
        shard: which videos are this process's; processes do not wait for each other.
        read: as in `read_window`.

    Returns: the number of videos that other processes have not tested yet.

    Raises:
        ValueError: the store belongs to another test, or outputs that are not finite.
        RunStopped: no memory for a batch, or a worker that hangs.
    """
    shard, decode = shard or Shard(), decode or DecodeSettings()
    full = describe_test(model, split, windows, pixels, decode, dtype)
    full |= json.loads(json.dumps(dict(header)))
    full["environment"] = describe_environment(model)
    earlier = read_answers(folder / ANSWERS, DETECTION_SCHEMA, full) if not overwrite else None
    refuse_others({video.video_id: video.path for video in split.videos}, earlier.files if earlier else {})
    done = {*earlier.answers, *earlier.failed} if earlier else set()
    own = split.videos[shard.rank :: shard.processes]
    rest = [video for video in own if video.video_id not in done]
    dataset = DetectionTestSet(rest, windows, pixels, read=read or read_frames)
    batches = Batches(
        dataset,
        list,
        name=dataset.name,
        workers=workers,
        batch_sampler=dataset.batches(batch_size),
    )
    autocast = Objective(model, dtype).autocast
    # What interrupts a line ends the workers here: the generators would be closed with the process, too late.
    with AnswerFile(folder / ANSWERS, full, shard, overwrite=overwrite) as file, batches:
        tested = _test(model, dataset, batches, decode, torch.device(device), autocast)
        tested = _named_errors(tested, batch_size)
        shown = tested if quiet else show_progress(tested, len(dataset), "windows")
        for line in _by_video(shown, dataset.counts, decode):
            file.add(line)
        file.check()
    stored = read_answers(folder / ANSWERS, DETECTION_SCHEMA, full)
    return sum(video.video_id not in {*stored.answers, *stored.failed} for video in split.videos)


def describe_test(
    model: nn.Module,
    split: DetectionSplit,
    windows: WindowSettings,
    pixels: PixelSettings,
    decode: DecodeSettings | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """What decides detections, beside the model's settings; for json."""
    decode = decode or DecodeSettings()
    places = {name: getattr(windows, name) for name in ("steps", "stride", "test_overlap")}
    videos = [[video.video_id, video.duration_s, video.frames] for video in split.videos]
    # The loss's divisor decides no detection, and each process counts its own.
    weights = {name: one for name, one in model.state_dict().items() if not name.startswith("loss.")}
    return {
        "benchmark": split.dataset,
        "protocol": {"name": "windows", **places, "size_px": pixels.size_px, **asdict(decode)},
        "questions": len(split.videos),
        "data": hashlib.sha256(json.dumps([split.classes, videos]).encode()).hexdigest()[:16],
        "weights": fingerprint(weights),
        "dtype": str(dtype or torch.float32),
    }


@torch.inference_mode()
def _test(
    model: nn.Module,
    dataset: DetectionTestSet,
    batches: Batches,
    decode: DecodeSettings,
    device: torch.device,
    autocast: Callable[[torch.device], AbstractContextManager[Any]],
) -> Iterator[Tested]:
    """Every window's detections."""
    rows, frames, failed = iter(dataset.rows), None, None
    for batch in batches:
        read: list[tuple[DetectionVideo, int, VideoWindow, Tensor]] = []
        for row in batch:
            video, number = next(rows)
            if number == 0:
                frames, failed = None, None
            failed = failed or (row if isinstance(row, Rejected) else None)
            if failed:
                yield video, number, failed
                continue
            window, new = row
            frames = join_frames(frames, window, new.to(device))
            read.append((video, number, window, fill_up(frames, window)))
        if not read:
            continue
        clips = torch.stack([clip for *_, clip in read])
        mask = torch.from_numpy(np.stack([window.mask for _, _, window, _ in read])).to(device)
        with autocast(device):
            levels = model(clips, mask)
        points = pyramid_points([level_mask.shape[1] for *_, level_mask in levels], device)
        places = [(video, window.start_frame) for video, _, window, _ in read]
        decoded = decode_windows(levels, points, places, decode, stride=dataset.windows.stride)
        for (video, number, _, _), detections in zip(read, decoded, strict=True):
            yield video, number, detections


def _by_video(
    tested: Iterable[Tested], counts: Mapping[str, int], decode: DecodeSettings
) -> Iterator[dict[str, Any]]:
    """A line of the store for each video, once the last of its `counts` windows is there."""
    windows: list[Detections] = []
    for video, number, found in tested:
        if number == 0:  # not after the last: of a batch, windows that cannot be read come first
            windows = []
        if isinstance(found, Detections):
            windows.append(found)
        if number + 1 < counts[video.video_id]:
            continue
        if isinstance(found, Rejected):  # if one window is, all after it are
            say(f"video {video.video_id} not tested: {found.reason}", file=sys.stderr, flush=True)
            yield {"video_id": video.video_id, "failed": found.reason, "answers": []}
        else:
            answer = as_answer(video.video_id, merge_windows(windows, decode))
            line = {"video_id": video.video_id, "path": os.path.abspath(video.path), "answers": [answer]}
            yield line | ({"file": state} if (state := describe_file(video.path)) else {})


def _named_errors(tested: Iterator[Tested], batch_size: int) -> Iterator[Tested]:
    """The same windows; lack of memory ends them with RunStopped, which names a remedy."""
    try:
        yield from tested
    except torch.OutOfMemoryError as error:
        remedy = "the videos tested so far are kept, the same command tests the others"
        told = f"no memory for {batch_size} windows at once; lower --batch-size; {remedy}"
        raise RunStopped(told) from error
