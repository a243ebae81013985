"""Owns: a window's frames are changed alike, by the caller's generator alone, as AdaTAD changes them."""

import random

import numpy as np
import pytest
import torch
from action_layouts import noise
from drawing import rng
from PIL import Image

from moss_vllm.detection import augment
from moss_vllm.detection.augment import RAND_AUGMENT, change_frames, draw_crop


def window(frames=3, height=40, width=56):
    return np.repeat(noise(1, height, width), frames, 0)


@pytest.mark.parametrize("seed", range(8))
def test_equal_frames_stay_equal_and_the_generator_decides(seed):
    changed = change_frames(window(), 32, rng(seed))
    assert changed.shape == (3, 32, 32, 3) and changed.dtype == np.uint8
    assert (changed == changed[:1]).all()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert (change_frames(window(), 32, rng(seed)) == changed).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert (change_frames(window(), 32, rng(seed + 100)) != changed).any()


def test_a_frame_is_changed_as_alone():
    frames = noise(4, 40, 56)
    changed = change_frames(frames, 32, rng(3))
    for place in range(4):
        assert (change_frames(frames[place : place + 1], 32, rng(3))[0] == changed[place]).all()


def test_boxes_are_those_of_adatad():
    boxes = np.array([draw_crop(182, 324, rng(seed)) for seed in range(4000)])
    left, top, right, bottom = boxes.T
    width, height = right - left, bottom - top
    assert boxes.min() >= 0 and right.max() <= 324 and bottom.max() <= 182
    share = width * height / (182 * 324)
    assert 0.078 < share.min() < 0.09 and share.max() > 0.7
    ratio = width / height
    assert 0.73 < ratio.min() and ratio.max() < 1.36 and abs(np.log(ratio).mean()) < 0.05
    squares = [draw_crop(10, 200, rng(seed)) for seed in range(50)]
    assert (95, 0, 105, 10) in squares  # the largest square, in the middle
    assert draw_crop(1, 1, rng()) == (0, 0, 1, 1)


def test_randaugment_has_adatads_operations_and_magnitudes():
    assert RAND_AUGMENT.count == 2 and len(RAND_AUGMENT.ops) == 15
    assert {(op.prob, op.magnitude, op.magnitude_std) for op in RAND_AUGMENT.ops} == {(1.0, 9, 0)}
    levels = {op.name: op.level_fn(9, op.hparams) if op.level_fn else () for op in RAND_AUGMENT.ops}
    sizes = {name: abs(values[0]) for name, values in levels.items() if values}
    expected = {"Rotate": 27, "Posterize": 3, "Solarize": 230, "ShearX": 0.27, "TranslateYRel": 0.18}
    expected |= {"Color": 1.72, "Contrast": 1.72, "Brightness": 1.72, "Sharpness": 1.72}
    assert {name: sizes[name] for name in expected} == pytest.approx(expected)
    assert RAND_AUGMENT.ops[3].kwargs == {"fillcolor": (0, 0, 0), "resample": Image.Resampling.BILINEAR}


def test_flips_and_colours_are_drawn_in_their_ranges(monkeypatch):
    seen, flips = [], 0
    names = ("brightness", "contrast", "saturation", "hue")
    noted = [
        (lambda image, value, name=name: seen.append((name, value)) or image, low, high)
        for name, (_, low, high) in zip(names, augment.COLOUR_CHANGES, strict=True)
    ]
    monkeypatch.setattr(augment, "COLOUR_CHANGES", noted)
    monkeypatch.setattr(augment, "RAND_AUGMENT", lambda images, rng: images)
    monkeypatch.setattr(augment, "draw_crop", lambda height, width, rng: (0, 0, width, height))
    frame = window(1, 32, 32)
    for seed in range(400):
        changed = change_frames(frame, 32, rng(seed))
        flips += (changed == frame[:, :, ::-1]).all()
        assert (changed == frame).all() or (changed == frame[:, :, ::-1]).all()
    assert 160 < flips < 240
    for name in names:
        values = [value for one, value in seen if one == name]
        ends = (-0.1, 0.1) if name == "hue" else (0.5, 1.5)
        assert len(values) == 400 and ends[0] <= min(values) < max(values) <= ends[1]
    orders = {tuple(name for name, _ in seen[4 * n : 4 * n + 4]) for n in range(400)}
    assert len(orders) == 24
