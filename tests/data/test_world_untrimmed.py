"""Owns: in untrimmed videos motion alone tells what happens and when; one seed gives one world, whole."""

import json
import signal
import time
from collections import Counter, defaultdict
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from test_world_scenes import digests

from moss_vllm.data.detection.datasets import read_detection
from moss_vllm.data.world import untrimmed
from moss_vllm.data.world.actions import Motion, draw_still, render_action
from moss_vllm.data.world.drawing import DIRECTIONS, drawing_processes
from moss_vllm.data.world.untrimmed import (
    BACKGROUND,
    STEP_PX,
    THING_RADIUS_PX,
    UNTRIMMED_CLASSES,
    UNTRIMMED_FPS,
    UNTRIMMED_PX,
    UntrimmedSize,
    draw_steps,
    draw_untrimmed,
    plan_split,
    render_untrimmed,
)
from moss_vllm.video.clip import read_frames

TINY = UntrimmedSize(train_videos=2, test_videos=1)
MANY = UntrimmedSize(train_videos=300, test_videos=60)
NAMES = (*UNTRIMMED_CLASSES, *BACKGROUND)
VIDEOS = ("video_test_0000001", "video_validation_0000001", "video_validation_0000002")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return draw_untrimmed(tmp_path_factory.mktemp("world") / "untrimmed", TINY)


def draws(name, count=60, frames=24):
    """Steps (3, frames, 2) of the wall and the two objects."""
    rng = np.random.default_rng(0)
    return [draw_steps(rng, name, frames) for _ in range(count)]


