"""Owns: in the motion world only motion tells the answer, one seed gives one world, the readers read it."""

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from moss_vllm.data.favor import FAVOR_TASKS, read_favor_bench, read_favor_train
from moss_vllm.data.motionbench import MOTIONBENCH_TASKS, read_motionbench
from moss_vllm.data.world import benchmarks
from moss_vllm.data.world import scenes as synthetic
from moss_vllm.data.world.benchmarks import WorldSize, ensure_world
from moss_vllm.data.world.drawing import DIRECTIONS, THING_COLOURS
from moss_vllm.data.world.scenes import (
    DURATION_S,
    FRAME_PX,
    MOVES,
    SCENE_KINDS,
    SPEED_PX_PER_S,
    STILL,
    TURNS,
    Scene,
)
from moss_vllm.video.clip import Sampling, read_clip
from moss_vllm.video.write import FILE_FPS, write_clip

TINY = WorldSize(train_clips=2, motionbench_questions=2, withheld_questions=1, favor_questions=2)


def scenes(kind, count, seed=0):
    rng = np.random.default_rng(seed)
    return [synthetic.draw_scene_plan(rng, {kind: 1}) for _ in range(count)]


# ---- nothing but motion tells


def movers():
    """(group, direction, actor) of scenes in which something moves; each group is tested by itself."""
    found = [("one", s.actors[0], 0) for s in scenes("one", 2000) if s.actors[0].deed in MOVES]
    found += [("two", actor, 0) for s in scenes("two", 1000) for actor in s.actors]
    found += [(f"order {n}", s.actors[0], n) for s in scenes("order", 1500) for n in (0, 1)]
    return [(group, actor.actions[n].split()[1], actor) for group, actor, n in found]


def end_of(actor):
    """Where it is when the clip ends, on the torus."""
    x, y = actor.x_px, actor.y_px
    for action in actor.actions:
        _, direction, speed = action.split()
        way = SPEED_PX_PER_S[speed] * DURATION_S / len(actor.actions)
        x, y = x + DIRECTIONS[direction][0] * way, y + DIRECTIONS[direction][1] * way
    return x % FRAME_PX, y % FRAME_PX


