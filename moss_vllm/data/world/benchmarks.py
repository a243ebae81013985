"""The motion world on disk: h264 clips annotated in FAVOR-Train's, FAVOR-Bench's and MotionBench's formats.

ROOT/world.json                       settings; written last, so the world is whole when it exists
ROOT/FAVOR/train.json                 captions           videos/FAVOR-Train/*.mp4
ROOT/FAVOR/video_perspective.json     six tasks          videos/FAVOR-Bench/*.mp4
ROOT/MotionBench/video_info.meta.jsonl  six types        self-collected/*.mp4, public-dataset/*.mp4
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moss_vllm.data.motionbench import MOTIONBENCH_TASKS
from moss_vllm.data.world.drawing import drawing_processes
from moss_vllm.data.world.scenes import (
    DURATION_S,
    FRAME_PX,
    TRAIN_KINDS,
    Scene,
    caption,
    draw_scene_plan,
    favor_choices,
    motionbench_choices,
    render_scene,
)
from moss_vllm.runtime.progress import show_progress
from moss_vllm.video.write import FILE_FPS, write_clip

DEFAULT_ROOT = Path("data/motion_world")
WORLD_FILE = "world.json"
DEPTH = 5  # of a video below the world's folder, at most


@dataclass(frozen=True)
class WorldSize:
    """Numbers of clips and questions; `seed` decides all of them."""

    train_clips: int = 3000
    motionbench_questions: int = 300
    withheld_questions: int = 30  # MotionBench's test rows, answer "NA"
    favor_questions: int = 300
    seed: int = 0


def is_of_motion_world(path: Path) -> bool:
    """Whether a video, or a folder in either benchmark's format, is of a motion world."""
    path = path.absolute()
    return any((folder / WORLD_FILE).is_file() for folder in (path, *path.parents[:DEPTH]))


def ensure_world(root: Path = DEFAULT_ROOT, size: WorldSize | None = None) -> Path:
    """The folder of a whole world of this size, made now if it does not exist.

    Raises:
        ValueError: `root` is a world of another size, or another folder.
    """
    size = size or WorldSize()
    wanted = {**asdict(size), "format": 3}
    if (root / WORLD_FILE).is_file():
        existing = json.loads((root / WORLD_FILE).read_text())
        if existing != wanted:
            raise ValueError(
                f"{root} holds a motion world of {existing}, not {wanted}; remove it or name another folder"
            )
        return root
    if root.exists():
        raise ValueError(
            f"{root} exists and is no whole motion world (no world.json); remove it or name another folder"
        )
    unfinished = root.with_name(f".{root.name}.unfinished-{uuid.uuid4().hex}")
    try:
        write_world(unfinished, size)
        (unfinished / WORLD_FILE).write_text(json.dumps(wanted, indent=2) + "\n")
        try:
            unfinished.rename(root)
        except OSError:
            if not (root / WORLD_FILE).is_file():  # or another process was faster, and wrote the same world
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return root


def write_world(root: Path, size: WorldSize) -> None:
    """Write clips and annotation files of all three parts under `root`."""
    clips: list[tuple[Scene, Path]] = []
    _train(root / "FAVOR", size, clips)
    _favor_bench(root / "FAVOR", size, clips)
    _motionbench(root / "MotionBench", size, clips)
    for folder in {path.parent for _, path in clips}:
        folder.mkdir(parents=True, exist_ok=True)
    with drawing_processes() as pool:
        written = pool.map(_write_scene, *zip(*clips, strict=True), chunksize=16)
        for _ in show_progress(written, len(clips), "clips drawn"):
            pass


def _write_scene(scene: Scene, path: Path) -> None:
    write_clip(render_scene(scene, FILE_FPS), path, alike_in_size=True)


def _train(root: Path, size: WorldSize, clips: list[tuple[Scene, Path]]) -> None:
    rng = np.random.default_rng([size.seed, 1])
    rows = []
    for index in range(size.train_clips):
        scene = draw_scene_plan(rng, TRAIN_KINDS)
        name = f"world_train_{index:05d}.mp4"
        clips.append((scene, root / "videos" / "FAVOR-Train" / name))
        rows.append({"video_name": name, "caption": caption(scene, rng), "subset": "motion_world"})
    _write_json(root / "train.json", rows)


def _favor_bench(root: Path, size: WorldSize, clips: list[tuple[Scene, Path]]) -> None:
    rng = np.random.default_rng([size.seed, 2])
    rows: list[dict[str, Any]] = []
    count = 0
    while count < size.favor_questions:
        scene = draw_scene_plan(rng)
        choices = favor_choices(scene, rng)
        if not choices:
            continue
        count += len(choices)
        name = f"world_{len(rows):04d}.mp4"
        clips.append((scene, root / "videos" / "FAVOR-Bench" / name))
        motions = [f"Subject {i}: {a.name} [{a.deed}]" for i, a in enumerate(scene.actors, start=1)]
        rows.append(
            {
                "video_name": name,
                "questions": [
                    {
                        "question": c.text,
                        "options": list(c.options),
                        "correct_answer": c.answer,
                        "task_type": c.task,
                    }
                    for c in choices
                ],
                "caption": caption(scene, rng),
                "camera_motion": f"The camera {scene.camera}.",
                "subject_attributes": ", ".join(actor.name for actor in scene.actors),
                "motion_list": "\n".join(motions),
                "chronological_motion_list": ", ".join(
                    f"{action} (Subject {i})"
                    for i, a in enumerate(scene.actors, start=1)
                    for action in a.actions
                ),
            }
        )
    _write_json(root / "video_perspective.json", rows)


def _motionbench(root: Path, size: WorldSize, clips: list[tuple[Scene, Path]]) -> None:
    rng = np.random.default_rng([size.seed, 3])
    lines = []
    count = 0
    total = size.motionbench_questions + size.withheld_questions
    while count < total:
        scene = draw_scene_plan(rng)
        choices = motionbench_choices(scene, rng)
        if not choices:
            continue
        key = hashlib.md5(rng.bytes(16)).hexdigest()
        folder = "self-collected" if rng.random() < 0.5 else "public-dataset"
        clips.append((scene, root / folder / f"{key}.mp4"))
        stem = hashlib.md5(rng.bytes(16)).hexdigest()[:16]
        questions = []
        for index, choice in enumerate(choices):
            letters = "ABCDEF"[: len(choice.options)]
            options = "\n".join(f"{a}. {o}" for a, o in zip(letters, choice.options, strict=True))
            answer = letters[choice.options.index(choice.answer)]
            questions.append(
                {
                    "uid": stem if len(choices) == 1 else f"{stem}_{index}",
                    "start": None,
                    "end": None,
                    "answer": answer if count < size.motionbench_questions else "NA",
                    "question": f"{choice.text}\n{options}",
                }
            )
        count += len(choices)
        lines.append(
            {
                "question_type": MOTIONBENCH_TASKS[choices[0].task],
                "video_type": None,
                "key": key,
                "qa": questions,
                "video_path": f"{key}.mp4",
                "video_info": {
                    "duration": DURATION_S,
                    "fps": float(FILE_FPS),
                    "resolution": {"width": FRAME_PX, "height": FRAME_PX},
                },
            }
        )
    root.mkdir(parents=True, exist_ok=True)
    (root / "video_info.meta.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_json(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")
