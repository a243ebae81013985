"""Boundaries: clips in Kinetics-GEBD's own files, in which only motion tells where something new begins.

ROOT/boundaries.json                    settings; clips of another format are drawn again
ROOT/videos/{train,val}/                mini0000001_000000_000010.mp4, ...
ROOT/k400_mr345_{train,val}_min_change_duration0.3.pkl    the ground truth

A clip of 10 s shows two objects that look alike on a textured wall, the same ones from its first frame to its
last. Something always moves: one of them, both together, both against each other, or the camera. At random
times another motion follows, without a cut: objects and wall go on from where they are. Their places are
uniform on a torus at every moment, so each frame is as likely anywhere in a clip: no frame tells a boundary.
Clips are filmed by hand: all that is seen shakes, and what tells is how objects and wall move beside each
other.

Five simulated raters mark each boundary a little early or late, and miss some. Their marks become the ground
truth by the rules of the official notebook (`data/boundaries/ground_truth.py`).
"""

import os
import pickle
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moss_vllm.data.boundaries.datasets import BOUNDARY_FILES, FILE_PARTS
from moss_vllm.data.boundaries.ground_truth import EVENT, build_ground_truth
from moss_vllm.data.world.actions import ROUND, Motion, draw_still, render_action
from moss_vllm.data.world.drawing import drawing_processes
from moss_vllm.data.world.folder import open_world
from moss_vllm.runtime.files import whole_file
from moss_vllm.runtime.progress import show_progress
from moss_vllm.video.write import write_clip

BOUNDARIES_ROOT = Path("data/boundaries")
BOUNDARIES_SETTINGS = "boundaries.json"
BOUNDARIES_FORMAT = 1  # of what is drawn; one more, and every world is drawn again

CLIP_S, CLIP_FPS, CLIP_PX = 10, 5, 48
LOOK_RADIUS_PX = (7.5, 9.5)
MOTION_PX = 8  # from one frame to the next: a cell of the grid that MOSS reads
HELD_PX = 3  # most from one frame to the next of all that is seen
MOTION_S = (1.4, 4.0)  # shortest and longest, but for the last
RATERS, JITTER_S, SEEN_SHARE = 5, 0.12, 0.9
AGREE_S = 0.5  # of a mark that another rater shares: 5 % of a clip

# Which way the wall and the two objects go, as turns from one direction; None stays.
MOTIONS: dict[str, tuple[int | None, int | None, int | None]] = {
    "one moves": (None, 0, None),
    "the other moves": (None, None, 0),
    "both move together": (None, 0, 0),
    "both move against each other": (None, 0, 2),
    "the camera moves": (0, 0, 0),
}


@dataclass(frozen=True)
class BoundariesSize:
    """Numbers of clips, and the seed that decides all of them."""

    train_clips: int = 240
    test_clips: int = 80
    seed: int = 0


@dataclass(frozen=True)
class DrawnClip:
    """A clip that is not drawn yet; the seed decides looks, places and motions.

    `changes` are the frames from which on something else moves, and `marks_s` what each rater marks.
    """

    name: str
    part: str
    changes: tuple[int, ...]
    marks_s: tuple[tuple[float, ...], ...]
    seed: tuple[int, ...]

    @property
    def file(self) -> str:
        """The name of its video, without a suffix."""
        return f"{self.name}_{0:06d}_{CLIP_S:06d}"


def draw_boundaries(
    root: str | os.PathLike[str] = BOUNDARIES_ROOT, size: BoundariesSize | None = None
) -> Path:
    """The folder of a whole world; what of it is missing is drawn now. Only whole files are there.

    Args:
        size: None accepts a world of any size, or makes one of `BoundariesSize()`.

    Raises:
        ValueError: `root` is a world of another size, or another folder.
    """
    root = Path(root)
    files = [BOUNDARY_FILES["mini"][0].format(part) for part in FILE_PARTS.values()]
    size = open_world(
        root,
        BOUNDARIES_SETTINGS,
        size,
        BoundariesSize(),
        drawn_format=BOUNDARIES_FORMAT,
        parts=("videos", *files),
        what="clips with boundaries",
    )
    if not all((root / file).is_file() for file in files):
        clips = {split: plan_clips(split, size) for split in FILE_PARTS}
        _write_videos(root / "videos", [clip for some in clips.values() for clip in some])
        for file, some in zip(files, clips.values(), strict=True):
            with whole_file(root / file) as written:
                written.write_bytes(pickle.dumps(annotate_clips(some), protocol=4))
    return root


def _write_videos(folder: Path, clips: list[DrawnClip]) -> None:
    """Write the videos that are not there yet."""
    files = {clip: folder / clip.part / f"{clip.file}.mp4" for clip in clips}
    missing = [clip for clip in clips if not files[clip].is_file()]
    with drawing_processes() as pool:
        written = pool.map(_write_video, missing, [files[clip] for clip in missing], chunksize=8)
        for _ in show_progress(written, len(missing), "clips drawn"):
            pass


