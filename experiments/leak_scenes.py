"""What experiments/leaks.py shows its probes: questions of every task, frames and files of their clips."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    raise SystemExit("experiments/leak_scenes.py is a part of leaks.py, not a command")

import av
import numpy as np
import torch
import torch.nn.functional as F
from leak_probes import SIDE_PX, Asked
from numpy.typing import NDArray
from torch import Tensor

from moss_vllm.data.favor import FAVOR_TASKS
from moss_vllm.data.motionbench import MOTIONBENCH_TASKS
from moss_vllm.data.world import actions, scenes, segments
from moss_vllm.data.world.scenes import Choice, Scene
from moss_vllm.runtime.progress import show_progress
from moss_vllm.video.write import FILE_FPS, write_clip

SAMPLE_FPS = 2.0  # of what a model sees
MOST_PLANS = 150  # scenes planned for each question wanted, for the rarest kinds

Frames = NDArray[np.uint8]  # (T, H, W, 3)
Clip = Callable[[float], Frames]  # draws a clip at a number of frames per second
Draw = Callable[[np.random.Generator], Iterator[tuple[str, Choice, Clip]]]


@dataclass(frozen=True)
class Drawn:
    """Questions of each task, and the clips that they are about."""

    questions: Mapping[str, Sequence[Asked]]
    clips: Sequence[Clip]


def draw_world(rng: np.random.Generator) -> Iterator[tuple[str, Choice, Clip]]:
    """The questions of a scene of the motion world in both formats, and the controls'."""
    scene = scenes.draw_scene_plan(rng)
    draw = partial(scenes.render_scene, scene)
    for choice in scenes.motionbench_choices(scene, rng):
        yield f"MotionBench {choice.task}", choice, draw
    for choice in scenes.favor_choices(scene, rng):
        yield f"FAVOR {choice.task}", choice, draw
    if scene.kind == "one":
        yield "control place", *plant_place(scene, rng)
        actor = scene.actors[0]
        choice = plant_options(rng, f"What does {actor.name} do?", actor.deed)
        yield "control options", choice, draw


def plant_place(scene: Scene, rng: np.random.Generator) -> tuple[Choice, Clip]:
    """A scene in which each action has its own start."""
    actor = scene.actors[0]
    known = (*scenes.MOVES, scenes.STILL, *scenes.TURNS)  # what a scene of one actor shows
    x_px = (known.index(actor.deed) + 0.5) * scenes.FRAME_PX / len(known)
    planted = replace(scene, actors=(replace(actor, x_px=x_px),))
    choice = scenes.make_choice(rng, "", f"What does {actor.name} do?", actor.deed, known, 4)
    return choice, partial(scenes.render_scene, planted)


def plant_options(rng: np.random.Generator, text: str, deed: str) -> Choice:
    """Two wrong options share a half each with the right one; the last shares none."""
    second, *others = rng.permutation([move for move in scenes.MOVES if move != deed])[:5].tolist()
    wrong = [f"{deed}, then {others[0]}", f"{others[1]}, then {second}", f"{others[2]}, then {others[3]}"]
    return scenes.make_choice(rng, "", text, f"{deed}, then {second}", wrong, 4)


def draw_mini(rng: np.random.Generator) -> Iterator[tuple[str, Choice, Clip]]:
    """A mini action of each group; the options are the group's classes."""
    for group in actions.GROUPS:
        names = [name for name, own in actions.CLASSES.items() if own == group]
        name = str(rng.choice(names))
        still, motion = actions.draw_still(rng), actions.draw_motion(rng, name)

        def draw(fps: float, still: Any = still, motion: Any = motion) -> Frames:
            return actions.render_action(still, motion)

        yield f"mini {group}", Choice("", "What happens?", tuple(names), name), draw


def draw_segments(rng: np.random.Generator) -> Iterator[tuple[str, Choice, Clip]]:
    """A clip of motion segments of each group; they are never files."""
    for group in segments.SEGMENT_GROUPS:
        names = [name for name, own in segments.SEGMENT_CLASSES.items() if own == group]
        name = str(rng.choice(names))
        scene = segments.draw_segments(rng, name)

        def draw(fps: float, scene: Any = scene) -> Frames:
            return segments.render_segments(scene)

        yield f"segments {group}", Choice("", "What happens?", tuple(names), name), draw


TASKS = (
    *(f"MotionBench {task}" for task in MOTIONBENCH_TASKS),
    *(f"FAVOR {task}" for task in FAVOR_TASKS),
    *(f"mini {group}" for group in actions.GROUPS),
    *(f"segments {group}" for group in segments.SEGMENT_GROUPS),
)
SOURCES: dict[str, Draw] = {"MotionBench": draw_world, "FAVOR": draw_world, "control": draw_world}
SOURCES |= {"mini": draw_mini, "segments": draw_segments}


def draw_questions(draw: Draw, tasks: Sequence[str], count: int, seed: Sequence[int]) -> Drawn:
    """At least `count` questions of each task (fewer of very rare ones), with the shares of the world."""
    rng = np.random.default_rng(seed)
    questions: dict[str, list[Asked]] = {task: [] for task in tasks}
    clips: list[Clip] = []
    numbers: dict[int, int] = {}
    plans = 0
    while plans < MOST_PLANS * count and any(len(asked) < count for asked in questions.values()):
        plans += 1
        numbers.clear()
        for task, choice, clip in draw(rng):
            if task not in questions or len(questions[task]) >= count:
                continue
            if id(clip) not in numbers:
                numbers[id(clip)] = len(clips)
                clips.append(clip)
            right = choice.options.index(choice.answer)
            questions[task].append(Asked(choice.text, choice.options, right, numbers[id(clip)]))
    if empty := [task for task, asked in questions.items() if len(asked) < 2]:
        raise ValueError(f"{', '.join(empty)}: not asked in {plans:,} scenes; raise --train and --test")
    return Drawn(questions, clips)


def render(clips: Sequence[Clip]) -> Tensor:
    """The frames that a model would see, small: (N, T, 3, SIDE_PX, SIDE_PX) uint8."""
    drawn = []
    for clip in show_progress(clips, len(clips), "clips drawn"):
        frames = torch.from_numpy(clip(SAMPLE_FPS)).permute(0, 3, 1, 2).float()
        drawn.append(F.interpolate(frames, (SIDE_PX, SIDE_PX), mode="area").byte())
    return torch.stack(drawn)


def measure_files(clips: Sequence[Clip], wanted: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Of the wanted clips as files: frames and duration (N, 2), bytes of file and header (N, 2), others 0."""
    lengths, sizes = torch.zeros(len(clips), 2), torch.zeros(len(clips), 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        for number in show_progress(wanted, len(wanted), "files written"):
            write_clip(clips[number](FILE_FPS), path, alike_in_size=True)
            with av.open(str(path)) as container:
                packets = [p.size for p in container.demux(video=0) if p.size]
                lengths[number] = torch.tensor([len(packets), (container.duration or 0) / av.time_base])
            size = path.stat().st_size
            sizes[number] = torch.tensor([size, size - sum(packets)]).log()
    return lengths, sizes
