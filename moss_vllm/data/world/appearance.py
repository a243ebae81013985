"""Sights to pre-train the miniature: pictures and clips with captions and questions about appearance only.

A sight tells a scene of the motion world by printed signs: the circle that `moves left slowly` carries an
arrow, and where the camera or the background moves, the wall is papered with arrows the way it goes. So a
model learns every word and every question of the motion world as something to *see* in a frame. In clips the
things and the wall move at random, independent of their signs: no label depends on motion. What has no sign
is not asked about.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moss_vllm.data.world import scenes as world
from moss_vllm.data.world.drawing import THING_COLOURS, THING_SHAPES, Thing, Wall, draw_wall
from moss_vllm.data.world.scenes import DRIFTS, FRAME_PX, MOVES, SCENE_KINDS, STILL, Actor, Choice, Scene

GLYPHS = {
    **{move: f"{move.split()[1]} {move.split()[2]}".removesuffix(" slowly") for move in MOVES},
    **{turn: turn.split()[1] for turn in world.TURNS},
    **{shake: shake.split()[1] for shake in world.SHAKES},
    STILL: "still",
}
CELL_PX = 28  # one token: a block of 2 x 2 patches of 14 px
CELLS = (FRAME_PX // CELL_PX) ** 2  # of a frame
# Where the wall goes in the picture: a camera that moves left shows it moving right.
WALL_GLYPHS = {
    "background": {drift: drift.split()[1] for drift in DRIFTS},
    "camera": {
        drift: seen.split()[1]
        for drift, seen in zip(DRIFTS, [DRIFTS[i] for i in (1, 0, 3, 2, 4)], strict=True)
    },
}
LOOKS = ("count", "object", "colour", "shape", "place")  # tasks whose answers are no signs
PLAIN_SHARE = 0.25  # of sights in which nothing has a sign
CAMERA_SHARE = 0.3  # of the other sights, in which the wall has a sign
# Of sights to read: to tell one thing from another beside it takes most of the practice.
TOLD_APART_KINDS = {
    "one": 8,
    "two": 30,
    "order": 14,
    "camera": 6,
    "shake": 6,
    "which": 12,
    "half": 20,
    "background": 4,
}


@dataclass(frozen=True)
class Sight:
    """One picture or clip with its caption and its questions."""

    frames: NDArray[np.uint8]  # (T, H, W, 3)
    caption: str
    choices: tuple[Choice, ...]
    cells: tuple[str, ...]  # the contents of each 28 x 28 px cell: frames, rows, columns, flattened


def draw_sight(
    rng: np.random.Generator, *, frames: int, fps: float = 2.0, kinds: Mapping[str, float] = SCENE_KINDS
) -> Sight:
    """A random picture (`frames=1`) or clip, its caption and its questions; `kinds` as of a scene."""
    scene = _plain(rng, frames) if rng.random() < PLAIN_SHARE else _signed(rng, frames, kinds)
    wall = _wall_statement(scene)
    painted = _compose(rng, scene, wall, frames, fps)
    return Sight(
        draw_wall(painted, FRAME_PX),
        _caption(rng, scene, wall),
        _choices(rng, scene, wall),
        _cells(painted, scene, wall),
    )


def _plain(rng: np.random.Generator, frames: int) -> Scene:
    """One to three things without signs; in half of the pictures of one or two, each keeps to a side."""
    count = int(rng.integers(1, 4))
    actors = world.place_actors(rng, [()] * count)
    if frames == 1 and count <= 2 and rng.random() < 0.7:
        axis, sides = ("x_px", world.SIDES[:2]) if rng.random() < 0.5 else ("y_px", world.SIDES[2:])
        order = rng.permutation(2)[:count]
        actors = [
            replace(actor, **{axis: FRAME_PX * (0.25 + 0.5 * place)}, side=sides[place])
            for actor, place in zip(actors, order.tolist(), strict=True)
        ]
    return Scene("plain", int(rng.integers(2**31)), tuple(actors), camera="")


def _signed(rng: np.random.Generator, frames: int, kinds: Mapping[str, float]) -> Scene:
    """A scene whose deeds are signs; half of the things that stay still beside another have none."""
    scene = world.draw_scene_plan(rng, kinds)
    while frames == 1 and scene.kind == "order":  # a picture shows one sign a thing
        scene = world.draw_scene_plan(rng, kinds)
    if scene.kind not in ("camera", "background"):
        drift = str(rng.choice(DRIFTS)) if rng.random() < CAMERA_SHARE else ""
        scene = replace(scene, camera=drift)
    elif scene.kind == "background":
        scene = replace(scene, camera="")
    if scene.kind == "one":
        return scene
    return replace(
        scene,
        actors=tuple(
            replace(actor, actions=()) if actor.deed == STILL and rng.random() < 0.5 else actor
            for actor in scene.actors
        ),
    )


def _wall_statement(scene: Scene) -> tuple[str, str]:
    """(subject, drift) of the wall's sign; ("", "") for a plain wall."""
    if scene.kind == "background":
        return "background", scene.background
    return ("camera", scene.camera) if scene.camera else ("", "")


