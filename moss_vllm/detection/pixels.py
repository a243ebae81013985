"""The frames of windows: each of them decoded once, scaled, and for a test cut to the square.

Windows of a test overlap by half. So a window reads only the frames that the one before it does not have,
and takes the others from that one: two windows of a video are in memory, however long the video is.

Reference: Sec. C.1; AdaTAD (Liu et al., 2024c) for the sizes. It scales bilinearly, the reader bicubically.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moss_vllm.data.detection.datasets import DetectionVideo
from moss_vllm.detection.windows import VideoWindow, WindowSettings, windows_to_test
from moss_vllm.runtime.ranges import FROM_ONE
from moss_vllm.video import clip
from moss_vllm.video.frames import BadVideo

MOST_OFF = 0.1  # of the annotated frames, by which a file's count may differ from them


@dataclass(frozen=True)
class PixelSettings:
    """The sizes of frames; the defaults are AdaTAD's, the paper's are 224 and 256.

    Args:
        size_px: side of the square that the model sees.
        train_short_side_px: shorter side of the frames that training cuts its squares from.
        augment: training changes frames as in `change_frames`; without, it sees them as a test does.

    Raises: ValueError for a number out of range.
    """

    size_px: int = 160
    train_short_side_px: int = 182
    augment: bool = True

    def __post_init__(self) -> None:
        FROM_ONE.check(size_px=self.size_px)
        if self.train_short_side_px < self.size_px:
            raise ValueError(
                f"train_short_side_px is {self.train_short_side_px}; it must be at least size_px, "
                f"{self.size_px}"
            )


def read_window(
    video: DetectionVideo,
    window: VideoWindow,
    *,
    short_side_px: int,
    read: Callable[..., np.ndarray] = clip.read_frames,
) -> np.ndarray:
    """The frames of a window's real steps; `fill_up` repeats the last one.

    Args:
        read: `read_frames`, or the `read_frames` of a FrameCache.

    Shape: uint8 (window.valid, H, W, 3), RGB.
    Raises: BadVideo, also for a file that is not the annotated one by its number of frames.
    """
    return read_placed(video, lambda n_frames: window, short_side_px=short_side_px, read=read)[1]


def read_placed(
    video: DetectionVideo,
    place: Callable[[int], VideoWindow],
    *,
    short_side_px: int,
    read: Callable[..., np.ndarray] = clip.read_frames,
) -> tuple[VideoWindow, np.ndarray]:
    """The window that `place` gives for the file's number of frames, and its frames as in `read_window`.

    The file is opened once, although `place` has to know its number of frames.
    """
    placed: list[VideoWindow] = []

    def choose(n_frames: int) -> np.ndarray:
        _refuse_other_count(video, n_frames)
        placed[:] = [place(n_frames)]
        return placed[0].frame_indices[: placed[0].valid]

    frames = read(video.path, choose, scale=short_side_px)
    return placed[0], frames


def read_new_frames(
    video: DetectionVideo,
    number: int,
    windows: WindowSettings,
    pixels: PixelSettings,
    *,
    read: Callable[..., np.ndarray] = clip.read_frames,
) -> tuple[VideoWindow, np.ndarray]:
    """A window of the test by its number, and its frames that the window before it does not have.

    Shape: uint8 (new frames, S, S, 3), RGB; `join_frames` puts the earlier ones before them.
    Raises: as `read_window`.
    """
    placed: list[VideoWindow] = []
    new = np.zeros(0, np.int64)

    def choose(n_frames: int) -> np.ndarray:
        nonlocal new
        _refuse_other_count(video, n_frames)
        placed[:] = windows_to_test(video, n_frames, windows)[max(0, number - 1) : number + 1]
        shown = placed[-1].frame_indices[: placed[-1].valid]
        new = shown if number == 0 else shown[shown > placed[0].frame_indices[-1]]
        return new if len(new) else shown[-1:]  # the last window may be there twice

    frames = read(video.path, choose, scale=pixels.size_px)[: len(new)]
    return placed[-1], cut_square(frames, pixels.size_px)


def cut_square(frames: np.ndarray, size_px: int) -> np.ndarray:
    """The square in the middle.

    Shape: (T, H, W, 3) -> (T, S, S, 3), contiguous.
    """
    top, left = ((side - size_px) // 2 for side in frames.shape[1:3])
    return np.ascontiguousarray(frames[:, top : top + size_px, left : left + size_px])


def join_frames(earlier: Tensor | None, window: VideoWindow, new: Tensor) -> Tensor:
    """All frames of a window's real steps, from those of the window before it and its new ones.

    Shape: uint8 (window.valid, S, S, 3), on the device of `new`.
    """
    if earlier is None:
        return new
    return torch.cat([earlier[len(earlier) + len(new) - window.valid :], new])


def fill_up(frames: np.ndarray | Tensor, window: VideoWindow) -> Tensor:
    """A window's clip, its last frame repeated up to T.

    Shape: uint8 (window.valid, H, W, 3) -> (T, 3, H, W).
    """
    real = torch.as_tensor(frames).permute(0, 3, 1, 2)
    places = torch.arange(len(window.frame_indices), device=real.device)
    return real[places.clamp(max=window.valid - 1)]


def _refuse_other_count(video: DetectionVideo, n_frames: int) -> None:
    """Raise BadVideo where the annotation's times would be those of other frames."""
    if abs(n_frames - video.frames) > MOST_OFF * video.frames:
        reason = f"{n_frames:,} frames are there, the annotation of {video.video_id} has {video.frames:,}"
        raise BadVideo(video.path, reason, "use the video that was annotated, or correct 'frame' or 'fps'")
