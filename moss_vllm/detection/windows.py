"""Which part of a video a window shows, and which actions are in it.

A window has a fixed number of steps. A step is every `stride`-th frame of the video: AdaTAD's 768 steps of 4
frames are about 100 s. A shorter video fills its window up with its last step; the mask is True on the real
ones.

Two frame counts meet here: times become frames by the annotation's, frames are read by the file's.

Reference: Sec. C.1; AdaTAD (Liu et al., 2024c), whose rules these are, sming256/OpenTAD's details included.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moss_vllm.data.detection.annotation import Action
from moss_vllm.data.detection.datasets import DetectionVideo
from moss_vllm.runtime.ranges import FROM_ONE, Range
from moss_vllm.video.frames import BadVideo

MAX_DRAWS = 200


@dataclass(frozen=True)
class WindowSettings:
    """The sizes of windows; the defaults are AdaTAD's on THUMOS-14.

    Args:
        steps: of a window, T.
        stride: frames from one step to the next.
        test_overlap: share of a window that the next one shows again, in tests.
        validation_overlap: the same, where the loss is measured.
        kept_share: an action with this share of its length in a window belongs to it.
        shortest_crop: of a video shorter than a window, training shows at least this share.

    Raises: ValueError for a number out of range.
    """

    steps: int = 768
    stride: int = 4
    test_overlap: float = 0.5
    validation_overlap: float = 0.25
    kept_share: float = 0.75
    shortest_crop: float = 0.9

    def __post_init__(self) -> None:
        FROM_ONE.check(steps=self.steps, stride=self.stride)
        for name in ("test_overlap", "validation_overlap"):
            if not 0 <= getattr(self, name) < 1 or self.advance(getattr(self, name)) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; {self.steps} steps must advance by one")
        share = Range(float, 0, 1, above=True)
        share.check(kept_share=self.kept_share, shortest_crop=self.shortest_crop)

    def advance(self, overlap: float) -> int:
        """Steps from the start of one window to that of the next."""
        return int(self.steps * (1 - overlap))


@dataclass(frozen=True)
class VideoWindow:
    """A part of a video, and the actions in it.

    Shape: frame_indices int64 (T,); segments float32 (N, 2), in steps from the window's start; labels int64
    (N,), class ids.

    Args:
        start_frame: the frame of its first step.
        valid: real steps; the others repeat the last one.
        accepted: whether it holds what it was chosen for: an action, where training drew it.
    """

    start_frame: int
    frame_indices: np.ndarray
    valid: int
    segments: np.ndarray
    labels: np.ndarray
    accepted: bool = True

    @property
    def mask(self) -> np.ndarray:
        """True on real steps.

        Shape: bool (T,).
        """
        return np.arange(len(self.frame_indices)) < self.valid


def segments_in_steps(video: DetectionVideo, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """When the video's actions happen, in steps from its start; each (segment, class) once.

    Times become whole frames, rounded down; a step of 4 frames then has quarters.

    Shape: segments float32 (N, 2), labels int64 (N,).
    """
    rows = list(dict.fromkeys(_in_frames(video, action) for action in video.actions))
    segments = np.array([row[:2] for row in rows], np.float32).reshape(-1, 2) / np.float32(stride)
    return segments, np.array([row[2] for row in rows], np.int64)


def _in_frames(video: DetectionVideo, action: Action) -> tuple[int, int, int]:
    start, end = (int(s / video.duration_s * video.frames) for s in (action.start_s, action.end_s))
    return start, end, action.label


def windows_to_test(video: DetectionVideo, n_frames: int, settings: WindowSettings) -> list[VideoWindow]:
    """Overlapping windows over the whole video; the last one ends with it.

    A video whose length is a multiple of the advance has its last window twice, as AdaTAD's has.

    Args:
        n_frames: of the file.

    Raises: BadVideo if the file ends before a window starts.
    """
    starts = window_starts(_steps_of(video.frames, settings), settings, settings.test_overlap)
    return [_place(video, n_frames, settings, start, settings.steps) for start in starts]


def count_test_windows(video: DetectionVideo, settings: WindowSettings) -> int:
    """The number of `windows_to_test`, whatever the file has."""
    return len(window_starts(_steps_of(video.frames, settings), settings, settings.test_overlap))


def windows_to_validate(video: DetectionVideo, n_frames: int, settings: WindowSettings) -> list[VideoWindow]:
    """Windows with an action: with more than `kept_share` of its length from first to last step.

    Raises: as `windows_to_test`.
    """
    steps = _steps_of(video.frames, settings)
    segments, labels = segments_in_steps(video, settings.stride)
    windows = []
    for start in window_starts(steps, settings, settings.validation_overlap):
        last = min(start + settings.steps, steps) - 1
        inside = _share_inside(segments, start, last) > settings.kept_share
        if inside.any():
            kept = np.clip(segments[inside], start, last) - np.float32(start)
            windows.append(_place(video, n_frames, settings, start, settings.steps, kept, labels[inside]))
    return windows


def draw_window(
    video: DetectionVideo, n_frames: int, settings: WindowSettings, rng: np.random.Generator
) -> VideoWindow:
    """A random window to train on, drawn until it has an action, MAX_DRAWS times at most.

    The last draw is then returned as it is: without an action and not `accepted`.

    Args:
        n_frames: of the file.
    """
    steps = _steps_of(n_frames, settings)
    length = settings.steps
    if steps <= length:
        length = int(rng.integers(max(round(settings.shortest_crop * steps), 1), steps + 1))
    for _ in range(MAX_DRAWS):
        window = training_window(video, n_frames, settings, int(rng.integers(0, steps - length + 1)), length)
        if window.accepted:
            break
    return window


def training_window(
    video: DetectionVideo, n_frames: int, settings: WindowSettings, start: int, length: int
) -> VideoWindow:
    """The training window of `length` steps from the step `start`.

    Actions with at least `kept_share` of their length in it are kept and cut at its ends; a window of the
    whole video has them all as they are.
    """
    segments, labels = segments_in_steps(video, settings.stride)
    if length < _steps_of(n_frames, settings):
        inside = _share_inside(segments, start, start + length) >= settings.kept_share
        segments = np.clip(segments[inside], start, start + length) - np.float32(start)
        labels = labels[inside]
    return _place(video, n_frames, settings, start, length, segments, labels, accepted=len(labels) > 0)


def window_starts(steps: int, settings: WindowSettings, overlap: float) -> list[int]:
    """The first steps of the windows over a video of so many steps.

    With another overlap than one half the end of a video may be in no window, as in AdaTAD.
    """
    hop = settings.advance(overlap)
    starts = []
    for start in range(0, hop * max(1, steps // hop), hop):
        if start + settings.steps > steps:
            starts.append(max(0, steps - settings.steps))
            break
        starts.append(start)
    return starts


def _steps_of(n_frames: int, settings: WindowSettings) -> int:
    return -(-n_frames // settings.stride)


def _share_inside(segments: np.ndarray, start: int, end: int) -> np.ndarray:
    """The share of each segment's length between two steps; 0 for a segment without length."""
    lengths = segments[:, 1] - segments[:, 0]
    inside = np.minimum(segments[:, 1], end) - np.maximum(segments[:, 0], start)
    return np.where(lengths > 0, np.maximum(inside, 0) / np.where(lengths > 0, lengths, 1), 0)


def _place(
    video: DetectionVideo,
    n_frames: int,
    settings: WindowSettings,
    start: int,
    length: int,
    segments: np.ndarray | None = None,
    labels: np.ndarray | Sequence[int] = (),
    *,
    accepted: bool = True,
) -> VideoWindow:
    """The window of up to `length` steps from `start`, filled up to the settings' size."""
    steps = min(start + length, _steps_of(n_frames, settings))
    if steps <= start:
        reason = f"window at frame {start * settings.stride:,}, the file has {n_frames:,} frames, its "
        reason += f"annotation {video.frames:,} ({video.video_id})"
        raise BadVideo(video.path, reason, "use the video that was annotated")
    indices = np.minimum(start + np.arange(settings.steps), steps - 1) * settings.stride
    return VideoWindow(
        start_frame=start * settings.stride,
        frame_indices=indices,
        valid=steps - start,
        segments=np.zeros((0, 2), np.float32) if segments is None else segments,
        labels=np.array(labels, np.int64),
        accepted=accepted,
    )
