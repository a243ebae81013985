"""Which frames of a clip are looked at, and which of them are boundaries.

Frame numbers count from 1, as files do, and boundaries from 0. They are compared as they are, in training and
in the scores, so the model learns to report number b for boundary b.

Reference: Ziwei-Zheng/EfficientGEBD, whose frames and labels these are (`tests/golden_boundaries/`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moss_vllm.data.boundaries.annotation import BoundaryVideo

LENGTH = 100  # frames of a clip, or of a slice
STEP_S = 0.1  # between the frames of a slice
NEAR_S = 0.15  # a frame this near to a boundary is one: half of the 0.3 s in which a change is no second one
SIGMA = 1.0  # of the Gaussian, in sampled frames
SAME_RATE = 0.05  # how far the number of files may be from the annotation's


@dataclass(frozen=True)
class FrameTargets:
    """The frames of a clip, or of one slice, and what to learn at each.

    Shape: files int64 (T,), the number of the file's frame, from 1; numbers float64 (T,), the same in the
    annotation's rate; mask bool (T,), False on repeats at the end; hard, gaussian float32 (T,).

    Args:
        hard: 1 within 0.15 s of a boundary.
        gaussian: the sum of a Gaussian around each of these, at most 1.
    """

    files: np.ndarray
    numbers: np.ndarray
    mask: np.ndarray
    hard: np.ndarray
    gaussian: np.ndarray

    @property
    def cut(self) -> np.ndarray:
        """The Gaussian cut down to 0 and 1, as EfficientGEBD trains on TAPOS.

        It is `hard`, but for one negative frame between two positive ones: there two Gaussians add up to 1.
        """
        return (self.gaussian >= 1).astype(np.float32)


def choose_raters(video: BoundaryVideo, most: int) -> tuple[int, ...]:
    """The raters that agree best with the others, by index, the best first.

    The second is left out where it agrees less than the average of all. `most` is 1 or 2: 2 in training.
    """
    consistency = [rater.consistency for rater in video.raters]
    order = sorted(range(len(consistency)), key=lambda rater: -consistency[rater])
    return (order[0], *(rater for rater in order[1:most] if consistency[rater] >= video.mean_consistency))


def clip_targets(video: BoundaryVideo, rater: int, files: int, *, length: int = LENGTH) -> FrameTargets:
    """`length` frames spread evenly over a clip, first and last included.

    Args:
        files: the number of frames in the clip's file or folder; fewer than `length` are repeated.
    """
    return _label(video, rater, files, length)


def slice_targets(
    video: BoundaryVideo, rater: int, files: int, *, length: int = LENGTH
) -> list[FrameTargets]:
    """A frame every 0.1 s, in slices of `length`, as TAPOS's instances of up to 7 minutes are cut.

    The last slice is filled with the clip's last frame, masked, and may have no other frame.
    """
    whole = _label(video, rater, files, int(video.duration_s / STEP_S))
    slices = int(video.duration_s // (length * STEP_S) + 1)
    fill = slices * length - len(whole.files)
    columns = [np.pad(one, (0, fill), "edge") for one in (whole.files, whole.numbers)]
    columns += [np.pad(one, (0, fill)) for one in (whole.mask, whole.hard, whole.gaussian)]
    return [FrameTargets(*some) for some in zip(*(np.split(one, slices) for one in columns), strict=True)]


def _label(video: BoundaryVideo, rater: int, files: int, length: int) -> FrameTargets:
    """Evenly spread frames; the Gaussian is counted over all of them."""
    chosen = np.linspace(1, files, max(1, length)).astype(np.int64)
    numbers = in_annotation(chosen, files, video.frames)
    hard = hard_labels(numbers, video.raters[rater].frames, video.fps)
    return FrameTargets(chosen, numbers, np.ones(len(chosen), bool), hard, gaussian_labels(hard))


def in_annotation(chosen: np.ndarray, files: int, frames: int) -> np.ndarray:
    """Numbers of files as frame numbers of the annotation.

    They are the same, unless the frames were extracted at another rate or chosen beforehand, which shows in
    their count: then the last file is the last frame, and the others lie evenly between.

    Shape: int64 (T,) -> float64 (T,).
    """
    if not has_other_rate(files, frames) or files == 1:
        return chosen.astype(np.float64)
    return np.asarray(1 + (chosen - 1) * ((frames - 1) / (files - 1)), np.float64)


def has_other_rate(files: int, frames: int) -> bool:
    """Whether so many files cannot be the annotation's frames one by one."""
    return abs(files - frames) > SAME_RATE * frames


def hard_labels(numbers: np.ndarray, boundaries: Sequence[float], fps: float) -> np.ndarray:
    """1 for frames within 0.15 s of a boundary.

    Shape: numbers (T,) -> float32 (T,).
    """
    near = NEAR_S * fps
    places = np.asarray(boundaries, np.float64)[:, None]
    is_near = (places - near <= numbers) & (numbers <= places + near)
    return np.asarray(is_near.any(axis=0), np.float32)


def gaussian_labels(hard: np.ndarray) -> np.ndarray:
    """The sum of a Gaussian around each positive frame, at most 1.

    Shape: float32 (T,) -> float32 (T,).
    """
    places = np.flatnonzero(hard)
    distances = np.arange(len(hard))[:, None] - places
    summed = np.exp(-(distances**2) / (2 * SIGMA**2)).sum(axis=1)
    return np.asarray(np.minimum(summed, 1), np.float32)
