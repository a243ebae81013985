"""Mini actions: a small action-recognition dataset of real mp4 files in which only motion tells the class.

ROOT/mini_actions.json          settings; written last, so the dataset is whole when it exists
ROOT/train.txt, test.txt        "videos/x.mp4 label", as the ladder's authors list their datasets
ROOT/labels.csv                 id,name
ROOT/groups.csv                 name,group
ROOT/videos/*.mp4               8 frames of 84 x 84 pixels

Every clip shows two objects that look alike on a textured wall. Where the wall and the objects are is drawn
uniformly on a torus, whatever the class (`draw_still`), and the class alone draws how they move
(`draw_motion`). So each frame of any class is as likely a frame of any other: no frame, no start and no end
position tells the class.

    group      classes                                   what a model has to see
    direction  moves left, right, up, down               where one of the two look-alikes goes
    speed      moves slantwise slowly, quickly           how far it goes from frame to frame
    order      goes round clockwise, anticlockwise       the same four moves, one order or the reverse
    relation   both together, both against each other    whether two motions are the same
    camera     the camera moves, the wall moves          whether objects move as the wall behind them does
"""

import csv
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moss_vllm.data.world.drawing import (
    DIRECTIONS,
    THING_COLOURS,
    THING_SHAPES,
    Thing,
    Wall,
    draw_wall,
    drawing_processes,
)
from moss_vllm.runtime.progress import show_progress
from moss_vllm.video.write import write_clip

MINI_ACTIONS_ROOT = Path("data/mini_actions")
FRAMES = 8  # a model reads all of them: one random frame from each of 8 parts would blur the speeds
MINI_FRAME_PX = 84
SPEED_PX = (7, 18)  # least and most from one frame to the next: 1/2 and 4/3 of a patch of 14 pixels
SLANT_PX = {"slowly": (3, 6), "quickly": (10, 13)}  # in x and in y
RADIUS_PX = (12.0, 15.0)

# Class -> group; a class's label is its place here.
CLASSES = {
    "moves left": "direction",
    "moves right": "direction",
    "moves up": "direction",
    "moves down": "direction",
    "moves slantwise slowly": "speed",
    "moves slantwise quickly": "speed",
    "goes round clockwise": "order",
    "goes round anticlockwise": "order",
    "both move together": "relation",
    "both move against each other": "relation",
    "the camera moves": "camera",
    "the wall moves": "camera",
}
ROUND = np.array([DIRECTIONS[way] for way in ("right", "down", "left", "up")])  # clockwise
GROUPS = tuple(dict.fromkeys(CLASSES.values()))


@dataclass(frozen=True)
class MiniSize:
    """Clips of each class, and the seed that decides all of them."""

    train_per_class: int = 200
    test_per_class: int = 50
    seed: int = 0


@dataclass(frozen=True)
class Still:
    """Everything that a single picture shows. Places are (x, y) on the torus, in whole pixels."""

    seed: int
    shape: str
    colour: str
    radius_px: float
    angle_rad: float
    texture_phase: float
    wall_px: NDArray[np.int64]  # (2,)
    objects_px: NDArray[np.int64]  # (2, 2), the lower one first


@dataclass(frozen=True)
class Motion:
    """Offsets of the wall and the two objects from their start, in whole pixels.

    Shape:
        each (T, 2), x and y; T = FRAMES in mini actions.
    """

    wall_px: NDArray[np.int64]
    first_px: NDArray[np.int64]
    second_px: NDArray[np.int64]


def draw_still(
    rng: np.random.Generator, *, size_px: int = MINI_FRAME_PX, radius_px: tuple[float, float] = RADIUS_PX
) -> Still:
    """Draw looks and places, independent of the class. The objects may hide each other."""
    return Still(
        seed=int(rng.integers(2**31)),
        shape=THING_SHAPES[rng.integers(len(THING_SHAPES))],
        colour=list(THING_COLOURS)[rng.integers(len(THING_COLOURS))],
        radius_px=float(rng.uniform(*radius_px)),
        angle_rad=float(rng.uniform(0, 2 * np.pi)),
        texture_phase=float(rng.uniform(0, 2 * np.pi)),
        wall_px=rng.integers(0, size_px, 2),
        objects_px=rng.integers(0, size_px, (2, 2)),
    )


