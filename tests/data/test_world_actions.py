"""Owns: no single frame of mini actions tells its class; they are made once and whole, in the list format."""

import csv
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_world_scenes import digests
from timm.models.vision_transformer import VisionTransformer

from moss_vllm.core.presets import MINI, MINI_VIT, build_ladder
from moss_vllm.data.world import actions
from moss_vllm.data.world.actions import (
    CLASSES,
    FRAMES,
    GROUPS,
    MINI_FRAME_PX,
    MiniSize,
    Motion,
    draw_motion,
    draw_still,
    ensure_mini_actions,
    render_action,
)
from moss_vllm.data.world.drawing import DIRECTIONS
from moss_vllm.video.clip import Sampling, read_clip

TINY = MiniSize(train_per_class=2, test_per_class=1)
SUBJECTS = ("wall_px", "first_px", "second_px")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return ensure_mini_actions(tmp_path_factory.mktemp("mini") / "mini_actions", TINY)


def motions(name, count=60, seed=0):
    rng = np.random.default_rng(seed)
    return [draw_motion(rng, name) for _ in range(count)]


def steps_of(motion):
    """Steps (T - 1, 2) of the wall, and of the two objects with the one that moves more first."""
    wall, first, second = (np.diff(getattr(motion, subject), axis=0) for subject in SUBJECTS)
    return (wall, *sorted((first, second), key=lambda steps: -abs(steps).sum()))


# ---- no single frame tells


@pytest.mark.parametrize("name", CLASSES)
def test_each_frame_of_a_class_is_a_first_frame_of_every_class(name):
    """Places are drawn uniformly on the torus, so a shift of all of them leaves what is drawn as likely."""
    rng = np.random.default_rng(5)
    still, motion = draw_still(rng), draw_motion(rng, name)
    clip = render_action(still, motion)
    for frame in range(FRAMES):
        moved = replace(
            still,
            wall_px=(still.wall_px + motion.wall_px[frame]) % MINI_FRAME_PX,
            objects_px=(still.objects_px + np.stack([motion.first_px, motion.second_px])[:, frame])
            % MINI_FRAME_PX,
        )
        other = draw_motion(rng, list(CLASSES)[frame])
        np.testing.assert_array_equal(render_action(moved, other)[0], clip[frame])


