"""The motion world: clips in which only motion answers, written in the real benchmarks' file formats.

A scene is drawn from a seed: a textured wall, one or two textured shapes, and what each does. Everything
moves on a torus from a uniformly drawn position, so no frame and no start or end position tells the answer.
`benchmarks` saves h264 files with FAVOR-Train's captions, FAVOR-Bench's and MotionBench's questions.

    task            MotionBench                 FAVOR-Bench
    which action    Motion Recognition          SAD
    where it moves  Location-related Motion     -
    camera          Camera Motion               CM
    which object    Motion-related Objects      -
    order           Action Order                AS
    count           Repetition Count            -
    whole video     -                           HAC
    two actions     -                           MAD
    background      -                           NSM
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from moss_vllm.data.world.drawing import (
    DIRECTIONS,
    THING_COLOURS,
    THING_SHAPES,
    Array,
    Thing,
    Wall,
    draw_wall,
)

T = TypeVar("T")

DURATION_S = 4.0
FRAME_PX = 84
SPEED_PX_PER_S = {"slowly": 14.0, "quickly": 28.0}  # at 2 frames per second: half a patch and one patch
CAMERA_PX_PER_S = 20.0
TURN_RAD_PER_S = np.pi / 4  # a square that turned by 45 degrees a frame would tell no direction
SHAKE_PX = 10.0
STILL = "stays still"
MOVES = tuple(f"moves {direction} {speed}" for direction in DIRECTIONS for speed in SPEED_PX_PER_S)
TURNS = ("turns clockwise", "turns anticlockwise")
SHAKES = ("shakes 1 time", "shakes 2 times", "shakes 3 times")
ACTIONS = (*MOVES, STILL, *TURNS, *SHAKES)
SIDES = ("on the left", "on the right", "at the top", "at the bottom")
DRIFTS = (*(f"moves {direction}" for direction in DIRECTIONS), STILL)  # of the camera or the background

# Relative frequencies of the kinds of scene, roughly those of the benchmarks' own questions.
SCENE_KINDS = {
    "one": 30,
    "two": 15,
    "order": 20,
    "camera": 12,
    "shake": 8,
    "which": 8,
    "half": 5,
    "background": 4,
}

# The captions to learn from tell more of what is hard: two motions, orders, counts, turns, the camera.
TRAIN_KINDS = {
    "one": 10,
    "turn": 7,
    "two": 20,
    "order": 18,
    "camera": 18,
    "shake": 12,
    "which": 6,
    "half": 6,
    "background": 3,
}


@dataclass(frozen=True)
class Actor:
    """A shape and what it does in consecutive equal parts of the clip."""

    shape: str
    colour: str
    x_px: float
    y_px: float
    actions: tuple[str, ...]
    side: str = ""  # "on the left", where it matters

    @property
    def name(self) -> str:
        """Its name in captions and questions."""
        return f"the {self.colour} {self.shape}"

    @property
    def deed(self) -> str:
        """Its actions in one phrase."""
        return ", then ".join(self.actions)


@dataclass(frozen=True)
class Scene:
    """What happens in a clip: everything a caption or a question can ask."""

    kind: str
    seed: int
    actors: tuple[Actor, ...]
    camera: str = STILL
    background: str = STILL

    @property
    def statements(self) -> list[tuple[str, str]]:
        """(subject, deed) of every subject; camera and background only where they may move.

        In each caption they would nearly always stay still, and a model would learn to say just that.
        """
        pairs = [(f"{actor.name} {actor.side}".strip(), actor.deed) for actor in self.actors]
        moved = {"camera": self.camera, "background": self.background}
        return [*pairs, (f"the {self.kind}", moved[self.kind])] if self.kind in moved else pairs


@dataclass(frozen=True)
class Choice:
    """A multiple-choice question; `task` is a column of this module's table."""

    task: str
    text: str
    options: tuple[str, ...]
    answer: str