def _compose(rng: np.random.Generator, scene: Scene, wall: tuple[str, str], frames: int, fps: float) -> Wall:
    times_s = np.arange(frames, dtype=np.float32) / fps
    things = []
    for actor in scene.actors:
        upright = actor.side in world.SIDES[:2]  # a thing with a side keeps to it
        free = [m for m in MOVES if not actor.side or (world.axis_of(m) == "y") == upright]
        moving = replace(actor, actions=(world.pick(rng, [*free, STILL, *world.TURNS]),))
        x, y, angle = world.motion_path(moving, times_s, rng)
        signed = bool(actor.actions)
        things.append(
            Thing(
                actor.shape,
                actor.colour,
                rng.uniform(15, 18) if signed else rng.uniform(11.5, 15.5),
                actor.x_px + x,
                actor.y_px + y,
                rng.uniform(-0.15, 0.15) + angle * 0 if signed else rng.uniform(0, 2 * np.pi) + angle,
                rng.uniform(0, 2 * np.pi),
                tuple(GLYPHS[action] for action in actor.actions),
            )
        )
    drift = world.drift_path(str(rng.choice(DRIFTS)), times_s)
    subject, says = wall
    glyph = WALL_GLYPHS[subject][says] if subject else ""
    return Wall(scene.seed, *drift, glyph, subject == "background", tuple(things))


def _cells(painted: Wall, scene: Scene, wall: tuple[str, str]) -> tuple[str, ...]:
    frames = len(painted.x_px)
    centres = (np.arange(FRAME_PX // CELL_PX) + 0.5) * CELL_PX
    paper = f" {' '.join(wall)}" if wall[0] else " wall plain"
    cells = []
    for t in range(frames):
        for y in centres:
            for x in centres:
                contents = []
                for thing, actor in zip(painted.things, scene.actors, strict=True):
                    gap = [
                        abs((a - b + FRAME_PX / 2) % FRAME_PX - FRAME_PX / 2)
                        for a, b in ((x, thing.x_px[t]), (y, thing.y_px[t]))
                    ]
                    if max(gap) < CELL_PX / 2 + 4:
                        deeds = actor.actions
                        shown = f" {deeds[t * len(deeds) // frames]}" if deeds else ""
                        contents.append(f" {thing.colour} {thing.shape}{shown}")
                cells.append("".join(contents) or paper)
    return tuple(cells)


def _caption(rng: np.random.Generator, scene: Scene, wall: tuple[str, str]) -> str:
    sentences = []
    for actor in scene.actors:
        name = f"{actor.name} {actor.side}".strip()
        sentences.append(
            f"{name} {actor.deed}." if actor.actions else f"there is a {name.removeprefix('the ')}."
        )
    sentences.append(f"the {' '.join(wall)}." if wall[0] else "the wall is plain.")
    return " ".join(sentences[i][0].upper() + sentences[i][1:] for i in rng.permutation(len(sentences)))


def _choices(rng: np.random.Generator, scene: Scene, wall: tuple[str, str]) -> tuple[Choice, ...]:
    """Every question that this sight can answer, in random order."""
    choices = list(_looks(rng, scene.actors))
    if scene.kind != "plain":
        asked = [*world.motionbench_choices(scene, rng), *world.favor_choices(scene, rng)]
        camera = f"the camera {scene.camera}"  # a second right option of "What happens in the video?"
        choices += [
            choice
            for choice in asked
            if choice.task not in ("CM", "NSM") and (camera == choice.answer or camera not in choice.options)
        ]
    for actor in scene.actors:
        if len(actor.actions) == 1:
            text, options = f"What does {actor.name} do?", (*MOVES, STILL, *world.TURNS, actor.deed)
            choices.append(world.make_choice(rng, "MR", text, actor.deed, options, int(rng.integers(4, 6))))
    if wall[0]:
        task = "NSM" if wall[0] == "background" else "CM"
        choices.append(world.make_choice(rng, task, f"What does the {wall[0]} do?", wall[1], DRIFTS, 5))
    return tuple(choices[i] for i in rng.permutation(len(choices)))


def _looks(rng: np.random.Generator, actors: Sequence[Actor]) -> list[Choice]:
    """Questions whose answers are no signs, of the tasks in `LOOKS`."""
    count = int(rng.integers(3, 6))

    def ask(task: str, text: str, answer: str, options: Sequence[str], shown: int = 0) -> None:
        choices.append(world.make_choice(rng, task, text, answer, options, shown or count))

    choices: list[Choice] = []
    names = [actor.name for actor in actors]
    numbers = [f"{n} object" + "s" * (n > 1) for n in (1, 2, 3)]
    ask("count", "How many objects are there?", numbers[len(actors) - 1], numbers, 3)
    anyone = [
        f"the {c} {s}"
        for c, s in zip(rng.permutation(list(THING_COLOURS)), rng.permutation(THING_SHAPES), strict=False)
    ]
    ask("object", "Which object is there?", names[0], [n for n in anyone if n not in names])
    for actor in actors:
        ask("colour", f"What colour is the {actor.shape}?", actor.colour, list(THING_COLOURS))
        shapes = [f"the {s}" for s in THING_SHAPES]
        ask("shape", f"What shape is {actor.colour}?", f"the {actor.shape}", shapes)
        if actor.side:
            pair = world.SIDES[:2] if actor.side in world.SIDES[:2] else world.SIDES[2:]
            ask("place", f"Where is {actor.name}?", actor.side, (*pair, "on both sides"), 3)
    return choices