def test_places_are_uniform_on_the_torus():
    rng = np.random.default_rng(0)
    stills = [draw_still(rng) for _ in range(2000)]
    for places in zip(*([*s.wall_px, *s.objects_px.ravel()] for s in stills), strict=True):
        counts = np.bincount(np.array(places) // 21, minlength=4)
        assert len(counts) == 4
        # chi-square with 3 degrees of freedom is below 21 in 99.99 % of uniform draws.
        assert ((counts - 500) ** 2 / 500).sum() < 21


def test_every_motion_begins_where_the_picture_was_drawn():
    for name in CLASSES:
        for motion in motions(name, 5):
            assert all(getattr(motion, subject).shape == (FRAMES, 2) for subject in SUBJECTS)
            assert all(not getattr(motion, subject)[0].any() for subject in SUBJECTS)


@pytest.mark.slow
def test_a_classifier_of_single_frames_is_at_chance():
    """Ridge regression on coarse pictures and colour statistics, on frames of clips it has not seen."""
    rng = np.random.default_rng(1)
    labels = np.arange(len(CLASSES)).repeat(60)
    features = []
    for label in labels:
        frame = (
            render_action(draw_still(rng), draw_motion(rng, list(CLASSES)[label]))[rng.integers(FRAMES)] / 255
        )
        coarse = frame.reshape(6, 14, 6, 14, 3)
        means, spreads = coarse.mean((1, 3)).ravel(), coarse.std((1, 3)).ravel()
        features.append(np.concatenate([means, spreads, [1.0]]))
    x, y = np.stack(features), np.eye(len(CLASSES))[labels]
    seen = rng.permutation(len(labels)) < len(labels) * 2 // 3
    weights = np.linalg.solve(x[seen].T @ x[seen] + 0.1 * np.eye(x.shape[1]), x[seen].T @ y[seen])
    right = ((x[~seen] @ weights).argmax(1) == labels[~seen]).sum()
    assert right < 240 / 12 + 4 * (240 / 12 * 11 / 12) ** 0.5  # four standard deviations above chance


# ---- what is drawn is what the class says


@pytest.mark.parametrize("name", [name for name, group in CLASSES.items() if group == "direction"])
def test_one_of_two_moves_in_the_direction_of_its_class(name):
    for motion in motions(name):
        wall, mover, other = steps_of(motion)
        speed = abs(mover).max()
        assert 7 <= speed <= 18 and not wall.any() and not other.any()
        assert (mover == speed * np.array(DIRECTIONS[name.split()[1]])).all()


def test_slow_and_quick_slants_differ_in_speed_alone():
    for name, low, high in (("slowly", 3, 6), ("quickly", 10, 13)):
        ways = Counter()
        for motion in motions(f"moves slantwise {name}"):
            wall, mover, other = steps_of(motion)
            assert not wall.any() and not other.any() and (mover == mover[0]).all()
            assert abs(mover[0, 0]) == abs(mover[0, 1]) and low <= abs(mover[0, 0]) <= high
            ways[tuple(np.sign(mover[0]))] += 1
        assert len(ways) == 4


def test_going_round_one_way_is_the_other_way_reversed():
    for name, turn in (("clockwise", 1), ("anticlockwise", -1)):
        for motion in motions(f"goes round {name}"):
            wall, mover, other = steps_of(motion)
            assert not wall.any() and not other.any() and (mover[4:] == mover[:3]).all()
            crosses = mover[:-1, 0] * mover[1:, 1] - mover[:-1, 1] * mover[1:, 0]  # y points down
            assert (np.sign(crosses) == turn).all()
            back = -mover[::-1]
            assert (np.sign(back[:-1, 0] * back[1:, 1] - back[:-1, 1] * back[1:, 0]) == -turn).all()


@pytest.mark.parametrize(
    "name, wall, first, second",
    [
        ("both move together", 0, 1, 1),
        ("both move against each other", 0, 1, -1),
        ("the camera moves", 1, 1, 1),
        ("the wall moves", 1, 0, 0),
    ],
)
def test_relations_and_cameras_compare_one_motion(name, wall, first, second):
    ways = Counter()
    for motion in motions(name):
        found = [np.diff(getattr(motion, subject), axis=0) for subject in SUBJECTS]
        steps = found[0] if wall else found[1]
        assert (steps == steps[0]).all() and 7 <= abs(steps[0]).max() <= 18 and 0 in steps[0]
        for sign, of_subject in zip((wall, first, second), found, strict=True):
            assert (of_subject == sign * steps).all()
        ways[tuple(np.sign(steps[0]))] += 1
    assert len(ways) == 4


def test_either_object_may_be_the_one_that_moves():
    moving = Counter(bool(motion.first_px.any()) for motion in motions("moves left", 200))
    assert 60 < moving[True] < 140


def test_the_camera_moves_the_whole_picture_and_the_wall_leaves_the_objects():
    rng = np.random.default_rng(2)
    still = draw_still(rng)
    path = np.arange(FRAMES)[:, None] * np.array([9, 0])
    nothing = np.zeros_like(path)
    camera = render_action(still, Motion(path, path, path))
    np.testing.assert_array_equal(camera[3], np.roll(camera[0], 27, axis=1))
    wall = render_action(still, Motion(path, nothing, nothing))
    x, y = still.objects_px[1]  # the upper one
    np.testing.assert_array_equal(wall[:, y, x], np.tile(wall[0, y, x], (FRAMES, 1)))
    assert (wall[3] != wall[0]).mean() > 0.5


def test_an_unknown_class_is_refused():
    with pytest.raises(ValueError, match="unknown class 'jumps'; known are moves left, moves right"):
        draw_motion(np.random.default_rng(0), "jumps")


# ---- on disk


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_lists_are_in_the_authors_format_and_balanced(dataset):
    for split, per_class in (("train", 2), ("test", 1)):
        rows = [line.split() for line in (dataset / f"{split}.txt").read_text().splitlines()]
        assert Counter(int(label) for _, label in rows) == dict.fromkeys(range(12), per_class)
        assert all((dataset / path).is_file() for path, _ in rows)
        assert len({path for path, _ in rows}) == len(rows)
    assert [int(label) for _, label in rows] != sorted(int(label) for _, label in rows)
    assert len(list((dataset / "videos").iterdir())) == 12 * 3


def test_labels_and_groups_name_every_class(dataset):
    assert [(int(r["id"]), r["name"]) for r in rows_of(dataset / "labels.csv")] == list(enumerate(CLASSES))
    assert {r["name"]: r["group"] for r in rows_of(dataset / "groups.csv")} == CLASSES
    assert GROUPS == ("direction", "speed", "order", "relation", "camera")


def test_a_file_shows_its_class(dataset):
    """The file's frames are the class's own drawing, but for what h264 in half chroma resolution loses."""
    path, label = (dataset / "test.txt").read_text().splitlines()[0].split()
    clip = read_clip(dataset / path, Sampling(sample_fps=4, short_side_px=None))
    rng = np.random.default_rng((0, 1, 1))
    drawn = render_action(draw_still(rng), draw_motion(rng, list(CLASSES)[int(label)]))
    assert clip.frames.shape == drawn.shape == (FRAMES, MINI_FRAME_PX, MINI_FRAME_PX, 3)
    assert np.abs(clip.frames.astype(int) - drawn.astype(int)).mean() < 6


def test_one_seed_gives_one_dataset(dataset, tmp_path):
    assert digests(ensure_mini_actions(tmp_path / "again", TINY)) == digests(dataset)
    other = digests(ensure_mini_actions(tmp_path / "other", replace(TINY, seed=1)))
    first = "videos/train_00001.mp4"
    assert other[first] != digests(dataset)[first]
    videos = [digest for name, digest in digests(dataset).items() if name.endswith(".mp4")]
    assert len(set(videos)) == len(videos) == 36


def test_a_whole_dataset_is_not_made_again(dataset, monkeypatch):
    monkeypatch.setattr(actions, "write_mini_actions", None)
    assert ensure_mini_actions(str(dataset), TINY) == dataset


def test_a_dataset_of_another_size_is_refused(dataset):
    with pytest.raises(ValueError, match=r"holds mini actions of .*'train_per_class': 2.*; remove it"):
        ensure_mini_actions(dataset, replace(TINY, train_per_class=3))


def test_another_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match=r"is no whole dataset of mini actions \(no mini_actions.json\)"):
        ensure_mini_actions(tmp_path / "mine", TINY)
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]