def _write_video(clip: DrawnClip, path: Path) -> None:
    with whole_file(path) as part:
        write_clip(render_clip(clip), part, fps=CLIP_FPS, alike_in_size=True)


# ---- what happens


def plan_clips(split: str, size: BoundariesSize) -> list[DrawnClip]:
    """The clips of a split of FILE_PARTS."""
    part = list(FILE_PARTS).index(split)
    count = size.train_clips if split == "train" else size.test_clips
    return [
        _plan_clip(f"mini{part}{number:06d}", FILE_PARTS[split], (size.seed, part, number))
        for number in range(1, count + 1)
    ]


def _plan_clip(name: str, part: str, seed: tuple[int, ...]) -> DrawnClip:
    rng = np.random.default_rng((*seed, 0))
    shortest, longest = (round(CLIP_FPS * one) for one in MOTION_S)
    changes = [int(rng.integers(shortest, longest + 1))]
    while (change := changes[-1] + int(rng.integers(shortest, longest + 1))) <= CLIP_S * CLIP_FPS - shortest:
        changes.append(change)
    marks = tuple(_mark(rng, changes) for _ in range(RATERS))
    return DrawnClip(name, part, tuple(changes), marks, seed)


def _mark(rng: np.random.Generator, changes: list[int]) -> tuple[float, ...]:
    """The times at which one rater saw a change; at least one."""
    times = np.array(changes) / CLIP_FPS + rng.normal(0, JITTER_S, len(changes))
    seen = rng.random(len(changes)) < SEEN_SHARE
    seen[rng.integers(len(changes))] |= not seen.any()
    return tuple(np.sort(times[seen]).round(3).tolist())


def draw_ways(rng: np.random.Generator, clip: DrawnClip) -> NDArray[np.int64]:
    """How far the wall and the two objects go from each frame to the next; no motion follows itself.

    Shape:
        returns: (3, T, 2), x and y in whole pixels, of a camera that stands.
    """
    ends = (0, *clip.changes, CLIP_S * CLIP_FPS)
    steps: list[NDArray[np.int64]] = []
    for start, end in pairwise(ends):
        while True:
            turns, way = list(MOTIONS.values())[rng.integers(len(MOTIONS))], int(rng.integers(4))
            still = np.zeros(2, np.int64)
            step = np.stack(
                [still if turn is None else MOTION_PX * ROUND[(way + turn) % 4] for turn in turns]
            )
            if not steps or (step != steps[-1][:, -1]).any():
                break
        steps.append(step[:, None].repeat(end - start, axis=1))
    return np.concatenate(steps, axis=1)


def render_clip(clip: DrawnClip) -> NDArray[np.uint8]:
    """Draw a clip.

    Shape:
        returns: (T, CLIP_PX, CLIP_PX, 3) uint8.
    """
    rng = np.random.default_rng((*clip.seed, 1))
    still = draw_still(rng, size_px=CLIP_PX, radius_px=LOOK_RADIUS_PX)
    ways = draw_ways(rng, clip)
    steps = ways + rng.integers(-HELD_PX, HELD_PX + 1, ways.shape[1:])
    paths = np.pad(steps[:, :-1], ((0, 0), (1, 0), (0, 0))).cumsum(axis=1)
    return render_action(still, Motion(*paths), size_px=CLIP_PX)


# ---- what raters say


def annotate_clips(clips: list[DrawnClip]) -> dict[str, Any]:
    """The ground truth of clips; frame numbers are NumPy's, as in the published file."""
    records = build_ground_truth({clip.name: _raw_record(clip) for clip in clips})
    key = "substages_myframeidx"
    return {
        name: {**record, key: [[np.float64(frame) for frame in some] for some in record[key]]}
        for name, record in records.items()
    }


def _raw_record(clip: DrawnClip) -> dict[str, Any]:
    """What the raw annotation of Kinetics-GEBD has of a clip."""
    agreement = [
        fmean(_agree(one, other) for place, other in enumerate(clip.marks_s) if place != number)
        for number, one in enumerate(clip.marks_s)
    ]
    return {
        "num_frames": CLIP_S * CLIP_FPS,
        "path_video": f"mini/{clip.file}.mp4",
        "fps": float(CLIP_FPS),
        "video_duration": float(CLIP_S),
        "f1_consis": agreement,
        "f1_consis_avg": fmean(agreement),
        "substages_timestamps": [
            [{"start_time": time, "end_time": time, "label": f"{EVENT} (Action)"} for time in marks]
            for marks in clip.marks_s
        ],
    }


def _agree(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """F1 of one rater's marks against another's, which lie further apart than AGREE_S."""
    shared = sum(any(abs(time - mark) <= AGREE_S for mark in other) for time in one)
    return 2 * shared / (len(one) + len(other))
