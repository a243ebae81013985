"""Sights to pre-train the miniature: pictures and clips with captions and questions about appearance only.

Things carry printed signs ("the red circle says moves left slowly": an arrow) and the wall may be papered
with arrows, so that a model learns every word of the motion world as something to *see* in a frame. Things in
clips move at random, independent of their signs: no label depends on motion.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moss_vllm.data.world import scenes as world
from moss_vllm.data.world.drawing import THING_COLOURS, THING_SHAPES, Thing, Wall, draw_wall
from moss_vllm.data.world.scenes import ACTIONS, DRIFTS, FRAME_PX, MOVES, STILL, Choice

GLYPHS = {
    **{move: f"{move.split()[1]} {move.split()[2]}".removesuffix(" slowly") for move in MOVES},
    **{turn: turn.split()[1] for turn in world.TURNS},
    **{shake: shake.split()[1] for shake in world.SHAKES},
    STILL: "still",
}
CELL_PX = 28  # one token: a block of 2 x 2 patches of 14 px
WALL_GLYPHS = {drift: drift.split()[1] for drift in DRIFTS}


@dataclass(frozen=True)
class Sight:
    """One picture or clip with its caption and its questions."""

    frames: NDArray[np.uint8]  # (T, H, W, 3)
    caption: str
    choices: tuple[Choice, ...]
    cells: tuple[str, ...]  # the contents of each 28 x 28 px cell: frames, rows, columns, flattened


def draw_sight(rng: np.random.Generator, *, frames: int, fps: float = 2.0) -> Sight:
    """A random picture (`frames=1`) or clip, its caption and its questions."""
    count = int(rng.integers(1, 4)) if rng.random() < 0.4 else int(rng.integers(1, 3))
    actors = world.place_actors(rng, [(STILL,)] * count)
    sided = frames == 1 and count <= 2 and rng.random() < 0.5
    if sided:
        axis, sides = ("x_px", world.SIDES[:2]) if rng.random() < 0.5 else ("y_px", world.SIDES[2:])
        order = rng.permutation(2)[:count]
        actors = [
            replace(actor, **{axis: FRAME_PX * (0.25 + 0.5 * place)}, side=sides[place])
            for actor, place in zip(actors, order.tolist(), strict=True)
        ]
    signs = [_saying(rng, frames) for _ in actors]
    wall = str(rng.choice(DRIFTS)) if rng.random() < 0.35 else ""
    painted = _compose(rng, actors, signs, wall, frames, fps)
    return Sight(
        draw_wall(painted, FRAME_PX),
        _caption(rng, actors, signs, wall),
        tuple(_choices(rng, actors, signs, wall)),
        _cells(painted, signs, wall),
    )


def _saying(rng: np.random.Generator, frames: int) -> tuple[str, ...]:
    """The actions that a thing's sign shows, one after the other: none, one or two."""
    chance = rng.random()
    if chance < 0.25:
        return ()
    if chance < 0.6 or frames == 1:
        return (str(rng.choice(ACTIONS)),)
    first, second = rng.choice(MOVES, 2, replace=False)
    return (str(first), str(second))


def _compose(
    rng: np.random.Generator,
    actors: Sequence[world.Actor],
    signs: Sequence[tuple[str, ...]],
    wall: str,
    frames: int,
    fps: float,
) -> Wall:
    times_s = np.arange(frames, dtype=np.float32) / fps
    things = []
    for actor, says in zip(actors, signs, strict=True):
        moving = replace(actor, actions=(str(rng.choice(ACTIONS)),))
        x, y, angle = world.motion_path(moving, times_s, rng)
        things.append(
            Thing(
                actor.shape,
                actor.colour,
                rng.uniform(14, 17) if says else rng.uniform(11.5, 15.5),
                actor.x_px + x,
                actor.y_px + y,
                angle * (not says) + (rng.uniform(-0.15, 0.15) if says else 0),
                rng.uniform(0, 2 * np.pi),
                tuple(GLYPHS[action] for action in says),
            )
        )
    drift = world.drift_path(str(rng.choice(DRIFTS)), times_s)
    seed = int(rng.integers(2**31))
    return Wall(seed, *drift, WALL_GLYPHS.get(wall, ""), tuple(things))