def test_an_interrupted_dataset_leaves_nothing(tmp_path, monkeypatch):
    def stop(root, size):
        (root / "videos").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(actions, "write_mini_actions", stop)
    with pytest.raises(KeyboardInterrupt):
        ensure_mini_actions(tmp_path / "mini", TINY)
    assert list(tmp_path.iterdir()) == []


def test_settings_say_what_is_there(dataset):
    settings = json.loads((dataset / "mini_actions.json").read_text())
    assert settings == {"train_per_class": 2, "test_per_class": 1, "seed": 0, "format": 1}


# ---- the preset


def test_the_mini_preset_fits_its_encoder_and_the_clips():
    encoder = VisionTransformer(**MINI_VIT, num_classes=0).eval()
    ladder = build_ladder(MINI, classes=len(CLASSES), image_size=MINI_VIT["img_size"]).eval()
    assert MINI_VIT["img_size"] == MINI_FRAME_PX and encoder.patch_embed.grid_size == ladder.grid == (6, 6)
    video = torch.randn(1, FRAMES, 3, MINI_FRAME_PX, MINI_FRAME_PX)
    _, found = encoder.forward_intermediates(
        video[0], indices=[layer - 1 for layer in MINI.layers], return_prefix_tokens=True, output_fmt="NLC"
    )
    taps = torch.stack([torch.cat([prefix, tokens], dim=1)[None] for tokens, prefix in found])
    assert taps.shape == (2, 1, FRAMES, 37, MINI.d_in)
    assert ladder(taps, video).shape == (1, 12)
