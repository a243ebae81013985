"""Owns: average precision is that of AdaTAD's authors, and equals the rule read aloud."""

import json
from pathlib import Path

import numpy as np
import pytest

from moss_vllm.data.detection.annotation import Action, Notes, collect_labels, read_videos
from moss_vllm.detection.average_precision import TIOU_THRESHOLDS, match_detections, segment_iou
from moss_vllm.detection.predictions import Detections, no_detections, read_predictions

GOLDEN = Path(__file__).parents[1] / "golden_detection"


def golden_of(name, tmp_path):
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    database = golden["ground_truth"]["database"]
    labels = {row["label"] for rows in golden["predictions"]["results"].values() for row in rows}
    classes = sorted({*collect_labels(database), *labels})
    chosen = {key: row for key, row in database.items() if row["subset"] == golden["subset"]}
    truth = {
        video.video_id: video.actions for video in read_videos(Path("gt.json"), chosen, classes, Notes())
    }
    (tmp_path / "found.json").write_text(json.dumps(golden["predictions"]))
    return golden, truth, read_predictions(tmp_path / "found.json", classes), classes


@pytest.mark.parametrize("name", ["map_many", "map_few"])
def test_golden_average_precision(name, tmp_path):
    golden, truth, predictions, classes = golden_of(name, tmp_path)
    expected = golden["expected"]
    matches = match_detections(truth, predictions, golden["tiou_thresholds"])
    assert sum(one.actions.sum() for one in matches) == expected["ground_truth_instances"]
    assert sum(map(len, predictions.values())) == expected["prediction_rows"]
    areas = {classes[one.label]: one.average_precision() for one in matches}
    assert areas.keys() == expected["ap_per_class"].keys()
    for label, values in expected["ap_per_class"].items():
        np.testing.assert_allclose(areas[label], values, rtol=0, atol=1e-6)
    means = np.mean(list(areas.values()), axis=0)
    for threshold, mean in zip(golden["tiou_thresholds"], means, strict=True):
        assert mean == pytest.approx(expected[f"mAP@{threshold:g}"], abs=1e-6)
    assert means.mean() == pytest.approx(expected["average_mAP"], abs=1e-6)


def detections(*rows):
    """(start, end, score, label) of each."""
    table = np.array(rows, np.float64).reshape(-1, 4)
    return Detections(table[:, :2], table[:, 2], table[:, 3].astype(np.int64))


def areas(truth, predictions, thresholds=(0.5,)):
    return {
        one.label: one.average_precision().tolist()
        for one in match_detections(truth, predictions, thresholds)
    }


def test_a_second_detection_of_an_action_is_false_and_the_first_of_equals_counts():
    truth = {"v": [Action(0, 10, 0)], "w": [Action(0, 10, 0)]}
    first = {"v": detections((0, 10, 0.9, 0), (0, 10, 0.9, 0)), "w": detections((0, 10, 0.5, 0))}
    assert areas(truth, first) == {0: [pytest.approx((1 + 2 / 3) / 2)]}
    near, exact = (1, 10, 0.9, 0), (0, 10, 0.8, 0)
    (match,) = match_detections(truth, {"v": detections(exact, near)}, (0.5,))
    assert match.found.tolist() == [[True, False]] and match.scores.tolist() == [0.9, 0.8]


def test_a_detection_takes_the_free_action_that_it_overlaps_most():
    truth = {"v": [Action(0, 10, 0), Action(2, 12, 0)]}
    twice = {"v": detections((1, 11, 0.9, 0), (0, 10, 0.8, 0), (2, 12, 0.7, 0))}
    (match,) = match_detections(truth, twice, (0.6,))
    assert match.found.tolist() == [[True, True, False]]
    (match,) = match_detections(truth, {"v": detections((2, 11, 0.9, 0), (0, 10, 0.8, 0))}, (0.85,))
    assert match.found.tolist() == [[True, True]]