def draw_motion(rng: np.random.Generator, name: str) -> Motion:
    """Draw how a class moves, independent of the picture.

    Raises:
        ValueError: unknown class.
    """
    if name not in CLASSES:
        raise ValueError(f"unknown class '{name}'; known are {', '.join(CLASSES)}")
    group = CLASSES[name]
    speed_px = int(rng.integers(SPEED_PX[0], SPEED_PX[1] + 1))
    way = np.array(list(DIRECTIONS.values())[rng.integers(4)])
    steps = np.tile(speed_px * way, (FRAMES - 1, 1))
    nothing = np.zeros_like(steps)
    wall, objects = nothing, [steps, nothing]
    if group == "direction":
        objects[0] = np.tile(speed_px * np.array(DIRECTIONS[name.split()[1]]), (FRAMES - 1, 1))
    elif group == "speed":
        low, high = SLANT_PX[name.split()[-1]]
        objects[0] = np.tile(rng.integers(low, high + 1) * rng.choice([-1, 1], 2), (FRAMES - 1, 1))
    elif group == "order":
        start, turn = rng.integers(4), 1 if name == "goes round clockwise" else -1
        objects[0] = speed_px * ROUND[(start + turn * np.arange(FRAMES - 1)) % 4]
    elif group == "relation":
        objects[1] = steps if name == "both move together" else -steps
    else:
        wall = steps
        objects = [steps, steps] if name == "the camera moves" else [nothing, nothing]
    first, second = rng.permutation(2)  # which of the two is above the other
    return Motion(*(np.pad(s, ((1, 0), (0, 0))).cumsum(0) for s in (wall, objects[first], objects[second])))


def render_action(still: Still, motion: Motion, *, size_px: int = MINI_FRAME_PX) -> NDArray[np.uint8]:
    """Draw the clip.

    Shape:
        returns: (T, size_px, size_px, 3) uint8.
    """
    things = []
    for start_px, path_px in zip(still.objects_px, (motion.first_px, motion.second_px), strict=True):
        x_px, y_px = (start_px + path_px).T.astype(np.float32)
        angle = np.full(len(path_px), still.angle_rad, dtype=np.float32)
        things.append(
            Thing(still.shape, still.colour, still.radius_px, x_px, y_px, angle, still.texture_phase)
        )
    wall_x, wall_y = (still.wall_px + motion.wall_px).T.astype(np.float32)
    return draw_wall(Wall(still.seed, wall_x, wall_y, things=tuple(things)), size_px)


def ensure_mini_actions(
    root: str | os.PathLike[str] = MINI_ACTIONS_ROOT, size: MiniSize | None = None
) -> Path:
    """The folder of a whole dataset, made now if it does not exist.

    Args:
        size: None accepts an existing dataset of any size, or makes one of `MiniSize()`.

    Raises:
        ValueError: `root` is a dataset of another size or format, or another folder.
    """
    root, wanted = Path(root), {**asdict(size or MiniSize()), "format": 1}
    settings = root / "mini_actions.json"
    if settings.is_file():
        existing = json.loads(settings.read_text())
        if existing != wanted and (size is not None or existing.get("format") != wanted["format"]):
            raise ValueError(
                f"{root} holds mini actions of {existing}, not {wanted}; remove it or name another folder"
            )
        return root
    if root.exists():
        raise ValueError(
            f"{root} exists and is no whole dataset of mini actions (no {settings.name}); remove it or name "
            "another folder"
        )
    unfinished = root.with_name(f".{root.name}.unfinished-{uuid.uuid4().hex}")
    try:
        write_mini_actions(unfinished, size or MiniSize())
        (unfinished / settings.name).write_text(json.dumps(wanted, indent=2) + "\n")
        try:
            unfinished.rename(root)
        except OSError:
            if not settings.is_file():  # or another process was faster, and wrote the same dataset
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return root


def write_mini_actions(root: Path, size: MiniSize) -> None:
    """Write the lists and the clips of both splits under `root`."""
    (root / "videos").mkdir(parents=True)
    clips: list[tuple[Path, str, Sequence[int]]] = []
    for part, split in enumerate(("train", "test")):
        per_class = size.train_per_class if split == "train" else size.test_per_class
        labels = np.arange(len(CLASSES)).repeat(per_class)
        np.random.default_rng((size.seed, part)).shuffle(labels)  # file names must not tell the class
        lines = []
        for index, label in enumerate(labels, start=1):
            file = f"videos/{split}_{index:05d}.mp4"
            lines.append(f"{file} {label}\n")
            clips.append((root / file, list(CLASSES)[label], (size.seed, part, index)))
        (root / f"{split}.txt").write_text("".join(lines))
    _write_csv(root / "labels.csv", ("id", "name"), enumerate(CLASSES))
    _write_csv(root / "groups.csv", ("name", "group"), CLASSES.items())
    with drawing_processes() as pool:
        written = pool.map(_write_action, *zip(*clips, strict=True), chunksize=16)
        for _ in show_progress(written, len(clips), "clips drawn"):
            pass


def _write_action(path: Path, name: str, seed: Sequence[int]) -> None:
    rng = np.random.default_rng(seed)
    write_clip(render_action(draw_still(rng), draw_motion(rng, name)), path, alike_in_size=True)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
