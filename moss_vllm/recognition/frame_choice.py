"""Which frames of a video a clip shows, from the number of frames alone.

"uniform" spreads the clip over the video (Something-Something, Diving48, FineGym); "uniform-k400" spreads it
as the authors' code does on Kinetics; "dense" takes every `stride`-th frame of one part. All three also work
on a video with fewer frames than the clip, down to one frame.

Reference: Table 7; KimManjin/CorrelationSideTuning, whose formulas these are (frames counted from 0 here).
"""

import numpy as np

from moss_vllm.runtime.ranges import FROM_ONE

SAMPLINGS = ("uniform", "uniform-k400", "dense")


def draw_indices(
    n_frames: int, rng: np.random.Generator, *, frames: int, sampling: str = "uniform", stride: int = 8
) -> np.ndarray:
    """Frames to train on.

    Uniform: one at random from each of `frames` equal segments; a video with fewer frames shows all of them
    in order, some more than once. Dense: a part at random; a video shorter than the part is repeated.

    Shape: int64 (T,), in [0, n_frames).
    """
    _check(n_frames, frames, sampling, stride)
    if sampling == "dense":
        start = rng.integers(0, max(1, n_frames - frames * stride + 1))
        return (start + stride * np.arange(frames)) % n_frames
    if sampling == "uniform-k400":
        edges = np.round((n_frames - 1) / frames * np.arange(frames + 1)).astype(np.int64)
        return rng.integers(edges[:-1], edges[1:] + 1)
    if n_frames < frames:
        return np.sort(np.append(np.arange(n_frames), rng.integers(0, n_frames, frames - n_frames)))
    edges = np.arange(frames + 1) * n_frames // frames
    return rng.integers(edges[:-1], edges[1:])


def spread_indices(
    n_frames: int, *, frames: int, clips: int, sampling: str = "uniform", stride: int = 8
) -> np.ndarray:
    """Frames to test on: `clips` clips, evenly shifted against each other.

    Shape: int64 (clips, T), in [0, n_frames).
    """
    _check(n_frames, frames, sampling, stride)
    FROM_ONE.check(clips=clips)
    if sampling == "dense":
        spare = max(0, n_frames - frames * stride)
        # The authors' code divides by clips - 1; a single clip takes the middle.
        starts = np.array([spare // 2]) if clips == 1 else spare // (clips - 1) * np.arange(clips)
        return (starts[:, None] + stride * np.arange(frames)) % n_frames
    if sampling == "uniform-k400":
        tick = n_frames / frames
        starts = np.linspace(0, max(0.0, tick - 1), clips).astype(np.int64)
        shown = np.floor(starts[:, None] + tick * np.arange(frames))
    else:
        segment = (n_frames - 1) / frames
        shifts = np.floor(segment / (clips + 1) * np.arange(1, clips + 1))
        shown = np.round(segment * np.arange(frames)) + shifts[:, None]
    return np.clip(shown, 0, n_frames - 1).astype(np.int64)


def _check(n_frames: int, frames: int, sampling: str, stride: int) -> None:
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling is {sampling!r}; it must be one of {', '.join(SAMPLINGS)}")
    FROM_ONE.check(n_frames=n_frames, frames=frames, stride=stride)
