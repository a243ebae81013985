"""Clips of a split as frames and labels: one at a time for a test, in batches for training.

A clip of Kinetics-GEBD is one row of frames; an instance of TAPOS is cut in slices (`targets.py`). Training
reads a clip once for each rater whose labels it learns.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from moss_vllm.boundaries.targets import (
    LENGTH,
    STEP_S,
    FrameTargets,
    choose_raters,
    clip_targets,
    has_other_rate,
    slice_targets,
)
from moss_vllm.data.annotated_videos import Notes
from moss_vllm.data.boundaries.annotation import BoundaryVideo
from moss_vllm.data.boundaries.datasets import BoundarySplit
from moss_vllm.data.boundaries.on_disk import count_files
from moss_vllm.data.rows import Rejected
from moss_vllm.runtime.progress import show_progress
from moss_vllm.runtime.ranges import FROM_ONE
from moss_vllm.training.row_order import PlacedRow
from moss_vllm.video.clip import read_frames
from moss_vllm.video.frames import BadVideo

LabelKind = Literal["gaussian", "cut", "hard"]  # columns of `FrameTargets`
COUNTING_THREADS = 16  # they wait for the disk


@dataclass(frozen=True)
class ClipSettings:
    """How a clip is shown to the model; the defaults are BasicGEBD's on Kinetics-GEBD.

    Args:
        frames: of a clip, or of a slice, T.
        size_px: side of a frame, to which it is resized whole, whatever its shape.
        sliced: take a frame every 0.1 s, in slices, instead of T over the whole clip.

    Raises: ValueError for a number out of range.
    """

    frames: int = LENGTH
    size_px: int = 224
    sliced: bool = False

    def __post_init__(self) -> None:
        FROM_ONE.check(frames=self.frames, size_px=self.size_px)


@dataclass(frozen=True)
class LabelSettings:
    """What is learned of a clip; the defaults are BasicGEBD's on Kinetics-GEBD.

    Args:
        raters: the most that a clip is learned from, see `choose_raters`.
        kind: "gaussian", "cut" to 0 and 1, or "hard", see `FrameTargets`.
        mask: leave out the frames that fill up a slice; EfficientGEBD learns them as no boundary.
    """

    raters: int = 2
    kind: LabelKind = "gaussian"
    mask: bool = True


class ClipSlice(NamedTuple):
    """A clip as the model sees it, or one slice of it.

    Shape: pixels uint8 (T, 3, S, S); numbers float64 (T,), frames of the annotation, from 1; mask bool (T,),
    False on repeats at the end.
    """

    pixels: Tensor
    numbers: np.ndarray
    mask: np.ndarray


class Example(NamedTuple):
    """A clip, or a slice of it, with one rater's labels.

    Shape: pixels uint8 (T, 3, S, S); labels float32 (T,); mask bool (T,), True on frames that count.
    """

    video_id: str
    pixels: Tensor
    labels: np.ndarray
    mask: np.ndarray


def count_slices(video: BoundaryVideo, clips: ClipSettings) -> int:
    """The slices that have a frame of their own; 1 for a clip that is not cut.

    EfficientGEBD has one more where the last would be empty: at 10.0 s, for example.
    """
    if not clips.sliced:
        return 1
    return -(-max(1, int(video.duration_s / STEP_S)) // clips.frames)


def read_slice(
    video: BoundaryVideo,
    number: int,
    clips: ClipSettings,
    *,
    read: Callable[..., np.ndarray] = read_frames,
) -> ClipSlice:
    """A slice of a clip by its number, or the whole clip.

    Args:
        read: `read_frames`, or the `read_frames` of a FrameCache.

    Raises: BadVideo, also for a folder whose frames have a gap.
    """
    targets, pixels = _read_labelled(video, 0, number, clips, read)
    return ClipSlice(pixels, targets.numbers, targets.mask)


def _read_labelled(
    video: BoundaryVideo, rater: int, number: int, clips: ClipSettings, read: Callable[..., np.ndarray]
) -> tuple[FrameTargets, Tensor]:
    """The targets of a slice for the number of frames that the file has, and its pixels."""
    if os.path.isdir(video.path):
        count_files(video.path)  # which refuses a gap: the k-th file would not be the k-th frame
    placed: list[FrameTargets] = []

    def choose(files: int) -> np.ndarray:
        if clips.sliced:
            placed[:] = [slice_targets(video, rater, files, length=clips.frames)[number]]
        else:
            placed[:] = [clip_targets(video, rater, files, length=clips.frames)]
        return placed[0].files - 1

    frames = read(video.path, choose, scale=(clips.size_px, clips.size_px))
    return placed[0], torch.from_numpy(frames).permute(0, 3, 1, 2)


class BoundaryTrainingSet:
    """Each clip or slice once for each rater that is learned from; a `training.RowDataset`.

    Whether a clip is mirrored depends on the seed, the row's place in the order of rows and its index alone.
    So a resumed run sees the same clips, and so does a run with another number of processes.

    Args:
        split: what `read_boundaries` returns.
        clips: how clips are shown.
        labels: what of them is learned.
        mirror: mirror every other clip on average, all its frames alike.
        seed: starts all random numbers.
        read: as in `read_slice`.
    """

    def __init__(
        self,
        split: BoundarySplit,
        clips: ClipSettings,
        labels: LabelSettings,
        *,
        mirror: bool,
        seed: int,
        read: Callable[..., np.ndarray] = read_frames,
    ) -> None:
        self.clips, self.labels, self.mirror = clips, labels, mirror
        self.seed, self.read = seed, read
        self.rows = [
            (video, rater, number)
            for video in split.videos
            for rater in choose_raters(video, labels.raters)
            for number in range(count_slices(video, clips))
        ]
        self.shares: list[tuple[int, float]] = [(len(self.rows), 1.0)]

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """The file or folder of a row's clip."""
        return self.rows[index][0].path

    def __getitem__(self, index: int) -> Example | Rejected:
        """A clip or slice; Rejected for one that cannot be read."""
        video, rater, number = self.rows[index]
        seed = [self.seed, index.place if isinstance(index, PlacedRow) else 0, index]
        try:
            targets, pixels = _read_labelled(video, rater, number, self.clips, self.read)
        except BadVideo as error:
            return Rejected(video.video_id, str(error))
        if self.mirror and np.random.default_rng(seed).random() < 0.5:
            pixels = pixels.flip(-1)
        mask = targets.mask if self.labels.mask else np.ones_like(targets.mask)
        return Example(video.video_id, pixels, getattr(targets, self.labels.kind), mask)

    def collate(self, rows: Sequence[Example | Rejected]) -> dict[str, Any]:
        """The usable rows; `count` is the number of frames that the loss sums over, `read` that of all.

        The mask of a batch without any is False everywhere.

        Shape: clips uint8 (B, T, 3, S, S); labels float32 (B, T); mask bool (B, T).
        """
        used = [row for row in rows if not isinstance(row, Rejected)]
        if used:
            clips = torch.stack([row.pixels for row in used])
            labels, mask = (torch.from_numpy(np.stack([row[at] for row in used])) for at in (2, 3))
        else:
            # A placeholder: every process runs the model in every step, or the others wait for it forever.
            frames, size = self.clips.frames, self.clips.size_px
            clips = torch.zeros(1, frames, 3, size, size, dtype=torch.uint8)
            labels, mask = torch.zeros(1, frames), torch.zeros(1, frames, dtype=torch.bool)
        return {
            "clips": clips,
            "labels": labels,
            "mask": mask,
            "row_ids": [row.video_id for row in used],
            "rejected": [row for row in rows if isinstance(row, Rejected)],
            "count": int(mask.sum()),
            "read": mask.numel() if used else 0,
        }


def note_other_counts(split: BoundarySplit) -> tuple[str, ...]:
    """Count the frames of every clip; a sentence for each kind that is not as annotated, with examples.

    Clips of another frame rate are used, their frames placed by time. Those that cannot be counted fail when
    they are read, under the run's limit of bad videos.
    """
    notes = Notes()
    with ThreadPoolExecutor(COUNTING_THREADS) as pool:
        counted = pool.map(_count, [video.path for video in split.videos])
        shown = show_progress(counted, len(split.videos), f"clips of {split.split} counted")
        for video, found in zip(split.videos, shown, strict=True):
            if isinstance(found, BadVideo):
                notes.count("clips whose frames cannot be counted", str(found))
            elif has_other_rate(found, video.frames):
                told = f"{video.video_id} {found:,} of {video.frames:,}"
                notes.count("clips with over 5 % more or fewer frames than annotated, placed by time", told)
    return notes.lines()


def _count(path: str) -> int | BadVideo:
    try:
        return count_files(path)
    except BadVideo as error:
        return error
