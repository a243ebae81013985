"""Owns: which frames and what part of them a clip shows, how it is changed, and what that depends on."""

import dataclasses
import pickle
import random
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from action_layouts import moving_square, write_frames, write_layout
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from moss_vllm.data.actions.datasets import ActionClip, ActionSplit, read_action
from moss_vllm.data.rows import Rejected
from moss_vllm.recognition import augment, views
from moss_vllm.recognition.augment import ClipRandAugment, draw_box, grey
from moss_vllm.recognition.frame_choice import SAMPLINGS, draw_indices, spread_indices
from moss_vllm.recognition.views import (
    CLIP_MEAN,
    CLIP_STD,
    PROTOCOLS,
    ActionTestSet,
    ActionTrainingSet,
    ViewSettings,
    evaluation_views,
    training_views,
)
from moss_vllm.training.row_order import PlacedRow, RowOrder, StepBatches
from moss_vllm.video.cache import FrameCache
from moss_vllm.video.clip import read_frames

RAND = "rand-m7-n4-mstd0.5-inc1"
PLAIN = ViewSettings(frames=4, size_px=16, train_scale=24, test_scale=16, flip=0.0)


def rng(seed=0):
    return np.random.default_rng(seed)


def levels(view):
    """A view's values from 0 to 255."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (view * std + mean) * 255


def noise(frames=4, height=24, width=32, seed=0):
    """Smooth noise, as pictures are."""
    small = rng(seed).integers(0, 256, (frames, height // 8, width // 8, 3), np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(f).resize((width, height), Image.Resampling.BICUBIC)) for f in small]
    )


# ---- which frames


def test_uniform_training_takes_one_frame_of_each_segment():
    drawn = np.array([draw_indices(21, rng(seed), frames=4) for seed in range(300)])
    for segment, frames in enumerate((range(0, 5), range(5, 10), range(10, 15), range(15, 21))):
        assert set(drawn[:, segment]) == set(frames)


def test_a_short_video_shows_all_its_frames_in_order():
    for seed in range(50):
        drawn = draw_indices(5, rng(seed), frames=8)
        assert len(drawn) == 8 and set(drawn) == set(range(5)) and list(drawn) == sorted(drawn)


def test_uniform_test_frames_are_those_of_the_authors_code():
    # seg = (33 - 1) / 8 = 4: round(4 i) + int(4 / 2), and for two clips + int(4 / 3), + int(8 / 3).
    assert spread_indices(33, frames=8, clips=1).tolist() == [[2, 6, 10, 14, 18, 22, 26, 30]]
    assert spread_indices(33, frames=8, clips=2).tolist() == [
        [1, 5, 9, 13, 17, 21, 25, 29],
        [2, 6, 10, 14, 18, 22, 26, 30],
    ]
    # seg = 35 / 8 = 4.375; rounding is to the nearest even: 8.75 -> 9, 17.5 -> 18.
    assert spread_indices(36, frames=8, clips=1).tolist() == [[2, 6, 11, 15, 20, 24, 28, 33]]


def test_uniform_on_kinetics():
    # int(36 / 8 * i), from starts linspace(0, 3.5, 4) without fractions.
    assert spread_indices(36, frames=8, clips=1, sampling="uniform-k400").tolist() == [
        [0, 4, 9, 13, 18, 22, 27, 31]
    ]
    shown = spread_indices(36, frames=8, clips=4, sampling="uniform-k400")
    assert shown[:, 0].tolist() == [0, 1, 2, 3] and shown[3].tolist() == [3, 7, 12, 16, 21, 25, 30, 34]
    # Both ends of [round(seg i), round(seg (i + 1))] are drawn, seg = 20 / 4.
    drawn = np.array([draw_indices(21, rng(s), frames=4, sampling="uniform-k400") for s in range(300)])
    assert [set(drawn[:, i]) for i in range(4)] == [set(range(5 * i, 5 * i + 6)) for i in range(4)]


def test_dense_takes_every_eighth_frame():
    drawn = np.array([draw_indices(300, rng(seed), frames=16, sampling="dense") for seed in range(2000)])
    assert (np.diff(drawn) == 8).all()
    assert drawn[:, 0].min() == 0 and drawn[:, 0].max() == 300 - 128
    shown = spread_indices(300, frames=16, clips=4, sampling="dense")
    assert (np.diff(shown) == 8).all() and shown[:, 0].tolist() == [0, 57, 114, 171]  # floor(172 / 3) * j
    assert spread_indices(300, frames=16, clips=1, sampling="dense")[0, 0] == 86
    # A video of 20 frames begins again.
    short = [0, 8, 16, 4, 12, 0, 8, 16]
    assert draw_indices(20, rng(), frames=8, sampling="dense").tolist() == short
    assert spread_indices(20, frames=8, clips=3, sampling="dense").tolist() == [short] * 3


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_length_is_defined(sampling):
    for n in range(1, 70):
        for frames in (1, 3, 8, 32):
            drawn = draw_indices(n, rng(n), frames=frames, sampling=sampling, stride=3)
            assert drawn.shape == (frames,) and drawn.min() >= 0 and drawn.max() < n
            for clips in (1, 2, 5):
                shown = spread_indices(n, frames=frames, clips=clips, sampling=sampling, stride=3)
                assert shown.shape == (clips, frames) and shown.min() >= 0 and shown.max() < n
            if sampling != "dense":
                assert (np.diff(drawn) >= 0).all() and (np.diff(shown) >= 0).all()


def test_wrong_sampling_is_refused():
    with pytest.raises(ValueError, match="n_frames is 0; it must be at least 1"):
        draw_indices(0, rng(), frames=8)
    with pytest.raises(
        ValueError, match="sampling is 'random'; it must be one of uniform, uniform-k400, dense"
    ):
        spread_indices(9, frames=8, clips=1, sampling="random")


# ---- protocols


def test_protocols_are_those_of_table_7():
    paper = {data: protocols["paper"] for data, protocols in PROTOCOLS.items()}
    rows = {
        data: (
            s.frames,
            s.sampling,
            s.stride,
            s.randaugment,
            s.flip,
            s.repeats,
            s.grayscale,
            s.crops * s.clips,
        )
        for data, s in paper.items()
    }
    ssv = (8, "uniform", 8, RAND, 0.5, 2, 0.0, 6)
    fine = (32, "uniform", 8, None, 0.5, 1, 0.0, 6)
    assert rows == {
        "ssv1": ssv,
        "ssv2": ssv,
        "k400": (16, "dense", 8, None, 0.5, 2, 0.2, 12),
        "diving48": fine,
        "gym99": fine,
        "gym288": fine,
        "list": (8, "uniform", 8, None, 0.5, 1, 0.0, 6),
        "mini": (8, "uniform", 8, None, 0.0, 1, 0.0, 1),
    }
    scales = {data: (s.train_scale, s.test_scale, s.size_px) for data, s in paper.items()}
    assert scales["ssv2"] == ((256, 320), (256, 320), 224)
    assert scales["k400"] == scales["diving48"] == (256, 224, 224) and scales["gym99"] == (256, 256, 224)


def test_the_authors_protocol_differs_where_their_code_does():
    differing = {
        data: {
            name: getattr(both["authors"], name)
            for name in vars(both["paper"])
            if getattr(both["authors"], name) != getattr(both["paper"], name)
        }
        for data, both in PROTOCOLS.items()
    }
    assert differing == {
        "ssv1": {},
        "ssv2": {},
        "list": {},
        "mini": {},
        "k400": {"sampling": "uniform-k400", "repeats": 1},
        **{data: {"grayscale": 0.2} for data in ("diving48", "gym99", "gym288")},
    }


def test_settings_in_another_resolution():
    small = PROTOCOLS["ssv2"]["paper"].at_size(56)
    assert (small.size_px, small.train_scale, small.test_scale) == (56, (64, 80), (64, 80))
    assert PROTOCOLS["k400"]["paper"].at_size(112).train_scale == 128


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"crops": 2}, "crops is 2; it must be 1"),
        ({"frames": 0}, "frames is 0; it must be at least 1"),
        ({"sampling": "any"}, "sampling is 'any'"),
        ({"test_scale": (256, 200)}, r"test_scale is \(256, 200\), below size_px, which is 224; raise it"),
        ({"flip": 1.5}, "flip is 1.5; it must be from 0 to 1"),
    ],
)
def test_wrong_settings_are_refused(wrong, expected):
    with pytest.raises(ValueError, match=expected):
        ViewSettings(**wrong)


# ---- test views


@pytest.mark.parametrize(
    ("height", "width", "corners"),
    [
        (256, 320, [(16, 0), (16, 96), (16, 48)]),
        (224, 398, [(0, 0), (0, 172), (0, 86)]),  # quarters are rounded down: 174 // 4 * 4
        (398, 224, [(0, 0), (172, 0), (86, 0)]),
        (224, 224, [(0, 0), (0, 0), (0, 0)]),
    ],
)
def test_crops_lie_left_right_and_centre(height, width, corners):
    rows, columns = np.mgrid[:height, :width]
    frame = np.stack([rows // 2, columns // 2, rows * 0], -1).astype(np.uint8)
    settings = ViewSettings(frames=2, clips=1, crops=3, test_scale=(height, width))
    shown = levels(evaluation_views(np.stack([frame, frame]), settings))
    assert shown.shape == (3, 2, 3, 224, 224)
    for view, (top, left) in zip(shown, corners, strict=True):
        wanted = torch.from_numpy(frame[top : top + 224, left : left + 224]).permute(2, 0, 1).float()
        torch.testing.assert_close(view[1], wanted, atol=1e-3, rtol=0)


def test_one_crop_is_the_centre_and_clips_come_one_after_the_other():
    frames = noise(6, 24, 32)
    settings = ViewSettings(frames=3, clips=2, crops=1, size_px=16, test_scale=24, train_scale=24)
    shown = levels(evaluation_views(frames, settings))
    wanted = torch.from_numpy(frames[:, 4:20, 8:24]).permute(0, 3, 1, 2).unflatten(0, (2, 3)).float()
    torch.testing.assert_close(shown, wanted, atol=1e-3, rtol=0)


# ---- training views


def test_a_box_is_cut_and_resized_as_pil_does(monkeypatch):
    monkeypatch.setattr(views, "draw_box", lambda height, width, *_: (3, 5, 17, 22))
    frames = noise()
    shown, flipped = training_views(frames, PLAIN, rng())
    for frame, view in zip(frames, levels(shown[0]), strict=True):
        box = Image.fromarray(frame).crop((5, 3, 27, 20)).resize((16, 16), Image.Resampling.BILINEAR)
        wanted = torch.from_numpy(np.asarray(box).copy()).permute(2, 0, 1).float()
        assert (view - wanted).abs().max() < 1.01
    assert flipped.tolist() == [False]


def test_frames_are_scaled_before_they_are_cut(monkeypatch):
    monkeypatch.setattr(views, "draw_box", lambda height, width, *_: (height - 16, width - 16, 16, 16))
    frames = noise(2, 48, 64)
    settings = ViewSettings(frames=2, size_px=16, train_scale=(32, 40), test_scale=16, flip=0.0)
    shown, _ = training_views(frames, settings, rng())
    for frame, view in zip(frames, levels(shown[0]), strict=True):
        scaled = np.asarray(Image.fromarray(frame).resize((40, 32), Image.Resampling.BICUBIC))
        wanted = torch.from_numpy(scaled[16:, 24:].copy()).permute(2, 0, 1).float()
        assert (view - wanted).abs().max() < 1.01  # only the box is computed, so roundings may differ


def test_boxes_fit_and_spread():
    boxes = np.array([draw_box(256, 320, rng(seed)) for seed in range(4000)])
    top, left, height, width = boxes.T
    assert (top + height <= 256).all() and (left + width <= 320).all() and boxes.min() >= 0
    share = height * width / (256 * 320)
    # Uniform, but for large ones that do not fit.
    assert share.min() < 0.09 and 0.40 < np.median(share) < 0.50 and 0.9 < share.max() <= 1.01
    ratio = width / height
    assert (
        0.74 < ratio.min() and ratio.max() < 1.35 and 0.5 < (ratio > 1).mean() < 0.62
    )  # wide ones fit more often
    # Nothing fits into a very long frame ten times in a row: the largest square is taken.
    assert {draw_box(84, 84, rng(seed), 1.0) for seed in range(100)} == {(0, 0, 84, 84)}
    squares = [draw_box(10, 200, rng(seed)) for seed in range(100)]
    assert {box[2:] for box in squares if box[2] == 10} == {(10, 10)}
    assert len({box[1] for box in squares}) > 20
    assert draw_box(1, 1, rng()) == (0, 0, 1, 1)


def test_mirroring_changes_nothing_else():
    frames = noise()
    straight, mirrored = (
        training_views(frames, ViewSettings(**{**vars(PLAIN), "flip": flip, "repeats": 3}), rng(4))
        for flip in (0.0, 1.0)
    )
    assert straight[1].tolist() == [False] * 3 and mirrored[1].tolist() == [True] * 3
    torch.testing.assert_close(mirrored[0], straight[0].flip(-1))


def test_grey_is_pils():
    frames = noise()
    shown = grey(torch.from_numpy(frames).permute(0, 3, 1, 2))
    for frame, view in zip(frames, shown, strict=True):
        wanted = torch.from_numpy(np.asarray(Image.fromarray(frame).convert("L")).astype(int))
        assert (view - wanted).abs().max() <= 1
        assert torch.equal(view[0], view[1]) and torch.equal(view[0], view[2])
    whole, _ = training_views(frames, ViewSettings(**{**vars(PLAIN), "grayscale": 1.0}), rng())
    torch.testing.assert_close(levels(whole)[:, :, 0], levels(whole)[:, :, 2], atol=1e-3, rtol=0)


def test_probabilities_are_those_of_the_settings():
    settings = ViewSettings(frames=1, size_px=4, train_scale=4, test_scale=4, repeats=400, grayscale=0.2)
    shown, flipped = training_views(noise(1, 8, 8), settings, rng())
    grey_share = (levels(shown)[:, 0, 0] - levels(shown)[:, 0, 2]).abs().amax((1, 2)).lt(0.01).float().mean()
    assert 0.42 < flipped.mean() < 0.58 and 0.14 < grey_share < 0.26


def test_all_frames_of_a_view_are_changed_alike_and_views_differ():
    frames = np.repeat(noise(1, 32, 40), 4, 0)
    settings = ViewSettings(
        frames=4, size_px=16, train_scale=(24, 30), test_scale=16, repeats=6, grayscale=0.3
    )
    for seed in range(10):
        shown, _ = training_views(frames, settings, rng(seed), ClipRandAugment(RAND))
        assert torch.equal(shown, shown[:, :1].expand_as(shown))
        assert len({view.numpy().tobytes() for view in shown}) == 6


def test_randaugment_is_timms():
    policy = ClipRandAugment(RAND)
    assert policy.count == 4 and policy.weights is None
    assert [op.name for op in policy.ops] == [
        *("AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing"),
        *("SolarizeAdd", "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing"),
        *("SharpnessIncreasing", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
    ]
    assert {(op.prob, op.magnitude, op.magnitude_std) for op in policy.ops} == {(0.5, 7, 0.5)}
    assert policy.ops[3].kwargs == {"fillcolor": (128, 128, 128), "resample": Image.Resampling.BICUBIC}


@pytest.mark.parametrize(
    "config, reason",
    [
        ("v0", ""),
        ("", ""),
        ("rand-m9-foo1", " (a section is unknown, or there twice)"),
        ("rand-m9-inc", " (a section is unknown, or there twice)"),  # timm: not increasing
        ("rand-m9-tall", " (a section is unknown, or there twice)"),  # timm: its usual set
        ("rand-m9-m7", " (a section is unknown, or there twice)"),
        ("rand-m9.5-n2", " (invalid literal for int() with base 10: '9.5')"),
        ("rand-n16-tweights", " (16 operations of 15 that are drawn once each)"),
    ],
)
def test_a_notation_that_timm_would_not_follow_is_refused(config, reason):
    with pytest.raises(
        ValueError, match=re.escape(f"randaugment is {config!r}{reason}; write it as 'rand-m7")
    ):
        ClipRandAugment(config)


@pytest.mark.parametrize("sets", ["", "-inc0", "-inc1", "-tweights", "-t3a", "-t3aw"])
def test_no_operation_fails_at_any_magnitude(sets):
    """Pillow 13 refuses 0 bits: "rand-m9-n2-mstd0.5-inc1" raised in 11 of 6,000 views."""
    image = Image.fromarray(noise(1, 3, 5)[0])
    for op in ClipRandAugment(f"rand-m10{sets}").ops:
        for level in (*np.arange(0, 10.25, 0.25), 11.0, 20.0, 9999.0):
            for seed in (0, 1):  # of both signs
                op.aug_fn(image, *augment._level(op, float(level), seed), **op.kwargs)


@pytest.mark.parametrize("more", ["", "-inc1", "-inc1-mmax20", "-mstd0.5-inc1", "-mstd101-inc1-p1", "-t3aw"])
def test_no_view_fails_at_any_magnitude(more):
    image = Image.fromarray(noise(1, 3, 5)[0])
    for magnitude in (*range(12), 40):
        policy = ClipRandAugment(f"rand-m{magnitude}-n4{more}")
        for seed in range(20):
            assert policy([image], rng(seed))[0].size == (5, 3)


def test_the_view_that_killed_a_run():
    image = Image.fromarray(noise(1, 8, 8)[0])
    for config, seed in (
        ("rand-m9-n2-mstd0.5-inc1", 269),
        *(("rand-m10-n2-inc1", seed) for seed in range(60)),
    ):
        (changed,) = ClipRandAugment(config)([image], rng(seed))
        assert changed.size == image.size
    policy = ClipRandAugment("rand-m10-n1-p1-inc1")
    policy.ops = [op for op in policy.ops if op.name == "PosterizeIncreasing"]
    assert policy([image], rng())[0].tobytes() == ImageOps.posterize(image, 1).tobytes()


def test_randaugment_draws_operations_signs_and_magnitudes(monkeypatch):
    policy, seen = ClipRandAugment(RAND), []
    for op in policy.ops:
        monkeypatch.setattr(
            op, "aug_fn", lambda image, *args, name=op.name, **_: seen.append((name, args)) or image
        )
    image = Image.new("RGB", (8, 8))
    for seed in range(2000):
        policy([image], rng(seed))
    names = [name for name, _ in seen]
    assert 1.9 < len(seen) / 2000 < 2.1  # four operations, each applied half the time
    assert len(set(names)) == 15 and min(map(names.count, set(names))) > 0.8 * len(seen) / 15
    angles = np.array([args[0] for name, args in seen if name == "Rotate"])
    assert abs(np.abs(angles).mean() - 21) < 0.5 and 1 < np.abs(angles).std() < 2  # 7 +- 0.5 tenths of 30
    assert 0.35 < (angles > 0).mean() < 0.65


def test_other_generators_are_left_alone():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    settings = ViewSettings(frames=4, size_px=16, train_scale=24, test_scale=16, repeats=4)
    training_views(noise(), settings, rng(), ClipRandAugment(RAND))
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_frames_are_not_written_to():
    frames = noise(4, 24, 24)
    before = frames.copy()
    settings = ViewSettings(frames=4, size_px=24, train_scale=24, test_scale=24, repeats=4, clips=1)
    training_views(frames, settings, rng(), ClipRandAugment(RAND))
    training_views(frames, settings, rng())
    evaluation_views(frames, settings)
    np.testing.assert_array_equal(frames, before)


# ---- datasets


@pytest.fixture(scope="module")
def ssv2(tmp_path_factory):
    root = tmp_path_factory.mktemp("views") / "ssv2"
    write_layout("ssv2", root)
    return root


@pytest.fixture(scope="module")
def dataset(ssv2):
    return ActionTrainingSet(
        read_action("ssv2", ssv2, "train"), PROTOCOLS["ssv2"]["paper"].at_size(32), seed=7
    )


def test_a_row_has_its_views_and_labels(dataset):
    row_id, shown, labels = dataset[1]
    assert row_id == "46" and shown.shape == (2, 8, 3, 32, 32) and shown.dtype == torch.float32
    assert labels.dtype == torch.int64 and set(labels.tolist()) <= {2, 3}  # turning left, or mirrored
    assert dataset.shares == [(4, 1.0)] and len(dataset) == 4


def test_mirrored_clips_of_left_and_right_exchange_their_labels(dataset, monkeypatch):
    drawn = training_views
    monkeypatch.setattr(views, "training_views", lambda *a: (drawn(*a)[0], np.array([True, False])))
    assert [dataset[i][2].tolist() for i in range(4)] == [[2, 3], [3, 2], [1, 1], [0, 0]]


def test_mirrored_clips_of_finegym_keep_their_labels_where_names_repeat(tmp_path):
    write_layout("gym99", tmp_path)
    split = read_action("gym99", tmp_path, "train")
    for label in (58, 70, 75, 97, 98):
        one = dataclasses.replace(split, clips=(dataclasses.replace(split.clips[0], label=label),))
        training = ActionTrainingSet(one, dataclasses.replace(PLAIN, flip=1.0, repeats=40), seed=0)
        assert training[0][2].tolist() == [label] * 40


def test_the_whole_row_is_what_its_parts_give(dataset, ssv2):
    split, settings = read_action("ssv2", ssv2, "train"), dataset.settings
    generator = np.random.default_rng([7, 12, 2])
    frames = read_frames(split.clips[2].path, lambda n: draw_indices(n, generator, frames=8))  # of full size
    wanted, _ = training_views(frames, settings, generator, ClipRandAugment(RAND))
    assert torch.equal(dataset[PlacedRow(2, 12)][1], wanted)


def test_a_row_depends_on_seed_place_and_index_alone(dataset, ssv2):
    one = dataset[PlacedRow(1, 40)][1]
    for index in (0, 3, PlacedRow(1, 41)):
        dataset[index]
    random.seed(5)
    np.random.seed(5)
    assert torch.equal(dataset[PlacedRow(1, 40)][1], one)
    assert not torch.equal(dataset[PlacedRow(1, 41)][1], one)
    other = ActionTrainingSet(read_action("ssv2", ssv2, "train"), dataset.settings, seed=8)
    assert not torch.equal(other[PlacedRow(1, 40)][1], one)


def batches(dataset, batch_size, steps=range(3), rank=0, processes=1, workers=0):
    order = StepBatches(
        RowOrder(dataset.shares, 7),
        steps,
        batch_size=batch_size,
        accumulate=1,
        rank=rank,
        processes=processes,
    )
    return list(DataLoader(dataset, batch_sampler=order, collate_fn=dataset.collate, num_workers=workers))


def test_two_processes_see_what_one_sees_with_twice_the_batch(dataset):
    whole = batches(dataset, 4)
    halves = [batches(dataset, 2, rank=rank, processes=2) for rank in range(2)]
    for step in range(3):
        for key in ("video", "labels"):
            assert torch.equal(whole[step][key], torch.cat([half[step][key] for half in halves]))
        assert whole[step]["row_ids"] == halves[0][step]["row_ids"] + halves[1][step]["row_ids"]
    assert whole[0]["video"].shape == (8, 8, 3, 32, 32)
    # The same clips come again in the next epoch, in other views.
    assert sorted(whole[0]["row_ids"]) == sorted(whole[1]["row_ids"])
    views_seen = {view.numpy().tobytes() for batch in whole for view in batch["video"]}
    assert len(views_seen) == 24


def test_a_resumed_run_sees_what_it_would_have_seen(dataset):
    for before, after in zip(batches(dataset, 2)[1:], batches(dataset, 2, range(1, 3)), strict=True):
        assert torch.equal(before["video"], after["video"]) and torch.equal(before["labels"], after["labels"])


def test_workers_draw_the_same(dataset):
    for one, other in zip(batches(dataset, 2), batches(dataset, 2, workers=2), strict=True):
        assert torch.equal(one["video"], other["video"]) and one["row_ids"] == other["row_ids"]


def test_a_placed_row_is_an_int_that_pickles():
    row = pickle.loads(pickle.dumps(PlacedRow(3, 1027)))
    assert row == 3 and row.place == 1027 and isinstance(row, int) and [10, 11, 12, 13][row] == 13


def test_frames_are_scaled_as_they_are_read_unless_randaugment_comes_first(ssv2):
    asked = []

    def read(path, choose, *, scale):
        asked.append(scale)
        return read_frames(path, choose, scale=scale)

    split = read_action("ssv2", ssv2, "train")
    settings = PROTOCOLS["ssv2"]["paper"].at_size(32)
    plain = ViewSettings(**{**vars(settings), "randaugment": None})
    ActionTrainingSet(split, settings, seed=0, read=read)[0]
    ActionTrainingSet(split, plain, seed=0, read=read)[0]
    ActionTestSet(split, settings, read=read)[0]
    assert asked == [None, (37, 46), (37, 46)]


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"no video")
    return ActionSplit("list", "train", ("a", "b"), (ActionClip("x", str(path), 1),) * 2, (), None, "")


def test_a_broken_video_is_rejected_by_name(broken):
    for row in (ActionTrainingSet(broken, PLAIN, seed=0)[0], ActionTestSet(broken, PLAIN)[0]):
        assert isinstance(row, Rejected) and row.row_id == "x" and "not a video" in row.reason


@pytest.mark.parametrize("cached", [False, True])
def test_a_folder_with_another_number_of_images_than_its_line_says_is_refused(tmp_path, cached):
    """`list_flow`: 8 frames with 14 pictures of optical flow beside them, which sort first."""
    write_frames(tmp_path / "clip", moving_square(0, 8), "img_{:05d}.jpg")
    read = FrameCache(tmp_path / "cache").read_frames if cached else read_frames

    def rows(frames):
        clips = (ActionClip("x", str(tmp_path / "clip"), 1, frames),)
        split = ActionSplit("list", "train", ("a", "b"), clips, (), None, "")
        return ActionTrainingSet(split, PLAIN, seed=0, read=read)[0], ActionTestSet(split, PLAIN, read=read)[
            0
        ]

    assert not any(isinstance(row, Rejected) for _ in range(2) for row in (*rows(8), *rows(None)))
    for row in rows(22):
        assert row == Rejected(
            "x",
            f"{tmp_path}/clip: 8 frames are there, its line in the list says 22 (remedy: keep only the "
            "clip's own frames in the folder, or correct the line)",
        )


def test_a_batch_counts_its_usable_rows(dataset):
    batch = dataset.collate([dataset[0], Rejected("y", "gone"), dataset[2]])
    assert batch["video"].shape == (4, 8, 3, 32, 32) and batch["labels"].tolist()[2:] == [1, 1]
    assert batch["row_ids"] == ["45", "47"] and batch["rejected"] == [Rejected("y", "gone")]
    assert (batch["count"], batch["read"]) == (4, 32)


def test_a_batch_without_a_usable_row_still_runs_and_teaches_nothing(broken):
    training = ActionTrainingSet(broken, PLAIN, seed=0)
    batch = training.collate([training[0], training[1]])
    assert batch["video"].shape == (1, 4, 3, 16, 16) and (batch["count"], batch["read"]) == (0, 0)
    assert batch["row_ids"] == [] and [row.row_id for row in batch["rejected"]] == ["x", "x"]
    logits = torch.randn(1, 2, requires_grad=True)
    loss = F.cross_entropy(logits, batch["labels"], reduction="sum", label_smoothing=0.1)
    loss.backward()
    assert loss == 0 and logits.grad.abs().sum() == 0


def test_test_views_of_a_clip(ssv2):
    split = read_action("ssv2", ssv2, "test")
    settings = PROTOCOLS["ssv2"]["paper"].at_size(32)
    clip_id, shown, label = ActionTestSet(split, settings)[1]
    assert (clip_id, label) == ("50", 2) and shown.shape == (6, 8, 3, 32, 32)
    # 10 frames: seg = 9 / 8, shifts int(seg / 3) and int(2 seg / 3) are 0: both clips are the same.
    chosen = [0, 1, 2, 3, 4, 6, 7, 8]
    frames = read_frames(split.clips[1].path, lambda n: np.array(chosen * 2), scale=(37, 46))
    torch.testing.assert_close(shown, evaluation_views(frames, settings))
    torch.testing.assert_close(shown[:3], shown[3:])
    again = ActionTestSet(split, settings)[1]
    assert torch.equal(again[1], shown)


def test_every_dataset_gives_training_and_test_views(tmp_path):
    for data, protocols in PROTOCOLS.items():
        if data == "mini":  # has no layout of its own
            continue
        write_layout(data, tmp_path / data)
        settings = protocols["paper"].at_size(16)
        training = ActionTrainingSet(read_action(data, tmp_path / data, "train"), settings, seed=0)
        batch = training.collate([training[i] for i in range(4)])
        assert batch["count"] == 4 * settings.repeats and batch["rejected"] == []
        assert batch["video"].shape == (batch["count"], settings.frames, 3, 16, 16)
        tests = ActionTestSet(read_action(data, tmp_path / data, "test"), settings)
        assert [len(tests[i][1]) for i in range(2)] == [settings.clips * settings.crops] * 2


def test_one_picture_is_a_video():
    assert views.ViewSettings().min_area == 0.08 and augment.RATIO == (3 / 4, 4 / 3)
    frames = moving_square(0, 1)
    settings = ViewSettings(frames=8, size_px=32, train_scale=40, test_scale=32)
    shown, _ = training_views(frames[draw_indices(1, rng(), frames=8)], settings, rng())
    assert torch.equal(shown, shown[:, :1].expand_as(shown))