def _cells(painted: Wall, signs: Sequence[tuple[str, ...]], wall: str) -> tuple[str, ...]:
    frames = len(painted.x_px)
    centres = (np.arange(FRAME_PX // CELL_PX) + 0.5) * CELL_PX
    cells = []
    for t in range(frames):
        for y in centres:
            for x in centres:
                contents = []
                for thing, says in zip(painted.things, signs, strict=True):
                    gap = [
                        abs((a - b + FRAME_PX / 2) % FRAME_PX - FRAME_PX / 2)
                        for a, b in ((x, thing.x_px[t]), (y, thing.y_px[t]))
                    ]
                    if max(gap) < CELL_PX / 2 + 4:
                        saying = f" says {says[t * len(says) // frames]}" if says else ""
                        contents.append(f" {thing.colour} {thing.shape}{saying}")
                cells.append("".join(contents) or (f" wall says {wall}" if wall else " wall plain"))
    return tuple(cells)


def _caption(
    rng: np.random.Generator, actors: Sequence[world.Actor], signs: Sequence[tuple[str, ...]], wall: str
) -> str:
    sentences = []
    for actor, says in zip(actors, signs, strict=True):
        name = f"{actor.name} {actor.side}".strip()
        sentences.append(
            f"{name} says {', then '.join(says)}." if says else f"there is a {name.removeprefix('the ')}."
        )
    sentences.append(f"the wall says {wall}." if wall else "the wall is plain.")
    return " ".join(sentences[i][0].upper() + sentences[i][1:] for i in rng.permutation(len(sentences)))


def _choices(
    rng: np.random.Generator, actors: Sequence[world.Actor], signs: Sequence[tuple[str, ...]], wall: str
) -> list[Choice]:
    """Every question that this sight can answer, in random order."""
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
    talking = [(a, s) for a, s in zip(actors, signs, strict=True) if s]
    for actor, says in zip(actors, signs, strict=True):
        ask("colour", f"What colour is the {actor.shape}?", actor.colour, list(THING_COLOURS))
        ask(
            "shape",
            f"What shape is {actor.colour}?",
            f"the {actor.shape}",
            [f"the {s}" for s in THING_SHAPES],
        )
        if actor.side:
            pair = world.SIDES[:2] if actor.side in world.SIDES[:2] else world.SIDES[2:]
            ask("place", f"Where is {actor.name}?", actor.side, (*pair, "on both sides"), 3)
        if len(says) == 1:
            ask("sign", f"What does {actor.name} say?", says[0], ACTIONS)
        elif says:
            first, second = says
            ask("sign", f"What does {actor.name} say after it says {first}?", second, MOVES)
            ask("sign", f"What does {actor.name} say before it says {second}?", first, MOVES)
            orders = [", then ".join(p) for p in world.other_orders(rng, first, second)]
            ask("sign", f"In which order does {actor.name} speak?", ", then ".join(says), orders, 4)
    if len(actors) == 2 and len(talking) == 1:
        silent = next(a.name for a in actors if a is not talking[0][0])
        ask(
            "sign",
            "Which object speaks?",
            talking[0][0].name,
            [silent, *(n for n in anyone if n not in names)],
        )
        if actors[0].side:
            sides = [a.side for a in actors]
            ask("place", "Where does an object speak?", talking[0][0].side, (*sides, "on both sides"), 3)
    if len(actors) == len(talking) == 2:
        deeds = [", then ".join(s) for _, s in talking]
        texts = [
            world.join_deeds(actors, [f"says {world.pick(rng, ACTIONS)}" for _ in actors]) for _ in range(6)
        ]
        ask(
            "sign",
            "What do the two objects say?",
            world.join_deeds(actors, [f"says {d}" for d in deeds]),
            texts,
        )
        if actors[0].side:
            ask(
                "place",
                "Where does an object speak?",
                "on both sides",
                (*(a.side for a in actors), "on both sides"),
                3,
            )
    if wall:
        ask("wall", "What does the wall say?", wall, DRIFTS, 5)
    if talking and len(talking[0][1]) == 1:
        name, sign = talking[0][0].name, talking[0][1][0]
        false = [f"{name} says {a}" for a in ACTIONS if a != sign]
        false += [f"the wall says {d}" for d in DRIFTS if d != wall]
        ask("sign", "What is said in the video?", f"{name} says {sign}", false)
    return [choices[i] for i in rng.permutation(len(choices))]
