"""Videos of a split as a detector trains on them: a random window of each, with its actions."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from moss_vllm.data.detection.datasets import DetectionSplit
from moss_vllm.data.rows import Rejected
from moss_vllm.detection.augment import change_frames
from moss_vllm.detection.pixels import PixelSettings, cut_square, fill_up, read_placed
from moss_vllm.detection.points import count_positives
from moss_vllm.detection.windows import VideoWindow, WindowSettings, draw_window
from moss_vllm.training.row_order import PlacedRow
from moss_vllm.video.clip import read_frames
from moss_vllm.video.frames import BadVideo

NO_ACTION = -1  # class of the rows that fill up a window's list of actions


class Example(NamedTuple):
    """A window of a video. Shape: clip uint8 (T, 3, S, S)."""

    video_id: str
    window: VideoWindow
    clip: Tensor


class DetectionTrainingSet:
    """A window of each video to train on; a `training.RowDataset`.

    A row's random numbers depend only on the seed, the row's place in the order of rows and its index. So a
    resumed run sees the same windows, and so does a run with another number of processes.

    Args:
        split: what `read_detection` returns.
        windows: how windows are drawn.
        pixels: the sizes of their frames.
        seed: starts all random numbers.
        read: `read_frames`, or the `read_frames` of a FrameCache.
        levels: of the detector's pyramid.
    """

    def __init__(
        self,
        split: DetectionSplit,
        windows: WindowSettings,
        pixels: PixelSettings,
        *,
        seed: int,
        read: Callable[..., np.ndarray] = read_frames,
        levels: int = 6,
    ) -> None:
        self.videos, self.classes = split.videos, len(split.classes)
        self.windows, self.pixels, self.levels = windows, pixels, levels
        self.seed, self.read = seed, read
        self.shares: list[tuple[int, float]] = [(len(split.videos), 1.0)]

    def __len__(self) -> int:
        return len(self.videos)

    def name(self, index: int) -> str:
        """The file or folder of a video."""
        return self.videos[index].path

    def __getitem__(self, index: int) -> Example | Rejected:
        """A random window; padded steps repeat its last frame as that was changed."""
        video = self.videos[index]
        seed = [self.seed, index.place if isinstance(index, PlacedRow) else 0, index]

        def place(n_frames: int) -> VideoWindow:  # a reader may ask twice, and gets the same window
            return draw_window(video, n_frames, self.windows, np.random.default_rng([*seed, 0]))

        try:
            short_side_px = self.pixels.train_short_side_px
            window, frames = read_placed(video, place, short_side_px=short_side_px, read=self.read)
        except BadVideo as error:
            return Rejected(video.video_id, str(error))
        size_px, rng = self.pixels.size_px, np.random.default_rng([*seed, 1])
        changed = change_frames(frames, size_px, rng) if self.pixels.augment else cut_square(frames, size_px)
        return Example(video.video_id, window, fill_up(changed, window))

    def collate(self, rows: Sequence[Example | Rejected]) -> dict[str, Any]:
        """The usable windows; `count` is the number of their positive points, `read` that of their frames.

        The mask of a batch without any is False everywhere.

        Shape: clips uint8 (B, T, 3, S, S); mask bool (B, T); segments float32 (B, N, 2) and labels int64
        (B, N), filled up with NO_ACTION to the most actions of a window.
        """
        used = [row for row in rows if not isinstance(row, Rejected)]
        if used:
            clips = torch.stack([row.clip for row in used])
            mask = torch.from_numpy(np.stack([row.window.mask for row in used]))
        else:
            # A placeholder: every process runs the model in every step, or the others wait for it forever.
            size = self.pixels.size_px
            clips = torch.zeros(1, self.windows.steps, 3, size, size, dtype=torch.uint8)
            mask = torch.zeros(1, self.windows.steps, dtype=torch.bool)
        actions = [
            (torch.from_numpy(row.window.segments), torch.from_numpy(row.window.labels)) for row in used
        ]
        segments = torch.zeros(len(clips), max((len(kinds) for _, kinds in actions), default=0), 2)
        labels = torch.full(segments.shape[:2], NO_ACTION)
        for place, (times, kinds) in enumerate(actions):
            segments[place, : len(kinds)], labels[place, : len(kinds)] = times, kinds
        positives = [
            count_positives(row_mask, times, kinds, classes=self.classes, levels=self.levels)
            for row_mask, (times, kinds) in zip(mask, actions, strict=False)
        ]
        return {
            "clips": clips,
            "mask": mask,
            "segments": segments,
            "labels": labels,
            "row_ids": [row.video_id for row in used],
            "rejected": [row for row in rows if isinstance(row, Rejected)],
            "count": sum(positives),
            "read": sum(row.window.valid for row in used),
        }
