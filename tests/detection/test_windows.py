"""Owns: windows are those of AdaTAD's authors, with their frames, fill, masks and actions."""

import json
from pathlib import Path

import numpy as np
import pytest

from moss_vllm.data.detection.annotation import Action
from moss_vllm.data.detection.datasets import DetectionVideo
from moss_vllm.detection.windows import (
    MAX_DRAWS,
    WindowSettings,
    draw_window,
    segments_in_steps,
    training_window,
    windows_to_test,
    windows_to_validate,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden_detection" / "windows.json").read_text())
SMALL = WindowSettings(steps=32)
VIDEOS = pytest.mark.parametrize("golden", GOLDEN["videos"], ids=lambda golden: golden["video"])


def video_of(golden):
    actions = [
        Action(*row["segment"], GOLDEN["class_names"].index(row["label"]))
        for row in golden.get("annotations", [])
        if row["label"] != "Ambiguous"
    ]
    return DetectionVideo(golden["video"], "x.mp4", golden["duration"], golden["frame"], tuple(actions))


def video(frames=400, *actions, duration_s=None):
    return DetectionVideo("v", "v.mp4", duration_s or frames / 25, frames, actions)


def as_rows(windows):
    return [
        {
            "window_start_frame": window.start_frame,
            "valid": window.valid,
            "frame_indices": window.frame_indices.tolist(),
        }
        for window in windows
    ]


def with_actions(window, row):
    return row | {"gt_segments": window.segments.tolist(), "gt_labels": window.labels.tolist()}


@VIDEOS
def test_golden_windows(golden):
    one, frames = video_of(golden), golden["decoded_frames"]
    segments, labels = segments_in_steps(one, 4)
    assert segments.tolist() == golden["gt_segments_units"] and labels.tolist() == golden["gt_labels"]
    assert one.fps == golden["fps"]
    assert as_rows(windows_to_test(one, frames, SMALL)) == golden["test_windows"]
    windows = windows_to_validate(one, frames, SMALL)
    rows = [with_actions(*pair) for pair in zip(windows, as_rows(windows), strict=True)]
    assert rows == golden["val_windows"]


@VIDEOS
def test_golden_training_windows(golden):
    one, frames = video_of(golden), golden["decoded_frames"]
    for row in golden["training_windows"]:
        window = training_window(one, frames, SMALL, row["start"], row["length"])
        assert window.start_frame == 4 * row["start"] and window.accepted == row["accepted"]
        assert (window.valid, window.frame_indices.tolist()) == (row["valid"], row["frame_indices"])
        assert window.segments.tolist() == row["gt_segments"] and window.labels.tolist() == row["gt_labels"]


class Extremes:
    """Draws the smallest or the largest number, and notes both."""

    def __init__(self, largest):
        self.largest, self.ranges = largest, []

    def integers(self, low, high):
        self.ranges.append([low, high - 1])
        return high - 1 if self.largest else low


@VIDEOS
@pytest.mark.parametrize("largest", [False, True])
def test_golden_ranges_of_what_is_drawn(golden, largest):
    rng = Extremes(largest)
    draw_window(video_of(golden), golden["decoded_frames"], SMALL, rng)
    row = golden["training_windows"][0]
    if "length_range" in row:
        assert rng.ranges.pop(0) == row["length_range"]
        assert rng.ranges[0] == [0, 0 if largest else 3]
    else:
        assert rng.ranges[0] == row["start_range"]


@pytest.mark.parametrize("golden", GOLDEN["real_size"]["videos"], ids=lambda golden: golden["video"])
def test_golden_windows_at_the_real_size(golden):
    windows = windows_to_test(video_of(golden), golden["frame"], WindowSettings())
    found = [
        {
            "window_start_frame": window.start_frame,
            "valid": window.valid,
            "first": int(window.frame_indices[0]),
            "last": int(window.frame_indices[-1]),
        }
        for window in windows
    ]
    assert found == golden["test_windows"]


def test_the_mask_is_true_on_real_steps_and_the_fill_repeats_the_last():
    (window,) = windows_to_test(video(98), 98, SMALL)
    assert window.valid == 25 and window.mask.tolist() == [True] * 25 + [False] * 7
    assert window.frame_indices.tolist() == [*range(0, 100, 4), *[96] * 7]
    assert window.segments.shape == (0, 2) and window.labels.dtype == np.int64


def test_a_drawn_window_has_an_action_and_says_so_where_none_can():
    rng = np.random.default_rng(0)
    one = video(4000, Action(100.0, 101.0, 3))
    drawn = [draw_window(one, 4000, SMALL, rng) for _ in range(20)]
    assert all(window.accepted and window.labels.tolist() == [3] for window in drawn)
    assert len({window.start_frame for window in drawn}) > 5
    long = video(4000, Action(0.0, 160.0, 3))  # a window shows a thirtieth of it
    rng = Extremes(False)
    window = draw_window(long, 4000, SMALL, rng)
    assert not window.accepted and len(window.labels) == 0 and len(rng.ranges) == MAX_DRAWS


def test_the_same_seed_draws_the_same_windows():
    one = video(4000, *(Action(10.0 * i, 10.0 * i + 3, i) for i in range(15)))
    first, second = (
        [draw_window(one, 4000, SMALL, rng).start_frame for _ in range(8)]
        for rng in (np.random.default_rng(7), np.random.default_rng(7))
    )
    assert first == second


def test_an_action_without_length_is_in_no_window():
    one = video(1000, Action(1.0, 1.0, 0), Action(2.0, 2.001, 0))
    assert windows_to_validate(one, 1000, SMALL) == []


def test_a_file_shorter_than_its_annotation_is_named_where_a_window_starts_after_it():
    windows = windows_to_test(video(1000), 997, SMALL)
    assert windows[-1].valid == 32 and windows[-1].frame_indices[-1] == 996
    with pytest.raises(
        ValueError, match=r"v.mp4: window at frame 192, the file has 190 frames, .* 1,000 \(v"
    ):
        windows_to_test(video(1000), 190, SMALL)


@pytest.mark.parametrize(
    "given, told",
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"stride": 0}, "stride is 0"),
        ({"test_overlap": 1.0}, "test_overlap is 1.0; 768 steps must advance by one"),
        ({"validation_overlap": -0.1}, "validation_overlap is -0.1"),
        ({"steps": 3, "test_overlap": 0.9}, "test_overlap is 0.9; 3 steps must"),
        ({"kept_share": 0.0}, "kept_share is 0.0"),
        ({"shortest_crop": 1.5}, "shortest_crop is 1.5; it must be above 0 and at most 1"),
    ],
)
def test_settings_out_of_range(given, told):
    with pytest.raises(ValueError, match=told):
        WindowSettings(**given)
