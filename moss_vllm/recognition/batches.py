"""Clips of a split as a classifier reads them: views with labels to train on, and views to test on."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moss_vllm.data.actions.datasets import ActionClip, ActionSplit
from moss_vllm.data.rows import Rejected
from moss_vllm.recognition.frame_choice import draw_indices, spread_indices
from moss_vllm.recognition.views import ViewSettings, evaluation_views, training_views
from moss_vllm.training.row_order import PlacedRow
from moss_vllm.video.clip import read_frames
from moss_vllm.video.frames import BadVideo
from moss_vllm.video.rand_augment import ClipRandAugment

NO_LABEL = -100  # what torch's cross entropy ignores
Example = tuple[str, Tensor, Tensor]


class ActionTrainingSet:
    """Labelled clips to train on; a `training.RowDataset`.

    A row's random numbers depend only on the seed, the row's place in the order of rows and its index. So a
    resumed run sees the same views, and so does a run with another number of processes.

    Args:
        split: what `read_action` returns.
        settings: how clips are sampled and changed.
        seed: starts all random numbers.
        read: `read_frames`, or the `read_frames` of a FrameCache.
    """

    def __init__(
        self,
        split: ActionSplit,
        settings: ViewSettings,
        *,
        seed: int,
        read: Callable[..., np.ndarray] = read_frames,
    ) -> None:
        self.clips, self.swaps, self.settings = split.clips, split.swaps, settings
        self.seed, self.read = seed, read
        self.shares: list[tuple[int, float]] = [(len(split.clips), 1.0)]
        self.augment = ClipRandAugment(settings.randaugment) if settings.randaugment else None

    def __len__(self) -> int:
        return len(self.clips)

    def name(self, index: int) -> str:
        """The file or folder of a clip."""
        return str(self.clips[index].path)

    def __getitem__(self, index: int) -> Example | Rejected:
        """The clip's id, its views and their labels.

        Shape: float32 (R, T, 3, S, S), int64 (R,).
        """
        clip, settings = self.clips[index], self.settings
        rng = np.random.default_rng([self.seed, index.place if isinstance(index, PlacedRow) else 0, index])

        def choose(n_frames: int) -> np.ndarray:
            _refuse_other_count(clip, n_frames)
            return draw_indices(
                n_frames, rng, frames=settings.frames, sampling=settings.sampling, stride=settings.stride
            )

        try:
            # RandAugment comes before scaling, as in the authors' code.
            frames = self.read(clip.path, choose, scale=None if self.augment else settings.train_scale)
        except BadVideo as error:
            return Rejected(clip.clip_id, str(error))
        views, flipped = training_views(frames, settings, rng, self.augment)
        mirrored = self.swaps.get(clip.label, clip.label)
        return clip.clip_id, views, torch.from_numpy(np.where(flipped, mirrored, clip.label))

    def collate(self, rows: Sequence[Example | Rejected]) -> dict[str, Any]:
        """The usable rows' views, one after the other; `count` is their number, `read` that of their frames.

        Shape: video (B * R, T, 3, S, S), labels (B * R,).
        """
        rejected = [row for row in rows if isinstance(row, Rejected)]
        used = [row for row in rows if not isinstance(row, Rejected)]
        if used:
            video = torch.cat([views for _, views, _ in used])
            labels = torch.cat([labels for _, _, labels in used])
        else:
            # A placeholder: every process runs the model in every step, or the others wait for it forever.
            size = self.settings.size_px
            video = torch.zeros(1, self.settings.frames, 3, size, size)
            labels = torch.full((1,), NO_LABEL)
        count = len(labels) if used else 0
        return {
            "video": video,
            "labels": labels,
            "row_ids": [row_id for row_id, _, _ in used],
            "rejected": rejected,
            "count": count,
            "read": count * self.settings.frames,
        }


class ActionTestSet:
    """Labelled clips to test on, each in the same views every time.

    Args: as in `ActionTrainingSet`.
    """

    def __init__(
        self, split: ActionSplit, settings: ViewSettings, *, read: Callable[..., np.ndarray] = read_frames
    ) -> None:
        self.clips, self.settings, self.read = split.clips, settings, read

    def __len__(self) -> int:
        return len(self.clips)

    def name(self, index: int) -> str:
        """The file or folder of a clip."""
        return str(self.clips[index].path)

    def __getitem__(self, index: int) -> tuple[str, Tensor, int] | Rejected:
        """The clip's id, its views and its label.

        Shape: float32 (clips * crops, T, 3, S, S).
        """
        clip, settings = self.clips[index], self.settings

        def choose(n_frames: int) -> np.ndarray:
            _refuse_other_count(clip, n_frames)
            return spread_indices(
                n_frames,
                frames=settings.frames,
                clips=settings.clips,
                sampling=settings.sampling,
                stride=settings.stride,
            ).ravel()

        try:
            frames = self.read(clip.path, choose, scale=settings.test_scale)
        except BadVideo as error:
            return Rejected(clip.clip_id, str(error))
        return clip.clip_id, evaluation_views(frames, settings), clip.label


def _refuse_other_count(clip: ActionClip, n_frames: int) -> None:
    """Raise BadVideo for a folder that holds more or fewer images than its line in the list says."""
    if clip.frames not in (None, n_frames):
        reason = f"{n_frames:,} frames are there, its line in the list says {clip.frames:,}"
        remedy = "keep only the clip's own frames in the folder, or correct the line"
        raise BadVideo(clip.path, reason, remedy)