@pytest.mark.parametrize("place", ["start", "end"])
def test_start_and_end_positions_say_nothing_about_the_direction(place):
    cells = defaultdict(Counter)
    for group, direction, actor in movers():
        x, y = (actor.x_px, actor.y_px) if place == "start" else end_of(actor)
        cells[group, direction, "x"][int(x % FRAME_PX // 21)] += 1
        cells[group, direction, "y"][int(y % FRAME_PX // 21)] += 1
    assert len(cells) == 4 * 4 * 2
    for which, counts in cells.items():
        seen = np.array([counts[cell] for cell in range(4)])
        expected = seen.sum() / 4
        # chi-square with 3 degrees of freedom is below 21 in 99.99 % of uniform draws.
        assert ((seen - expected) ** 2 / expected).sum() < 21, (which, seen)


def test_colours_and_shapes_say_nothing_about_the_direction():
    for look in ("colour", "shape"):
        counts = Counter((direction, getattr(actor, look)) for _, direction, actor in movers())
        looks = sorted({value for _, value in counts})
        assert len(looks) == (6 if look == "colour" else 5)
        table = np.array([[counts[d, value] for value in looks] for d in DIRECTIONS])
        expected = table.sum(0) * table.sum(1, keepdims=True) / table.sum()
        assert ((table - expected) ** 2 / expected).sum() < 45  # 15 or 12 degrees of freedom


def test_every_action_is_drawn_equally_often():
    drawn = Counter(scene.actors[0].deed for scene in scenes("one", 3300))
    assert set(drawn) == {*MOVES, STILL, *TURNS}
    assert all(abs(count - 300) < 6 * 300**0.5 for count in drawn.values())


def test_single_frames_of_opposite_moves_are_the_same_set():
    """Both directions, all start positions: frame t of one is a frame of the other, on the same wall."""
    (scene,) = scenes("one", 1)
    actor = replace(scene.actors[0], x_px=10.0, actions=("moves right quickly",))
    there = synthetic.render_scene(replace(scene, actors=(actor,)), 2.0)
    back = replace(actor, x_px=10.0 + 28.0 * 3.5, actions=("moves left quickly",))
    again = synthetic.render_scene(replace(scene, actors=(back,)), 2.0)
    assert np.abs(there[::-1].astype(int) - again.astype(int)).max() <= 1
    assert np.abs(there.astype(int) - again.astype(int)).max() > 50


def test_the_right_option_is_as_often_first_as_last():
    rng = np.random.default_rng(0)
    places, options = Counter(), Counter()
    for scene in scenes("one", 2000):
        (choice,) = synthetic.motionbench_choices(scene, rng)
        assert len(set(choice.options)) == 4 and choice.answer in choice.options
        places[choice.options.index(choice.answer)] += 1
        options.update(choice.options)
    assert all(abs(places[place] - 500) < 120 for place in range(4))
    assert max(options.values()) < 1.5 * min(options.values())  # no option is only ever wrong


def test_the_texts_of_four_orders_do_not_tell_the_right_one():
    """Each of the four shares as many steps with the others, whichever is right; so with every question."""
    rng = np.random.default_rng(0)
    shared = Counter()
    for scene in scenes("order", 400):
        (choice,) = synthetic.motionbench_choices(scene, rng)
        pairs = [tuple(option.split(", then ")) for option in choice.options]
        assert len(set(pairs)) == 4 and all((b, a) in pairs for a, b in pairs)
        shared[sum(set(choice.answer.split(", then ")) == set(pair) for pair in pairs)] += 1
    assert shared == {2: 400}  # the right pair and its reverse, beside one other pair and its reverse


@pytest.mark.parametrize(
    ("kind", "task"), [("two", "MR"), ("order", "AS"), ("background", "NSM"), ("half", "LM")]
)
def test_every_option_of_a_task_is_as_often_right_as_it_is_offered(kind, task):
    rng = np.random.default_rng(0)
    right, offered = Counter(), Counter()
    for scene in scenes(kind, 3000):
        for choice in (*synthetic.motionbench_choices(scene, rng), *synthetic.favor_choices(scene, rng)):
            if choice.task == task:
                right[choice.answer] += 1
                offered.update(choice.options)
    shares = [right[option] / offered[option] for option in offered]
    assert max(shares) < 1.25 * min(shares)


def test_no_frame_tells_by_its_angle_what_turns():
    """Triangles of still and of turning scenes lie at every angle, in every frame."""
    drawn = []
    for scene in scenes("one", 40):
        actor = replace(scene.actors[0], shape="triangle", x_px=42.0, y_px=42.0, actions=(STILL,))
        drawn.append(synthetic.render_scene(replace(scene, actors=(actor,)), 2.0)[0])
    upright = [frame[56, 32:53].astype(float).sum(-1).mean() for frame in drawn]
    assert np.std(upright) > 20


def test_no_frame_tells_by_the_walls_lattice_how_far_it_went():
    """The noise of a wall has a lattice of 12 px; where it lies in the last frame tells no direction."""
    lattice = np.exp(2j * np.pi * np.arange(FRAME_PX) / 12)
    phases = []
    for seed in range(200):
        last = synthetic.render_scene(Scene("camera", seed, (), camera="moves left"), 2.0)[-1].astype(float)
        slopes = abs(last - np.roll(last, 1, axis=1)).sum((0, -1))  # steepest halfway between two nodes
        phases.append(np.angle((slopes * lattice).sum()))
    assert abs(np.exp(1j * np.array(phases)).mean()) < 0.25


# ---- what is drawn is what is said


def centre(frame, empty):
    """Where the object is (x, y): the middle, on the torus, of what differs from the empty wall."""
    weights = np.abs(frame.astype(float) - empty).sum(-1) > 60
    angles = np.arange(FRAME_PX) * 2 * np.pi / FRAME_PX
    return [
        np.angle((weights.sum(axis) * np.exp(1j * angles)).sum()) * FRAME_PX / 2 / np.pi for axis in (0, 1)
    ]


def steps_of(scene):
    """How far its object moves (x, y) from each frame to the next, at 2 frames per second."""
    frames, wall = (synthetic.render_scene(s, 2.0) for s in (scene, replace(scene, actors=())))
    places = np.array([centre(frame, empty) for frame, empty in zip(frames, wall, strict=True)])
    return (np.diff(places, axis=0) + FRAME_PX / 2) % FRAME_PX - FRAME_PX / 2


@pytest.mark.parametrize("action", MOVES)
def test_objects_move_as_they_are_said_to(action):
    (scene,) = scenes("one", 1, seed=3)
    steps = steps_of(replace(scene, actors=(replace(scene.actors[0], actions=(action,)),)))
    _, direction, speed = action.split()
    expected = np.array(DIRECTIONS[direction]) * SPEED_PX_PER_S[speed] / 2.0
    assert len(steps) == 7
    np.testing.assert_allclose(steps, np.tile(expected, (7, 1)), atol=1.5)


def shift_of(frames):
    """The whole-picture shift (x, y) between frames 0 and 1, by phase correlation."""
    first, second = (np.fft.fft2(frame.astype(float).sum(-1)) for frame in frames[:2])
    peak = np.fft.ifft2(second * first.conj() / np.abs(second * first.conj()).clip(1e-9)).real.argmax()
    y, x = np.unravel_index(peak, (FRAME_PX, FRAME_PX))
    return [int((v + FRAME_PX // 2) % FRAME_PX - FRAME_PX // 2) for v in (x, y)]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_world_moves_against_the_camera_and_the_background_with_its_name(direction):
    dx, dy = DIRECTIONS[direction]
    camera = Scene("camera", 5, (), camera=f"moves {direction}")
    assert shift_of(synthetic.render_scene(camera, 2.0)) == [-10 * dx, -10 * dy]
    background = Scene("background", 5, (), background=f"moves {direction}")
    assert shift_of(synthetic.render_scene(background, 2.0)) == [10 * dx, 10 * dy]


def test_a_camera_moves_objects_and_a_background_does_not():
    (scene,) = scenes("camera", 1)
    for told, moved in (({"camera": "moves left"}, True), ({"background": "moves left"}, False)):
        plain = {"camera": STILL, "background": STILL, **told}
        with_object = synthetic.render_scene(replace(scene, **plain), 2.0)
        without = synthetic.render_scene(replace(scene, actors=(), **plain), 2.0)
        x = [centre(a, b)[0] for a, b in zip(with_object, without, strict=True)]
        step = (x[1] - x[0] + FRAME_PX / 2) % FRAME_PX - FRAME_PX / 2
        assert step == pytest.approx(10.0 if moved else 0.0, abs=1.5)


def test_order_matters_in_time():
    (scene,) = scenes("order", 1)
    actor = replace(scene.actors[0], actions=("moves left slowly", "moves up quickly"))
    steps = steps_of(replace(scene, actors=(actor,)))
    np.testing.assert_allclose(steps, [[-7, 0]] * 4 + [[0, -14]] * 3, atol=1.5)


def test_captions_tell_every_statement_once():
    rng = np.random.default_rng(0)
    for kind in SCENE_KINDS:
        (scene,) = scenes(kind, 1)
        said = synthetic.caption(scene, rng)
        told = [f"{subject} {deed}." for subject, deed in scene.statements]
        assert sorted(said.lower().replace(". ", ".\n").split("\n")) == sorted(told)
        assert any(colour in said for colour in THING_COLOURS)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="unknown kind of scene 'jump'; known are one, turn, two"):
        synthetic.draw_scene_plan(np.random.default_rng(0), {"jump": 1})


# ---- all tasks


def test_every_category_of_both_benchmarks_occurs():
    rng = np.random.default_rng(0)
    drawn = [synthetic.draw_scene_plan(rng) for _ in range(600)]
    assert {scene.kind for scene in drawn} == set(SCENE_KINDS)
    motionbench = Counter(c.task for scene in drawn for c in synthetic.motionbench_choices(scene, rng))
    favor = Counter(c.task for scene in drawn for c in synthetic.favor_choices(scene, rng))
    assert set(motionbench) == set(MOTIONBENCH_TASKS) and set(favor) == set(FAVOR_TASKS)
    for scene in drawn:
        for choice in (*synthetic.motionbench_choices(scene, rng), *synthetic.favor_choices(scene, rng)):
            assert choice.options.count(choice.answer) == 1 == max(Counter(choice.options).values())


# ---- on disk


def digests(root):
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_one_seed_gives_one_world(tmp_path):
    worlds = [ensure_world(tmp_path / name, TINY) for name in ("a", "b")]
    first, second = map(digests, worlds)
    assert first == second and sum(name.endswith(".mp4") for name in first) >= 4
    other = digests(ensure_world(tmp_path / "c", replace(TINY, seed=1)))
    assert first["FAVOR/train.json"] != other["FAVOR/train.json"]
    train = "FAVOR/videos/FAVOR-Train/world_train_00000.mp4"
    assert first[train] != other[train]


def test_training_clips_are_not_the_benchmarks(world):
    clips = [path for path in world.rglob("*.mp4")]
    contents = {hashlib.sha256(path.read_bytes()).hexdigest() for path in clips}
    assert len(contents) == len(clips) > 60


def test_readers_read_the_world(world):
    train = read_favor_train(world / "FAVOR", world / "FAVOR")
    assert len(train) == 12 and all(row.start_s is None for row in train)
    assert all(row.turns[0].answer.endswith(".") for row in train)
    favor = read_favor_bench(world / "FAVOR", world / "FAVOR")
    assert sum(len(video.questions) for video in favor) >= 40
    dev = read_motionbench(world / "MotionBench", world / "MotionBench")
    test = read_motionbench(world / "MotionBench", world / "MotionBench", split="test")
    assert sum(len(video.questions) for video in dev) >= 40
    assert sum(len(video.questions) for video in test) >= 5
    assert all(question.answer is None for video in test for question in video.questions)
    assert all(question.answer in "ABCDE" for video in dev for question in video.questions)
    for path in (train[0].path, favor[0].path, dev[0].path, test[-1].path):
        assert path.stat().st_size == train[-1].path.stat().st_size  # no size tells how much moves
        clip = read_clip(path, Sampling(short_side_px=FRAME_PX))
        assert clip.frames.shape == (8, FRAME_PX, FRAME_PX, 3)
        assert clip.frame_times_s.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]


def test_a_file_shows_what_its_scene_renders(tmp_path):
    (scene,) = scenes("two", 1)
    frames = synthetic.render_scene(scene, FILE_FPS)
    write_clip(frames, tmp_path / "clip.mp4")
    read = read_clip(tmp_path / "clip.mp4", Sampling(sample_fps=FILE_FPS, short_side_px=FRAME_PX))
    assert np.abs(read.frames.astype(int) - frames.astype(int)).mean() < 6  # h264 in half chroma resolution


def test_a_whole_world_is_not_made_again(world):
    size = WorldSize(
        **{k: v for k, v in json.loads((world / "world.json").read_text()).items() if k != "format"}
    )
    before = (world / "world.json").stat().st_mtime_ns
    assert ensure_world(world, size) == world and (world / "world.json").stat().st_mtime_ns == before


def test_a_world_of_another_size_is_refused(world):
    with pytest.raises(
        ValueError, match=r"holds a motion world of .*'train_clips': 12.*; remove it or name another"
    ):
        ensure_world(world, WorldSize(train_clips=13))


def test_an_unfinished_world_is_refused_and_left_alone(tmp_path):
    root = tmp_path / "world"
    (root / "FAVOR").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"is no whole motion world \(no world\.json\); remove it or name another"
    ):
        ensure_world(root, TINY)
    assert (root / "FAVOR").is_dir()


def test_an_interrupted_world_leaves_nothing(tmp_path, monkeypatch):
    def stop(root, size):
        (root / "FAVOR").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmarks, "write_world", stop)
    with pytest.raises(KeyboardInterrupt):
        ensure_world(tmp_path / "world", TINY)
    assert list(tmp_path.iterdir()) == []
