"""Owns: the frames that are looked at and their labels are EfficientGEBD's, number by number."""

import numpy as np
import pytest
from boundary_layouts import golden

from moss_vllm.boundaries.targets import (
    choose_raters,
    clip_targets,
    gaussian_labels,
    hard_labels,
    in_annotation,
    slice_targets,
)
from moss_vllm.data.annotated_videos import Notes
from moss_vllm.data.boundaries.annotation import read_records

GOLDEN = golden("targets")
ON_DISK = {name: one for name, one in GOLDEN["kinetics"].items() if one["frames_on_disk"]}


def read(one):
    """The clip of a case."""
    return read_records({"a": one["record"]}, "file", Notes())[0]


@pytest.mark.parametrize("part, most", [("train", 2), ("val", 1)])
@pytest.mark.parametrize("name", ON_DISK)
def test_clips_of_kinetics(name, part, most):
    one = ON_DISK[name]
    video = read(one)
    raters = choose_raters(video, most)
    assert list(raters) == [sample["rater"] for sample in one[part]]
    for rater, sample in zip(raters, one[part], strict=True):
        targets = clip_targets(video, rater, one["frames_on_disk"])
        assert targets.files.tolist() == targets.numbers.tolist() == sample["frame_indices"]
        assert targets.hard.tolist() == sample["hard_labels"] and targets.mask.all()
        if part == "train":
            np.testing.assert_allclose(targets.gaussian, sample["gaussian_labels"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", GOLDEN["tapos"])
def test_slices_of_tapos(name):
    one = GOLDEN["tapos"][name]
    slices = slice_targets(read(one), 0, one["frames_on_disk"])
    assert len(slices) == one["num_slices"]
    for targets, sample in zip(slices, one["slices"], strict=True):
        assert targets.files.tolist() == sample["frame_indices"]
        assert targets.mask.tolist() == [bool(value) for value in sample["frame_mask"]]
        assert targets.hard.tolist() == sample["hard_labels"]
        assert targets.cut.tolist() == sample["trained_labels"]
        np.testing.assert_allclose(targets.gaussian, sample["gaussian_labels"], rtol=0, atol=1e-6)


def test_a_slice_may_have_no_frame_of_its_own():
    one = GOLDEN["tapos"]["madeTAPOS___s00002_1_500_11_500"]  # of 10 s
    full, empty = slice_targets(read(one), 0, 250)
    assert full.mask.all() and not empty.mask.any() and set(empty.files) == {250}


def test_two_gaussians_fill_the_frame_between_them_where_they_are_cut():
    hard = np.array([0, 1, 0, 1, 0], np.float32)
    assert gaussian_labels(hard)[2] == 1 and np.floor(gaussian_labels(hard)).tolist() == [0, 1, 1, 1, 0]
    assert gaussian_labels(np.zeros(4, np.float32)).tolist() == [0] * 4


def test_a_frame_is_positive_up_to_0_15_s_from_a_boundary():
    assert hard_labels(np.array([16.0, 17.0, 20.0, 23.0, 24.0]), [20.0], 20.0).tolist() == [0, 1, 1, 1, 0]
    assert hard_labels(np.arange(3.0), [], 20.0).tolist() == [0, 0, 0]


def test_frames_of_another_rate_are_placed_by_time():
    chosen = np.array([1, 50, 100])
    assert in_annotation(chosen, 100, 300).tolist() == [1.0, 1 + 49 * 299 / 99, 300.0]
    assert in_annotation(chosen, 297, 300).tolist() == [1.0, 50.0, 100.0]  # as the reference counts them
    assert in_annotation(np.array([1]), 1, 300).tolist() == [1.0]
    one = ON_DISK["madeup01_yA"]  # 300 frames, of which every third was kept beforehand
    whole, kept = (clip_targets(read(one), 1, files) for files in (300, 100))
    assert kept.files.tolist() == list(range(1, 101)) and kept.hard.tolist() == whole.hard.tolist()