def draw_scene_plan(rng: np.random.Generator, kinds: Mapping[str, float] = SCENE_KINDS) -> Scene:
    """Draw what happens, of `kinds` by their shares. Every label is independent of looks and positions."""
    shares = np.array(list(kinds.values()))
    kind = str(rng.choice(list(kinds), p=shares / shares.sum()))
    seed = int(rng.integers(2**31))
    deeds: list[tuple[str, ...]]
    if kind == "one":
        deeds = [(pick(rng, (*MOVES, STILL, *TURNS)),)]
    elif kind == "turn":
        deeds = [(pick(rng, TURNS),)]
    elif kind == "order":
        first = pick(rng, MOVES)
        deeds = [(first, pick(rng, [m for m in MOVES if m.split()[1] != first.split()[1]]))]
    elif kind == "shake":
        deeds = [(pick(rng, SHAKES),)]
    elif kind == "which":
        deeds = [(pick(rng, MOVES),), (STILL,), (STILL,)]
    elif kind in ("two", "half"):
        deeds = [(pick(rng, MOVES),), (pick(rng, MOVES) if kind == "two" else STILL,)]
        if kind == "half" and rng.random() < 1 / 3:  # both move, along the same axis
            deeds[1] = (pick(rng, [m for m in MOVES if axis_of(m) == axis_of(deeds[0][0])]),)
    elif kind in ("camera", "background"):
        deeds = [(STILL,)]
    else:
        raise ValueError(f"unknown kind of scene '{kind}'; known are {', '.join(TRAIN_KINDS)}")
    actors = place_actors(rng, deeds)
    if kind == "half":  # each keeps to its half
        upright = axis_of(actors[0].deed) == "y"
        sides = SIDES[:2] if upright else SIDES[2:]
        placed = zip(actors, rng.permutation(2).tolist(), strict=True)
        halves = [(actor, FRAME_PX * (0.25 + 0.5 * half), sides[half]) for actor, half in placed]
        actors = [
            replace(a, side=side, x_px=at if upright else a.x_px, y_px=a.y_px if upright else at)
            for a, at, side in halves
        ]
    order = rng.permutation(len(actors))
    return Scene(
        kind,
        seed,
        tuple(actors[i] for i in order),
        camera=pick(rng, DRIFTS) if kind == "camera" else STILL,
        background=pick(rng, DRIFTS) if kind == "background" else STILL,
    )


def render_scene(scene: Scene, fps: float, *, size_px: int = FRAME_PX) -> NDArray[np.uint8]:
    """Draw the clip at `fps` frames per second.

    Shape:
        returns: (T, size_px, size_px, 3) uint8, T = fps * 4 s.
    """
    times_s = np.arange(round(DURATION_S * fps), dtype=np.float32) / fps
    scale = size_px / FRAME_PX
    rng = np.random.default_rng(scene.seed)
    # The camera moving left shows the whole world moving right.
    camera_x, camera_y = (-c for c in drift_path(scene.camera, times_s))
    wall_x, wall_y = drift_path(scene.background, times_s)
    things = []
    for actor in scene.actors:
        x, y, angle = motion_path(actor, times_s, rng)
        x, y = actor.x_px + x + camera_x, actor.y_px + y + camera_y
        radius, phase = rng.uniform(11.5, 14.5), rng.uniform(0, 2 * np.pi)
        angle = angle + rng.uniform(0, 2 * np.pi)  # no single frame tells what turns
        things.append(Thing(actor.shape, actor.colour, radius * scale, x * scale, y * scale, angle, phase))
    # The wall's noise has a lattice; starting anywhere, it does not tell in one frame how far it has gone.
    start_x, start_y = np.random.default_rng((scene.seed, 1)).uniform(0, FRAME_PX, 2)
    wall_x, wall_y = (start_x + wall_x + camera_x) * scale, (start_y + wall_y + camera_y) * scale
    wall = Wall(scene.seed, wall_x, wall_y, things=tuple(things))
    return draw_wall(wall, size_px)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """What moves and how: a sentence per subject, in random order."""
    sentences = [f"{subject} {deed}." for subject, deed in scene.statements]
    return " ".join(sentences[i][0].upper() + sentences[i][1:] for i in rng.permutation(len(sentences)))


