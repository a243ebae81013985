"""Owns: which frames a clip shows are the authors' formulas, and every length of video has some."""

import numpy as np
import pytest
from drawing import rng

from moss_vllm.recognition.frame_choice import SAMPLINGS, draw_indices, spread_indices


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
