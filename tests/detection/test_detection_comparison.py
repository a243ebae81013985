"""Owns: two detectors' tests are compared on the same draws of the same videos."""

import numpy as np
import pytest

from moss_vllm.data.detection.annotation import Action
from moss_vllm.data.detection.datasets import DetectionSplit, DetectionVideo
from moss_vllm.detection.average_precision import match_detections
from moss_vllm.detection.comparison import compare_detections
from moss_vllm.detection.predictions import Detections, same_detections
from moss_vllm.detection.scores import score_detections

NAMES, CLASSES = ("AdaTAD", "+ MOSS"), ("CliffDiving", "Diving")
THRESHOLDS = (0.5, 0.7)


def split_of(truth, classes=CLASSES, file="anno.json"):
    videos = (DetectionVideo(name, "", 100.0, 3000, tuple(actions)) for name, actions in truth.items())
    return DetectionSplit("thumos14", "test", classes, tuple(videos), (), (), file)


def world(videos=12, seed=0):
    """Actions and what two detectors find of them: the second is nearer, and both fail in the same videos."""
    rng = np.random.default_rng(seed)
    truth, found = {}, ({}, {})
    for number in range(videos):
        name = f"v{number}"
        truth[name] = [Action(10 * at, 10 * at + 6, int(rng.integers(2))) for at in range(1 + number % 3)]
        hard = rng.uniform(0, 3)
        for test, predictions in enumerate(found):
            rows = []
            for action in truth[name]:
                start = action.start_s + hard * (1 - 0.4 * test) + rng.normal(0, 0.1)
                rows.append((start, start + 6, rng.uniform(0.3, 0.9), action.label))
                rows.append((start + 50, start + 53, rng.uniform(0.1, 0.6), action.label))
            table = np.array(rows)
            predictions[name] = Detections(table[:, :2], table[:, 2], table[:, 3].astype(np.int64))
    return truth, found


def compare(truth, found, **options):
    splits = (split_of(truth),) * 2
    return compare_detections(NAMES, splits, found, **{"thresholds": THRESHOLDS, "draws": 200, **options})


def test_the_difference_is_that_of_the_scores_and_of_each_class():
    truth, found = world()
    one, other = (score_detections(split_of(truth), part, thresholds=THRESHOLDS) for part in found)
    comparison = compare(truth, found)
    assert list(comparison.columns) == ["avg", "0.5", "0.7"]
    for name, row in comparison.columns.items():
        assert row.precision == pytest.approx((one.mean[name], other.mean[name]))
        assert row.points == pytest.approx(other.mean[name] - one.mean[name])
        assert (row.actions, row.videos) == (sum(one.actions.values()), 12)
    assert list(comparison.classes) == list(CLASSES)
    for label, name in enumerate(CLASSES):
        row = comparison.classes[name]
        assert row.precision == pytest.approx([np.mean(scores.classes[label]) for scores in (one, other)])
        assert row.actions == one.actions[label]


def test_the_interval_is_that_of_the_same_draws_for_both():
    truth, found = world()
    rng, changes = np.random.default_rng(3), []
    tests = [match_detections(truth, part, THRESHOLDS) for part in found]
    for _ in range(200):
        weights = np.bincount(rng.integers(0, 12, 12), minlength=12).astype(float)
        areas = [[one.average_precision(weights) for one in test] for test in tests]
        changes.append(100 * (np.nanmean(areas[1]) - np.nanmean(areas[0])))
    row = compare(truth, found, seed=3).columns["avg"]
    reach = 1.96 * np.std(changes)
    assert row.interval == pytest.approx((row.points - reach, row.points + reach))
    # Drawn apart, what is hard in a video would count as a difference between the tests.
    alone = [score_detections(split_of(truth), part, thresholds=THRESHOLDS) for part in found]
    apart = np.hypot(*((high - low) / 2 for low, high in (one.intervals["avg"] for one in alone)))
    assert reach < 0.8 * apart


def test_a_test_differs_from_itself_by_nothing_and_the_other_order_turns_the_sign():
    truth, (one, other) = world()
    same = compare(truth, (one, one))
    assert all((row.points, row.interval) == (0.0, (0.0, 0.0)) for row in same.columns.values())
    there, back = compare(truth, (one, other)), compare(truth, (other, one))
    for rows in ("columns", "classes"):
        for name, row in getattr(there, rows).items():
            turned = getattr(back, rows)[name]
            assert (row.points, row.interval[0]) == pytest.approx((-turned.points, -turned.interval[1]))
    assert same_detections(one, one) and not same_detections(one, other)
    assert same_detections({}, {"v0": one["v0"].take(np.zeros(0, np.int64))})


def test_a_video_without_detections_counts_and_strange_ones_are_false():
    truth, (one, other) = world()
    silent = {name: found for name, found in other.items() if name != "v0"}
    points = [compare(truth, (one, part)).columns["avg"].points for part in (silent, other)]
    assert points[0] < points[1]
    strange = Detections(np.array([[0.0, 9.0]] * 9), np.ones(9), np.zeros(9, np.int64))
    classes = compare(truth, (one, {**one, "elsewhere": strange})).classes
    assert classes["CliffDiving"].points < 0 == classes["Diving"].points


def test_other_videos_are_left_out_and_named():
    truth, found = world()
    changed = {name: actions for name, actions in truth.items() if name != "v1"}
    changed |= {"v2": truth["v2"][:1], "v20": truth["v3"]}
    splits = (split_of(truth), split_of(changed))
    comparison = compare_detections(NAMES, splits, found, thresholds=THRESHOLDS, draws=20)
    assert comparison.left_out == {
        "annotated in AdaTAD only": ["v1"],
        "annotated in + MOSS only": ["v20"],
        "whose actions are not the same in both": ["v2"],
    }
    kept = {name: actions for name, actions in truth.items() if name not in ("v1", "v2")}
    parts = tuple({name: part[name] for name in kept} for part in found)
    assert comparison.columns == compare(kept, parts, draws=20).columns
    assert comparison.notes[0] == "left out: 1 videos annotated in AdaTAD only (v1)"
    assert any("under 10 videos, so doubtful intervals: " in note for note in comparison.notes)


def test_one_video_has_no_interval():
    truth, found = world(1)
    assert compare(truth, found).columns["avg"].interval is None


def test_what_cannot_be_compared_is_refused():
    truth, found = world()
    with pytest.raises(ValueError, match=r"^the classes are not the same \(2 of anno.json and 2 of b.json\)"):
        compare_detections(NAMES, (split_of(truth), split_of(truth, CLASSES[::-1], "b.json")), found)
    others = {f"other {name}": actions for name, actions in truth.items()}
    with pytest.raises(ValueError, match=r"share no video with an action; 12 videos annotated in AdaT"):
        compare_detections(NAMES, (split_of(truth), split_of(others)), found)
