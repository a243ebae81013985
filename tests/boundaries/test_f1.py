"""Owns: F1, precision and recall at each relative distance are those of the three evaluations in use."""

import numpy as np
import pytest
from boundary_layouts import golden, record

from moss_vllm.boundaries.f1 import DISTANCES, F1_RULES, f1_scores, match_boundaries
from moss_vllm.data.annotated_videos import Notes
from moss_vllm.data.boundaries.annotation import read_records

GOLDEN = golden("f1")
CASES = [
    (part, result, rule)
    for part, content in (("kinetics", GOLDEN), ("tapos", GOLDEN["tapos"]))
    for result, rule in (
        ("official_seconds", "official"),
        ("efficientgebd_frames", "efficientgebd"),
        ("official_tapos_frames", "official_tapos"),
    )
    if result in content["results"]
]


def clips(*records):
    return read_records({f"clip{n}": one for n, one in enumerate(records)}, "file", Notes())


@pytest.mark.parametrize("part, result, rule", CASES)
def test_each_rule_has_its_evaluations_numbers(part, result, rule):
    content = GOLDEN if part == "kinetics" else GOLDEN["tapos"]
    videos = read_records(content["ground_truth"], "file", Notes())
    matches = match_boundaries(videos, content["predictions_seconds"], rule)
    expected = [content["results"][result][str(distance)] for distance in DISTANCES]
    for row, key in zip(matches.scores(), ("f1", "precision", "recall"), strict=True):
        np.testing.assert_allclose(row, [one[key] for one in expected], rtol=0, atol=1e-9)
    average = content["results"][result]["average"]
    averages = dict(zip(("f1", "precision", "recall"), matches.scores().mean(axis=1), strict=True))
    assert averages == pytest.approx(average, rel=0, abs=1e-9)
    for counted, key in ((matches.hits, "tp"), (matches.positives, "positives")):
        assert counted.sum(axis=0).tolist() == [one[key] for one in expected]
    assert {one["detections"] for one in expected} == {matches.detections.sum()}
    assert len(matches.missing) == 1


def test_seconds_are_the_frames_that_were_meant():
    videos = read_records(GOLDEN["ground_truth"], "file", Notes())
    for video in videos:
        frames = GOLDEN["predictions_frames"].get(video.video_id, [])
        seconds = GOLDEN["predictions_seconds"].get(video.video_id, [])
        assert seconds == pytest.approx([frame / video.fps for frame in frames])
    moved = {name: [time + 1e-9 for time in some] for name, some in GOLDEN["predictions_seconds"].items()}
    one, other = (
        match_boundaries(videos, found, "efficientgebd").scores()
        for found in (GOLDEN["predictions_seconds"], moved)
    )
    assert np.array_equal(one, other)


def test_a_clip_without_predictions_is_missed_or_left_out():
    videos = clips(record("a", [2.0, 5.0]), record("b", [3.0]))
    found = {"clip0": [2.0, 5.0]}
    official, frames = (match_boundaries(videos, found, rule) for rule in ("official", "efficientgebd"))
    assert official.missing == frames.missing == ("clip1",)
    assert official.scores()[:, 0].tolist() == pytest.approx([0.8, 1.0, 2 / 3])
    assert frames.scores()[:, 0].tolist() == [1.0, 1.0, 1.0] and frames.names == ("clip0",)
    none = match_boundaries(
        videos, {**found, "clip1": []}, "efficientgebd"
    )  # nothing found is no missing clip
    assert none.scores()[:, 0].tolist() == pytest.approx([0.8, 1.0, 2 / 3]) and not none.missing


def test_raters_that_disagree_leave_a_clip_out():
    videos = clips(record("a", [2.0], consistency=[0.29]), record("b", [2.0], consistency=[0.3]))
    matches = match_boundaries(videos, {"clip0": [2.0], "clip1": [2.0]})
    assert matches.names == ("clip1",) and matches.inconsistent == ("clip0",)


def test_the_best_rater_counts_for_each_distance():
    videos = clips(record("a", [2.0], [2.0, 6.0], []))
    matches = match_boundaries(videos, {"clip0": [2.0, 6.9]}, distances=(0.05, 0.1))
    assert matches.raters.tolist() == [[0, 1]]  # 6.9 is 0.9 s from 6.0
    assert matches.hits.tolist() == [[1, 2]] and matches.positives.tolist() == [[1, 2]]


def test_a_boundary_takes_the_nearest_detection_that_is_left():
    videos = clips(record("a", [2.0, 2.4]))
    assert match_boundaries(videos, {"clip0": [2.3]}, distances=(0.05,)).hits.tolist() == [[1]]
    assert match_boundaries(videos, {"clip0": [2.3, 1.0]}, distances=(0.05,)).hits.tolist() == [[1]]
    assert match_boundaries(videos, {"clip0": [2.3, 2.8]}, distances=(0.05,)).hits.tolist() == [[2]]


def test_detections_outside_a_clip_are_dropped_and_counted():
    videos = clips(record("a", [2.0]))
    found = {"clip0": [-0.1, 2.0, 10.0, 10.1]}
    official, frames = (match_boundaries(videos, found, rule) for rule in ("official", "efficientgebd"))
    assert (official.detections.tolist(), official.outside) == ([2], 2)
    assert (frames.detections.tolist(), frames.outside) == ([1], 3)  # the last frame is outside


def test_nothing_found_or_nothing_there():
    hits, positives, detections = np.array([[0, 0, 0], [2, 0, 0], [0, 3, 0]])
    assert f1_scores(hits, positives, detections).T.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 1]]


def test_clips_counted_several_times_are_as_many_clips():
    videos = read_records(GOLDEN["ground_truth"], "file", Notes())
    matches = match_boundaries(videos, GOLDEN["predictions_seconds"])
    weights = np.arange(len(matches.names)) % 3
    twice = [video for video in videos if video.video_id in matches.names]
    repeated = [video for video, count in zip(twice, weights, strict=True) for _ in range(count)]
    expected = match_boundaries(repeated, GOLDEN["predictions_seconds"]).scores()
    np.testing.assert_allclose(matches.scores(weights), expected, rtol=0, atol=1e-12)


def test_what_cannot_be_scored():
    videos = clips(record("a", [2.0], consistency=[0.1]))
    with pytest.raises(
        ValueError, match="no clip is left to score: 1 have raters that agree below 0.3, 0 have no"
    ):
        match_boundaries(videos, {"clip0": [2.0]})
    with pytest.raises(
        ValueError, match="the rule of F1 is 'f1'; it must be one of official, efficientgebd, off"
    ):
        match_boundaries(videos, {}, "f1")


@pytest.mark.parametrize("rule", F1_RULES)
def test_a_time_however_far_outside_its_clip_is_dropped(rule):
    videos, far = clips(record("a", [2.0, 5.0])), [-1e308, 2.0, 5.0, 1e308]
    matches = match_boundaries(videos, {"clip0": far}, rule)
    assert matches.outside == 2 and matches.hits[0, 0] == matches.detections[0] == 2
