"""Owns: a random box fits into its frame."""

import numpy as np
from drawing import rng

from moss_vllm.recognition.augment import draw_box


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
