"""Owns: what part of its frames a view shows, and how it is changed."""

import random

import numpy as np
import pytest
import torch
from action_layouts import moving_square, noise
from drawing import RAND, rng
from PIL import Image

from moss_vllm.recognition import augment, views
from moss_vllm.recognition.augment import grey
from moss_vllm.recognition.dataset_views import DATASET_VIEWS
from moss_vllm.recognition.frame_choice import draw_indices
from moss_vllm.recognition.views import CLIP_MEAN, CLIP_STD, ViewSettings, evaluation_views, training_views
from moss_vllm.video.rand_augment import ClipRandAugment

PLAIN = ViewSettings(frames=4, size_px=16, train_scale=24, test_scale=16, flip=0.0)


def levels(view):
    """A view's values from 0 to 255."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (view * std + mean) * 255


def test_settings_in_another_resolution():
    small = DATASET_VIEWS["ssv2"]["paper"].at_size(56)
    assert (small.size_px, small.train_scale, small.test_scale) == (56, (64, 80), (64, 80))
    assert DATASET_VIEWS["k400"]["paper"].at_size(112).train_scale == 128


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


def test_frames_are_not_written_to_and_other_generators_left_alone():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    frames = noise(4, 24, 24)
    before = frames.copy()
    settings = ViewSettings(frames=4, size_px=24, train_scale=24, test_scale=24, repeats=4, clips=1)
    training_views(frames, settings, rng(), ClipRandAugment(RAND))
    training_views(frames, settings, rng())
    evaluation_views(frames, settings)
    np.testing.assert_array_equal(frames, before)
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_one_picture_is_a_video():
    assert views.ViewSettings().min_area == 0.08 and augment.RATIO == (3 / 4, 4 / 3)
    frames = moving_square(0, 1)
    settings = ViewSettings(frames=8, size_px=32, train_scale=40, test_scale=32)
    shown, _ = training_views(frames[draw_indices(1, rng(), frames=8)], settings, rng())
    assert torch.equal(shown, shown[:, :1].expand_as(shown))
