"""Untrimmed: long videos in THUMOS-14's own files, in which only motion tells what happens, and when.

ROOT/untrimmed.json                     settings; videos of another format are drawn again
ROOT/raw_data/video/                    video_validation_0000001.mp4, ..., video_test_0000001.mp4, ...
ROOT/annotations/category_idx.txt       a class a line
ROOT/annotations/thumos_14_anno.json    the actions; written last, so the world is whole when it exists

A video of 30 to 60 s shows two objects that look alike on a textured wall, the same ones from its first frame
to its last. Actions and background take turns without a cut: objects and wall go on from where they are.
Their places are uniform on a torus at every moment, whatever happens. So each frame of any class is as likely
a frame of any other, or of the background; no frame tells the class, nor where an action begins.

    actions                                        what the background has of the kind
    the camera moves left, right                   the camera moves up or down
    one moves left, right                          one moves up or down
    one goes round clockwise, anticlockwise        one wanders: it turns as often, to either side
    both move together, against each other         each moves its own way, at a right angle to the other
                                                   nothing moves
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moss_vllm.data.world.actions import ROUND, Motion, draw_still, render_action
from moss_vllm.data.world.drawing import DIRECTIONS, drawing_processes
from moss_vllm.data.world.folder import open_world
from moss_vllm.runtime.files import whole_file, write_whole
from moss_vllm.runtime.progress import show_progress
from moss_vllm.video.write import write_clip

UNTRIMMED_ROOT = Path("data/untrimmed")
SETTINGS, ANNOTATION = "untrimmed.json", "thumos_14_anno.json"
DRAWN_FORMAT = 1  # of what is drawn; one more, and every world is drawn again

UNTRIMMED_FPS = 8
UNTRIMMED_PX = 64
THING_RADIUS_PX = (10.0, 13.0)
STEP_PX = 4  # from one frame to the next; in tubelets of 2 frames at stride 2 a patch of 16 pixels
SIDE_FRAMES = 8  # from one turn to the next
VIDEO_S, ACTION_S, BACKGROUND_S = (30.0, 60.0), (2.0, 5.0), (1.5, 5.0)

# Class -> group; a class's id is its place here.
UNTRIMMED_CLASSES = {
    "the camera moves left": "camera",
    "the camera moves right": "camera",
    "one moves left": "direction",
    "one moves right": "direction",
    "one goes round clockwise": "order",
    "one goes round anticlockwise": "order",
    "both move together": "relation",
    "both move against each other": "relation",
}
BACKGROUND = (
    "the camera moves up or down",
    "one moves up or down",
    "one wanders",
    "each moves its own way",
    "nothing moves",
)
# What the annotation calls the videos of a split, and how their names begin.
NAMES_OF_SPLITS = {"train": ("training", "video_validation"), "test": ("validation", "video_test")}

Ways = NDArray[np.int64]  # (frames,)


@dataclass(frozen=True)
class UntrimmedSize:
    """Numbers of videos, and the seed that decides all of them."""

    train_videos: int = 100
    test_videos: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Stretch:
    """A part of a video, from frame `start` up to but without frame `end`: an action or background."""

    name: str
    start: int
    end: int

    @property
    def is_action(self) -> bool:
        """Whether it is annotated."""
        return self.name in UNTRIMMED_CLASSES


@dataclass(frozen=True)
class UntrimmedVideo:
    """A video that is not drawn yet; the seed decides looks, places and the motions of its stretches."""

    name: str
    subset: str
    stretches: tuple[Stretch, ...]
    seed: tuple[int, ...]

    @property
    def frames(self) -> int:
        """Their number."""
        return self.stretches[-1].end


def draw_untrimmed(root: str | os.PathLike[str] = UNTRIMMED_ROOT, size: UntrimmedSize | None = None) -> Path:
    """The folder of a whole world; what of it is missing is drawn now. Only whole files are there.

    Args:
        size: None accepts a world of any size, or makes one of `UntrimmedSize()`.

    Raises:
        ValueError: `root` is a world of another size, or another folder.
    """
    root = Path(root)
    size = open_world(
        root,
        SETTINGS,
        size,
        UntrimmedSize(),
        drawn_format=DRAWN_FORMAT,
        parts=("annotations", "raw_data"),
        what="untrimmed videos",
    )
    if not (root / "annotations" / ANNOTATION).is_file():
        write_untrimmed(root, size)
    return root


def write_untrimmed(root: Path, size: UntrimmedSize) -> None:
    """Write the videos that are not there yet, then the annotation."""
    videos = [video for split in NAMES_OF_SPLITS for video in plan_split(split, size)]
    folder = root / "raw_data" / "video"
    files = {video: folder / f"{video.name}.mp4" for video in videos}
    missing = [video for video in videos if not files[video].is_file()]
    with drawing_processes() as pool:
        written = pool.map(_write_video, missing, [files[video] for video in missing])
        for _ in show_progress(written, len(missing), "videos drawn"):
            pass
    write_whole(root / "annotations" / "category_idx.txt", "\n".join(UNTRIMMED_CLASSES) + "\n")
    database = {video.name: annotate(video) for video in videos}
    write_whole(root / "annotations" / ANNOTATION, json.dumps({"database": database}, indent=1) + "\n")


def _write_video(video: UntrimmedVideo, path: Path) -> None:
    with whole_file(path) as part:
        write_clip(render_untrimmed(video), part, fps=UNTRIMMED_FPS, alike_in_size=True)


def annotate(video: UntrimmedVideo) -> dict[str, Any]:
    """The row of a video in THUMOS-14's annotation, times in seconds."""
    actions = [
        {"segment": [stretch.start / UNTRIMMED_FPS, stretch.end / UNTRIMMED_FPS], "label": stretch.name}
        for stretch in video.stretches
        if stretch.is_action
    ]
    duration_s = video.frames / UNTRIMMED_FPS
    return {"subset": video.subset, "duration": duration_s, "frame": video.frames, "annotations": actions}