def motionbench_choices(scene: Scene, rng: np.random.Generator) -> list[Choice]:
    """The questions MotionBench's six types ask of this scene."""
    actor = scene.actors[0]
    if scene.kind in ("one", "turn"):
        return [make_choice(rng, "MR", f"What does {actor.name} do?", actor.deed, (*MOVES, STILL, *TURNS), 4)]
    if scene.kind == "two":
        return [make_choice(rng, "MR", f"What does {a.name} do?", a.deed, MOVES, 4) for a in scene.actors]
    if scene.kind == "order":
        first, second = actor.actions
        orders = [", then ".join(pair) for pair in other_orders(rng, first, second)]
        return [make_choice(rng, "AO", f"In which order does {actor.name} move?", actor.deed, orders, 4)]
    if scene.kind == "camera":
        return [make_choice(rng, "CM", "What does the camera do?", scene.camera, DRIFTS, 5)]
    if scene.kind == "shake":
        return [make_choice(rng, "RC", f"How often does {actor.name} shake?", actor.deed, SHAKES, 3)]
    if scene.kind == "half":
        movers = [a.side for a in scene.actors if a.deed != STILL]
        sides = [a.side for a in scene.actors]
        answer = movers[0] if len(movers) == 1 else "on both sides"
        return [make_choice(rng, "LM", "Where does an object move?", answer, (*sides, "on both sides"), 3)]
    if scene.kind == "which":
        mover, *others = sorted(scene.actors, key=lambda a: a.deed == STILL)
        names = [actor.name for actor in others]  # no absent one, which a look would rule out
        return [make_choice(rng, "MO", "Which object moves?", mover.name, names, 3)]
    return []  # MotionBench asks nothing about the background


def favor_choices(scene: Scene, rng: np.random.Generator) -> list[Choice]:
    """The questions FAVOR-Bench's six tasks ask of this scene, with five options each."""
    actor, camera = scene.actors[0], f"the camera {scene.camera}"
    choices = []
    if scene.kind == "camera":
        choices = [make_choice(rng, "CM", "What does the camera do?", scene.camera, DRIFTS, 5)]
    if scene.kind == "order":
        first, second = actor.actions
        for told, asked, when in ((first, second, "after"), (second, first, "before")):
            turned = [move for move in MOVES if move.split()[1] != told.split()[1]]
            text = f"What does {actor.name} do {when} it {told}?"
            choices.append(make_choice(rng, "AS", text, asked, turned, 5))
    if scene.kind in ("one", "turn"):
        choices.append(
            make_choice(rng, "SAD", f"What does {actor.name} do?", actor.deed, (*MOVES, STILL, *TURNS), 5)
        )
    if scene.kind == "two":
        texts = [join_deeds(scene.actors, [a.deed for a in scene.actors])]
        texts += [join_deeds(scene.actors, [pick(rng, MOVES) for _ in scene.actors]) for _ in range(12)]
        choices.append(make_choice(rng, "MAD", "What do the two objects do?", texts[0], texts[1:], 5))
    if scene.kind in ("one", "turn", "camera", "shake"):
        event = camera if scene.kind == "camera" and scene.camera != STILL else f"{actor.name} {actor.deed}"
        moving = [f"the camera {d}" for d in DRIFTS[:-1]] + [
            f"{actor.name} {a}" for a in (*TURNS, *SHAKES, *MOVES)
        ]
        if event != f"{actor.name} {STILL}":
            choices.append(make_choice(rng, "HAC", "What happens in the video?", event, moving, 5))
    if scene.kind == "background":
        choices.append(make_choice(rng, "NSM", "What does the background do?", scene.background, DRIFTS, 5))
    return choices