def heading(steps):
    """The direction of each step of one subject; None where it stays."""
    names = {way: name for name, way in DIRECTIONS.items()}
    return [names.get(tuple((step // STEP_PX).tolist())) for step in steps]


# ---- no single frame tells


@pytest.mark.parametrize("name", NAMES)
def test_each_frame_of_a_motion_is_a_first_frame_of_every_motion(name):
    """Places are drawn uniformly on the torus, so a shift of all of them leaves what is drawn as likely."""
    rng = np.random.default_rng(5)
    still = draw_still(rng, size_px=UNTRIMMED_PX, radius_px=THING_RADIUS_PX)
    paths = draw_steps(rng, name, 9).cumsum(axis=1)
    frames = render_action(still, Motion(*paths), size_px=UNTRIMMED_PX)
    for frame in range(9):
        moved = replace(
            still,
            wall_px=(still.wall_px + paths[0, frame]) % UNTRIMMED_PX,
            objects_px=(still.objects_px + paths[1:, frame]) % UNTRIMMED_PX,
        )
        nothing = Motion(*np.zeros((3, 1, 2), np.int64))
        np.testing.assert_array_equal(render_action(moved, nothing, size_px=UNTRIMMED_PX)[0], frames[frame])


def test_places_are_uniform_on_the_torus():
    rng = np.random.default_rng(0)
    stills = [draw_still(rng, size_px=UNTRIMMED_PX) for _ in range(2000)]
    for places in zip(*([*s.wall_px, *s.objects_px.ravel()] for s in stills), strict=True):
        counts = np.bincount(np.array(places) // 16, minlength=4)
        assert len(counts) == 4
        # chi-square with 3 degrees of freedom is below 21 in 99.99 % of uniform draws.
        assert ((counts - 500) ** 2 / 500).sum() < 21


def test_nothing_jumps_where_an_action_begins_or_ends():
    video = plan_split("test", TINY)[0]
    frames = render_untrimmed(video)
    assert frames.shape == (video.frames, UNTRIMMED_PX, UNTRIMMED_PX, 3)
    changed = np.abs(np.diff(frames.astype(int), axis=0)).mean((1, 2, 3))
    borders = [stretch.start - 1 for stretch in video.stretches[1:]]
    inside = np.delete(changed, borders)
    assert len(borders) > 5 and changed[borders].max() <= inside.max()
    assert all(set(np.unique(steps)) <= {-STEP_PX, 0, STEP_PX} for n in NAMES for steps in draws(n, 3))


# ---- nothing but motion tells


def test_classes_and_backgrounds_are_as_frequent_and_as_long():
    for split in ("train", "test"):
        videos = plan_split(split, MANY)
        lengths = defaultdict(list)
        for video in videos:
            whole = [stretch for stretch in video.stretches if stretch is not video.stretches[-1]]
            for stretch in whole:
                lengths[stretch.name].append(stretch.end - stretch.start)
        for kinds, low, high in ((UNTRIMMED_CLASSES, 16, 40), (BACKGROUND, 12, 40)):
            counts = Counter(stretch.name for v in videos for stretch in v.stretches if stretch.name in kinds)
            assert counts.keys() == set(kinds) and max(counts.values()) - min(counts.values()) <= 1
            spread = (high - low) / 12**0.5
            for name in kinds:
                mean, several = np.mean(lengths[name]), len(lengths[name])
                assert abs(mean - (low + high) / 2) < 4 * spread / several**0.5, name
                assert low <= min(lengths[name]) and max(lengths[name]) <= high


def test_videos_begin_and_end_with_background_and_last_half_a_minute_to_one():
    for video in plan_split("train", MANY):
        kinds = [stretch.is_action for stretch in video.stretches]
        assert kinds == [index % 2 == 1 for index in range(len(kinds))] and not kinds[-1]
        assert [stretch.start for stretch in video.stretches[1:]] == [s.end for s in video.stretches[:-1]]
        assert 30 * UNTRIMMED_FPS <= video.frames <= 60 * UNTRIMMED_FPS and video.stretches[0].start == 0
        assert video.stretches[-1].end - video.stretches[-1].start >= UNTRIMMED_FPS


def test_the_size_of_a_file_tells_its_length_alone(world):
    files = [world / "raw_data" / "video" / f"{name}.mp4" for name in VIDEOS]
    frames = [video.frames for split in ("test", "train") for video in plan_split(split, TINY)]
    sizes = [file.stat().st_size for file in files]
    (slope, offset), residuals, *_ = np.polyfit(frames, sizes, 1, full=True)
    assert len(set(frames)) == 3 and slope == pytest.approx(1306, abs=20)
    assert residuals.sum() ** 0.5 < 0.002 * max(sizes)


# ---- what is drawn is what the name says


@pytest.mark.parametrize("name", [*UNTRIMMED_CLASSES, *BACKGROUND])
def test_who_moves(name):
    moving = Counter(tuple(bool(steps.any()) for steps in each) for each in draws(name))
    if name.startswith("the camera"):
        assert moving == {(True, True, True): 60}
    elif name.startswith("one"):
        assert moving.keys() == {(False, True, False), (False, False, True)} and min(moving.values()) > 15
    else:
        assert moving == {(False, *[name != "nothing moves"] * 2): 60}


@pytest.mark.parametrize("direction", ["left", "right"])
def test_directions(direction):
    opposite = {"left": "right", "right": "left"}[direction]
    for wall, first, second in draws(f"the camera moves {direction}"):
        assert heading(wall) == heading(first) == heading(second) == [opposite] * 24
    for _, *objects in draws(f"one moves {direction}"):
        (mover,) = (steps for steps in objects if steps.any())
        assert heading(mover) == [direction] * 24
    seen = {heading(wall)[0] for wall, _, _ in draws("the camera moves up or down")}
    assert seen == {"up", "down"}


def test_turns_tell_a_round_from_a_wanderer():
    for name, allowed in (
        ("one goes round clockwise", {1}),
        ("one goes round anticlockwise", {-1}),
        ("one wanders", {1, -1}),
    ):
        found, ways = set(), set()
        for _, *objects in draws(name, frames=40):
            (mover,) = (steps for steps in objects if steps.any())
            x, y = mover.T // STEP_PX
            turns = x[:-1] * y[1:] - y[:-1] * x[1:]  # y points down
            at = np.flatnonzero(turns)
            assert (np.diff(at) == 8).all() and len(at) >= 4
            found |= set(turns[at].tolist())
            ways.add(heading(mover)[0])
        assert found == allowed and ways == set(DIRECTIONS)


@pytest.mark.parametrize(
    "name, product", [("both move together", 1), ("both move against each other", -1), (BACKGROUND[3], 0)]
)
def test_two_motions_compared(name, product):
    ways = set()
    for _, first, second in draws(name):
        assert ((first * second).sum(1) == product * STEP_PX**2).all() and (first == first[0]).all()
        ways.add(heading(first)[0])
    assert ways == set(DIRECTIONS)


def test_an_unknown_motion_is_refused():
    with pytest.raises(ValueError, match="unknown motion 'jumps'; known are the camera moves left"):
        draw_steps(np.random.default_rng(0), "jumps", 8)


# ---- on disk


def test_thumos_readers_read_it(world):
    test, train = (read_detection("mini", world, split) for split in ("test", "train"))
    assert test.classes == train.classes == tuple(UNTRIMMED_CLASSES)
    assert [video.video_id for video in (*test.videos, *train.videos)] == list(VIDEOS)
    assert not test.notes and not train.notes and not test.missing
    assert test.report().startswith("mini test: kept 1 of 1 videos, 0 missing")
    for split, videos in (("test", test.videos), ("train", train.videos)):
        for plan, video in zip(plan_split(split, TINY), videos, strict=True):
            actions = [stretch for stretch in plan.stretches if stretch.is_action]
            assert video.fps == UNTRIMMED_FPS and video.frames == plan.frames
            assert [(a.start_s * 8, a.end_s * 8) for a in video.actions] == [
                (s.start, s.end) for s in actions
            ]
            assert [test.classes[a.label] for a in video.actions] == [s.name for s in actions]


def test_a_file_shows_what_was_drawn(world):
    """But for what h264 in half chroma resolution loses."""
    (plan,) = plan_split("test", TINY)
    decoded = read_frames(world / "raw_data" / "video" / f"{plan.name}.mp4", np.arange)
    drawn = render_untrimmed(plan)
    assert decoded.shape == drawn.shape
    assert np.abs(decoded.astype(int) - drawn).mean((1, 2, 3)).max() < 8


def test_one_seed_gives_one_world(world, tmp_path):
    assert digests(draw_untrimmed(tmp_path / "again", TINY)) == digests(world)
    other = digests(draw_untrimmed(tmp_path / "other", replace(TINY, seed=1)))
    assert not set(other.values()) & {digest for name, digest in digests(world).items() if "mp4" in name}
    assert len(set(other.values())) == len(other) == 6


def test_a_world_that_was_stopped_goes_on(world, tmp_path, monkeypatch):
    root, drawn, written = tmp_path / "world", [], untrimmed._write_video

    def stop_at_second(video, path):
        if drawn:
            path.with_name(f".{path.name}.part").touch()
            raise KeyboardInterrupt
        drawn.append(video.name)
        written(video, path)

    in_this_process = nullcontext(SimpleNamespace(map=map))
    monkeypatch.setattr(untrimmed, "drawing_processes", lambda: in_this_process)
    monkeypatch.setattr(untrimmed, "_write_video", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        draw_untrimmed(root, TINY)
    assert not (root / "annotations").exists()
    monkeypatch.setattr(untrimmed, "_write_video", lambda v, path: (drawn.append(v.name), written(v, path)))
    draw_untrimmed(root)  # of the size that was begun
    assert sorted(drawn) == sorted(VIDEOS)
    found = {name: digest for name, digest in digests(root).items() if not name.endswith(".part")}
    assert found == digests(world)
    monkeypatch.setattr(untrimmed, "write_untrimmed", None)
    assert draw_untrimmed(str(root)) == root


def test_processes_that_draw_leave_ctrl_c_to_their_parent_and_end_with_it():
    with pytest.raises(KeyboardInterrupt), drawing_processes() as pool:
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN
        waiting = [pool.submit(time.sleep, 0.1) for _ in range(200)]
        raise KeyboardInterrupt
    assert sum(one.cancelled() for one in waiting) > 100


def test_a_world_of_another_format_is_drawn_again(world, tmp_path):
    root = tmp_path / "world"
    (root / "raw_data" / "video").mkdir(parents=True)
    (root / "raw_data" / "video" / f"{VIDEOS[0]}.mp4").write_text("of another format")
    (root / "untrimmed.json").write_text(json.dumps({"videos": 7, "format": 0}))
    assert digests(draw_untrimmed(root, TINY)) == digests(world)


def test_other_sizes_and_folders_are_refused(world, tmp_path):
    with pytest.raises(ValueError, match=r"holds untrimmed videos of .*'train_videos': 2.*; remove it"):
        draw_untrimmed(world, replace(TINY, train_videos=3))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"is no world of untrimmed videos \(no untrimmed.json\)"):
        draw_untrimmed(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
