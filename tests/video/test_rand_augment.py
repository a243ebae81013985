"""Owns: RandAugment is timm's, alike for all frames of a clip, and no operation fails."""

import re

import numpy as np
import pytest
from action_layouts import noise
from drawing import RAND, rng
from PIL import Image, ImageOps

from moss_vllm.video import rand_augment
from moss_vllm.video.rand_augment import ClipRandAugment


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
        ("rand-n16-tweights", " (it draws 16 different operations, there are 15)"),
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
                op.aug_fn(image, *rand_augment._level(op, float(level), seed), **op.kwargs)


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
