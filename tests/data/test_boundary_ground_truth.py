"""Owns: the ground truth built from raw marks is the official notebook's, of 2021 and of May 2022."""

import pytest
from boundary_layouts import golden

from moss_vllm.data.boundaries.ground_truth import build_ground_truth

GOLDEN = golden("ground_truth")


@pytest.mark.parametrize("version", ["2021", "2022"])
def test_each_version_is_the_notebooks(version):
    built = build_ground_truth(GOLDEN["raw"], version)
    assert built == GOLDEN[f"ground_truth_{version}"] and list(built) == list(
        GOLDEN[f"ground_truth_{version}"]
    )


def mark(time, kind="EventChange (Timestamp/Range): Change of Action", end=None):
    return {"start_time": time, "end_time": time if end is None else end, "label": kind}


CUT, RANGE = "ShotChangeImmediateTimestamp: Change due to Cut", "ShotChangeGradualRange: Change due to Fade"


def boundaries(*marks, version="2022", raters=3):
    record = {"num_frames": 300, "path_video": "a/b.mp4", "fps": 30.0, "video_duration": 10.0}
    record |= {"f1_consis": [1.0] * raters, "f1_consis_avg": 1.0}
    built = build_ground_truth({"a": {**record, "substages_timestamps": [list(marks)] * raters}}, version)
    return built["a"]["substages_timestamps"][0] if built else None


def test_marks_near_the_ends_and_near_each_other_go():
    assert boundaries(mark(0.29), mark(0.3), mark(9.7), mark(9.71)) == [0.3, 9.7]
    assert boundaries(mark(2.0, end=3.0), mark(3.0)) == [2.5]
    assert boundaries(mark(2.0), mark(2.5), mark(2.9)) == [2.0, 2.9]  # 2.5 is gone, and 2.9 is far enough


def test_an_event_yields_to_each_cut_but_the_last():
    assert boundaries(mark(2.2), mark(2.0, CUT), mark(5.1), mark(5.0, CUT)) == [2.0, 5.0, 5.1]


def test_ranges_are_sorted_before_they_are_joined_since_2022():
    marks = (mark(6.0, RANGE, 7.0), mark(3.0, RANGE, 4.0), mark(3.5, RANGE, 5.0))
    assert boundaries(*marks) == [4.0, 6.5]
    assert boundaries(*marks, version="2021") == [6.5]


def test_one_behind_a_removed_mark_stays_in_its_range():
    assert boundaries(mark(3.0, RANGE, 5.0), mark(3.1), mark(4.0), mark(4.9)) == [4.0, 4.0]


def test_clips_of_two_raters_or_without_a_field_are_left_out():
    assert boundaries(mark(2.0), raters=2) is None and boundaries(mark(2.0), raters=3) == [2.0]


def test_a_frame_rate_however_high_ends_at_the_last_frame():
    record = {"num_frames": 300, "path_video": "a/b.mp4", "fps": 1e308, "video_duration": 10.0}
    record |= {"f1_consis": [1.0] * 3, "f1_consis_avg": 1.0, "substages_timestamps": [[mark(2.0)]] * 3}
    assert build_ground_truth({"a": record})["a"]["substages_myframeidx"] == [[299.0]] * 3