def place_actors(rng: np.random.Generator, deeds: Sequence[tuple[str, ...]]) -> list[Actor]:
    """Actors of different colours and shapes at positions that do not overlap at the start."""
    colours = rng.permutation(list(THING_COLOURS))[: len(deeds)]
    shapes = rng.permutation(THING_SHAPES)[: len(deeds)]
    first = rng.uniform(0, FRAME_PX, 2)
    apart, jitter = FRAME_PX / max(2, len(deeds)), 8 if len(deeds) < 3 else 3
    places = [(first + i * apart + rng.uniform(-jitter, jitter, 2)) % FRAME_PX for i in range(len(deeds))]
    return [
        Actor(str(shape), str(colour), float(x), float(y), deed)
        for shape, colour, (x, y), deed in zip(shapes, colours, places, deeds, strict=True)
    ]


def motion_path(actor: Actor, times_s: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Offset from the start in pixels (x, y) and angle in radians, per frame."""
    x, y, angle = np.zeros_like(times_s), np.zeros_like(times_s), np.zeros_like(times_s)
    part_s = DURATION_S / len(actor.actions)
    axis = pick(rng, [(1, 0), (0, 1)])
    for index, action in enumerate(actor.actions):
        spent_s = np.clip(times_s - index * part_s, 0, part_s)
        verb, *adverbs = action.split()
        if verb == "moves":
            (dx, dy), speed = DIRECTIONS[adverbs[0]], SPEED_PX_PER_S[adverbs[1]]
            x, y = x + dx * speed * spent_s, y + dy * speed * spent_s
        elif verb == "turns":
            angle = angle + (1 if adverbs[0] == "clockwise" else -1) * TURN_RAD_PER_S * spent_s
        elif verb == "shakes":
            swing = SHAKE_PX * np.sin(2 * np.pi * int(adverbs[0]) * spent_s / part_s)
            x, y = x + axis[0] * swing, y + axis[1] * swing
    return x, y, angle


def drift_path(drift: str, times_s: Array) -> tuple[Array, Array]:
    """Offset in pixels (x, y) of what drifts, per frame."""
    dx, dy = (0, 0) if drift == STILL else DIRECTIONS[drift.split()[1]]
    return dx * CAMERA_PX_PER_S * times_s, dy * CAMERA_PX_PER_S * times_s


def other_orders(rng: np.random.Generator, first: str, second: str) -> list[tuple[str, str]]:
    """Wrong orders: the reversed one, and one of the two steps with a third, both ways round.

    So the texts of the four do not tell which is right: each could have been drawn around any other.
    """
    others = [m for m in MOVES if m.split()[1] not in (first.split()[1], second.split()[1])]
    third, kept = pick(rng, others), pick(rng, (first, second))
    return [(second, first), (kept, third), (third, kept)]


def join_deeds(actors: Sequence[Actor], deeds: Sequence[str]) -> str:
    """Both subjects and their deeds, in one sentence."""
    return " and ".join(f"{actor.name} {deed}" for actor, deed in zip(actors, deeds, strict=True))


def make_choice(
    rng: np.random.Generator, task: str, text: str, answer: str, options: Sequence[str], count: int
) -> Choice:
    """A question with `count` options, the answer among them, in random order."""
    wrong = [option for option in dict.fromkeys(options) if option != answer]
    if len(wrong) > count - 1:
        wrong = [str(w) for w in rng.permutation(wrong)[: count - 1]]
    shown = rng.permutation([answer, *wrong])
    return Choice(task, text, tuple(str(option) for option in shown), answer)


def axis_of(action: str) -> str:
    """The axis of a move, x or y."""
    return "x" if action.split()[1] in ("left", "right") else "y"


def pick(rng: np.random.Generator, values: Sequence[T]) -> T:
    """Draw one of `values`, of any type."""
    return values[int(rng.integers(len(values)))]