def test_a_class_needs_actions_and_other_videos_count_as_false():
    truth = {"v": [Action(0, 10, 0)], "w": [], "x": [Action(3, 4, 2)]}
    found = {"other": detections((0, 10, 0.9, 0)), "w": detections((0, 10, 0.95, 0), (0, 10, 0.9, 1))}
    found["v"] = detections((0, 10, 0.5, 0))
    assert areas(truth, found) == {0: [pytest.approx(1 / 3)], 2: [0.0]}
    assert areas(truth, {}) == areas(truth, {"v": no_detections()}) == {0: [0.0], 2: [0.0]}


def plainly(truth, predictions, threshold, label):
    """The rule read aloud."""
    rows = [
        (score, name, segment)
        for name, one in predictions.items()
        for segment, score, own in zip(one.segments_s, one.scores, one.labels, strict=True)
        if own == label
    ]
    rows.sort(key=lambda row: -row[0])
    actions = {name: [a for a in some if a.label == label] for name, some in truth.items()}
    taken, right = set(), []
    for _, name, (start, end) in rows:
        overlaps = []
        for number, action in enumerate(actions.get(name, [])):
            both = max(0, min(end, action.end_s) - max(start, action.start_s))
            overlaps.append((both / (end - start + action.end_s - action.start_s - both), number))
        free = [one for one in overlaps if one[0] >= threshold and (name, one[1]) not in taken]
        if free:
            taken.add((name, max(free)[1]))
        right.append(bool(free))
    total, area, before = sum(map(len, actions.values())), 0.0, 0.0
    precision = [sum(right[: n + 1]) / (n + 1) for n in range(len(right))]
    for n in range(len(right)):
        recall = sum(right[: n + 1]) / total
        area += (recall - before) * max(precision[n:])
        before = recall
    return area


def draw(seed, videos=5, rows=60):
    rng = np.random.default_rng(seed)
    truth, predictions = {}, {}
    for video in range(videos):
        starts = rng.uniform(0, 50, rng.integers(0, 8))
        truth[f"v{video}"] = [Action(s, s + rng.uniform(1, 9), int(rng.integers(3))) for s in starts]
        near = [truth[f"v{video}"][i] for i in rng.integers(len(starts), size=rows)] if len(starts) else []
        found = [(a.start_s + rng.normal(), a.end_s + 1 + rng.normal(), rng.random(), a.label) for a in near]
        predictions[f"v{video}"] = detections(*(row for row in found if row[1] > row[0]))
    return truth, predictions


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_equals_the_rule_read_aloud(seed):
    truth, predictions = draw(seed)
    for label, values in areas(truth, predictions, TIOU_THRESHOLDS).items():
        expected = [plainly(truth, predictions, threshold, label) for threshold in TIOU_THRESHOLDS]
        assert values == pytest.approx(expected, abs=1e-12)


def test_weights_count_videos_as_if_they_were_there_so_often():
    truth, predictions = draw(3)
    weights = np.array([2, 0, 1, 3, 1])
    many = {
        f"{name} {n}": (truth[name], predictions[name])
        for name, times in zip(truth, weights, strict=True)
        for n in range(times)
    }
    expected = areas({k: v[0] for k, v in many.items()}, {k: v[1] for k, v in many.items()}, TIOU_THRESHOLDS)
    for one in match_detections(truth, predictions):
        assert one.average_precision(weights).tolist() == pytest.approx(expected[one.label], abs=1e-12)
        assert np.isnan(one.average_precision(np.zeros(5))).all()


def test_overlap_of_segments_of_no_length_is_zero():
    points = np.array([[1.0, 1.0]])
    assert segment_iou(points, points).tolist() == [[0.0]]
    assert segment_iou(np.array([[0.0, 2.0]]), np.array([[1.0, 3.0], [5.0, 6.0]])).tolist() == [[1 / 3, 0.0]]


def test_nothing_to_find_and_thresholds_out_of_range_are_refused():
    with pytest.raises(
        ValueError, match="no video has an action to find; check that the right split was read"
    ):
        match_detections({"v": []}, {})
    for thresholds in ((), (0.0, 0.5), (1.5,)):
        with pytest.raises(ValueError, match="thresholds of temporal IoU are"):
            match_detections({"v": [Action(0, 1, 0)]}, {}, thresholds)