def plan_split(split: str, size: UntrimmedSize) -> list[UntrimmedVideo]:
    """The videos of a split. Each class, and each kind of background, is there as often, give or take one."""
    part = list(NAMES_OF_SPLITS).index(split)
    rng = np.random.default_rng((size.seed, part))
    actions, background = _deal(rng, list(UNTRIMMED_CLASSES)), _deal(rng, BACKGROUND)
    subset, prefix = NAMES_OF_SPLITS[split]
    count = size.train_videos if split == "train" else size.test_videos
    return [
        UntrimmedVideo(
            f"{prefix}_{number:07d}",
            subset,
            tuple(_draw_stretches(rng, actions, background)),
            (size.seed, part, number),
        )
        for number in range(1, count + 1)
    ]


def _deal(rng: np.random.Generator, names: Sequence[str]) -> Iterator[str]:
    """The names in random order, over and over."""
    while True:
        yield from rng.permutation(names).tolist()


def _draw_stretches(
    rng: np.random.Generator, actions: Iterator[str], background: Iterator[str]
) -> Iterator[Stretch]:
    """Background and actions in turn; a last action that would not end a second before the video is none."""
    total, start = _draw_frames(rng, VIDEO_S), 0
    while True:
        end = start + _draw_frames(rng, BACKGROUND_S)
        action_end = end + _draw_frames(rng, ACTION_S)
        if action_end + UNTRIMMED_FPS > total:
            yield Stretch(next(background), start, total)
            return
        yield Stretch(next(background), start, end)
        yield Stretch(next(actions), end, action_end)
        start = action_end


def _draw_frames(rng: np.random.Generator, seconds: tuple[float, float]) -> int:
    low, high = (round(UNTRIMMED_FPS * second) for second in seconds)
    return int(rng.integers(low, high + 1))


def render_untrimmed(video: UntrimmedVideo) -> NDArray[np.uint8]:
    """Draw a video.

    Shape:
        returns: (T, UNTRIMMED_PX, UNTRIMMED_PX, 3) uint8.
    """
    rng = np.random.default_rng(video.seed)
    still = draw_still(rng, size_px=UNTRIMMED_PX, radius_px=THING_RADIUS_PX)
    steps = [draw_steps(rng, stretch.name, stretch.end - stretch.start) for stretch in video.stretches]
    paths = np.pad(np.concatenate(steps, axis=1)[:, :-1], ((0, 0), (1, 0), (0, 0))).cumsum(axis=1)
    return render_action(still, Motion(*paths), size_px=UNTRIMMED_PX)


def draw_steps(rng: np.random.Generator, name: str, frames: int) -> NDArray[np.int64]:
    """How far the wall and the two objects go from each frame to the next, in whole pixels.

    Shape:
        returns: (3, frames, 2), x and y.

    Raises:
        ValueError: unknown name.
    """
    if name not in (*UNTRIMMED_CLASSES, *BACKGROUND):
        raise ValueError(f"unknown motion '{name}'; known are {', '.join((*UNTRIMMED_CLASSES, *BACKGROUND))}")
    direction = name.split()[-1]
    if direction == "down":
        direction = str(rng.choice(["up", "down"]))
    start = int(rng.integers(4))
    if direction in DIRECTIONS:
        start = [tuple(way) for way in ROUND].index(DIRECTIONS[direction])
    # Each subject's way from frame to frame as its place in ROUND; None stays still.
    wall: Ways | None = None
    one: Ways | None = np.full(frames, start)
    other: Ways | None = None
    if name == "nothing moves":
        one = None
    elif name.startswith("the camera"):
        one = other = wall = np.full(frames, start + 2)  # what a camera looks past moves the other way
    elif name.startswith("both"):
        other = one if name.endswith("together") else np.full(frames, start + 2)
    elif name.startswith("each"):
        other = np.full(frames, start + rng.choice([1, 3]))
    elif "round" in name or "wanders" in name:
        turns = (np.arange(frames) + rng.integers(SIDE_FRAMES)) % SIDE_FRAMES == 0
        sides = rng.choice([-1, 1], frames) if "wanders" in name else 1 if direction == "clockwise" else -1
        one = start + (turns * sides).cumsum()
    first, second = (one, other) if rng.random() < 0.5 else (other, one)  # which of the two is above
    still = np.zeros((frames, 2), np.int64)
    return np.stack([still if way is None else STEP_PX * ROUND[way % 4] for way in (wall, first, second)])
