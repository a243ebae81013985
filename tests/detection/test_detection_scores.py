"""Owns: kinds of false positives, intervals over videos, the table beside the paper's, a test's files."""

import csv
import json

import numpy as np
import pytest

from moss_vllm.data.detection.annotation import Action
from moss_vllm.data.detection.datasets import DetectionSplit, DetectionVideo
from moss_vllm.detection.average_precision import match_detections
from moss_vllm.detection.false_positives import split_false_positives
from moss_vllm.detection.predictions import Detections
from moss_vllm.detection.scores import (
    PAPER_TABLE_8,
    bootstrap,
    save_detection_scores,
    score_detections,
    score_table,
    table_8,
)

CLASSES = ("CliffDiving", "Diving", "GolfSwing")


def detections(*rows):
    """(start, end, score, label) of each."""
    table = np.array(rows, np.float64).reshape(-1, 4)
    return Detections(table[:, :2], table[:, 2], table[:, 3].astype(np.int64))


def split_of(truth):
    videos = (DetectionVideo(name, "", 100.0, 3000, tuple(actions)) for name, actions in truth.items())
    return DetectionSplit("thumos14", "test", CLASSES, tuple(videos), (), (), "anno.json")


# An action of two classes, one of another, and detections of each kind in the order of their scores.
TRUTH = {"v": [Action(10, 20, 0), Action(10, 20, 1), Action(50, 60, 2)], "w": [Action(0, 10, 1)]}
FOUND = {
    "v": detections(
        (10, 20, 0.9, 1),  # right
        (10, 19, 0.8, 1),  # double, though it overlaps CliffDiving as well
        (50, 60, 0.7, 1),  # confusion
        (17, 23, 0.6, 1),  # localisation: IoU 3/13
        (57, 63, 0.5, 1),  # confusion that is badly placed too
        (80, 90, 0.4, 1),  # background
        (19.5, 22, 0.3, 1),  # background: IoU 0.5/12
        (10, 20, 0.2, 0),  # right
        (50, 55, 0.1, 2),  # right at 0.5, localisation at 0.6
    )
}
NONE = {"double detection": 0, "confusion": 0, "localisation": 0, "background": 0}


def test_each_kind_of_false_positive():
    matches = match_detections(TRUTH, FOUND, (0.5, 0.6))
    found = split_false_positives(TRUTH, matches, (0.5, 0.6), threshold=0.5)
    assert found[1] == {"right": 1, "double detection": 1, "confusion": 2, "localisation": 1, "background": 2}
    assert found[0] == found[2] == {"right": 1, **NONE}
    found = split_false_positives(TRUTH, matches, (0.5, 0.6), threshold=0.6)
    assert found[2] == {"right": 0, **NONE, "localisation": 1}
    found = split_false_positives(TRUTH, matches, (0.5, 0.6), threshold=0.5, per_action=1)
    assert found[1] == {"right": 1, **NONE, "double detection": 1}  # two actions, so two detections
    with pytest.raises(ValueError, match="at temporal IoU 0.55; choose one of 0.5, 0.6"):
        split_false_positives(TRUTH, matches, (0.5, 0.6), threshold=0.55)


def test_detections_in_other_videos_are_background():
    found = {"other": detections((10, 20, 0.9, 1))}
    matches = match_detections(TRUTH, found)
    assert split_false_positives(TRUTH, matches, (0.5,))[1] == {"right": 0, **NONE, "background": 1}


def test_scores_in_percent_with_their_counts_and_notes():
    scores = score_detections(split_of(TRUTH), {**FOUND, "other": detections((1, 2, 0.01, 0))}, draws=20)
    assert scores.classes[0] == (100.0,) * 5 and scores.classes[1] == (50.0,) * 5
    assert scores.classes[2] == (100.0, 100.0, 100.0, 0.0, 0.0)
    assert scores.mean == {
        **dict.fromkeys(("0.3", "0.4", "0.5"), pytest.approx(250 / 3)),
        **dict.fromkeys(("0.6", "0.7"), 50.0),
        "avg": pytest.approx(70.0),
    }
    assert scores.actions == {0: 1, 1: 2, 2: 1} and (scores.videos, scores.rows) == (2, 10)
    assert scores.count_kinds() == {"right": 3, **NONE, "double detection": 1, "confusion": 2,
                                    "localisation": 1, "background": 3}  # fmt: skip
    assert scores.notes == (
        "videos that are not in anno.json, with detections that count as false: 1 (other)",
        "videos without any detection: 1 (w)",
    )
    assert str(scores).startswith("average mAP 70.00 (") and str(scores).endswith("4 actions in 2 videos")


def test_the_interval_holds_the_score_and_narrows_with_more_videos():
    def interval(videos):
        rng = np.random.default_rng(0)
        truth = {f"v{n}": [Action(0, 10, 0)] for n in range(videos)}
        found = {name: detections((0, 10 if rng.random() < 0.6 else 2, rng.random(), 0)) for name in truth}
        matches = match_detections(truth, found, (0.5,))
        ends = bootstrap(matches, videos, draws=300, seed=1)
        assert ends[0, 0] < matches[0].average_precision()[0] < ends[1, 0]
        assert np.array_equal(ends, bootstrap(matches, videos, draws=300, seed=1))
        assert np.array_equal(ends[:, 0], ends[:, 1])  # one threshold is its own average
        return ends[1, 0] - ends[0, 0]

    assert 0.25 < interval(20) and interval(500) < 0.12
    with pytest.raises(ValueError, match="draws is 0"):
        bootstrap(match_detections(TRUTH, FOUND), 2, draws=0, seed=0)


def test_a_draw_without_an_action_is_drawn_again():
    truth = {"v": [Action(0, 10, 0)], **{f"w{n}": [] for n in range(30)}}
    ends = bootstrap(match_detections(truth, {"v": detections((0, 10, 0.5, 0))}), 31, draws=20, seed=0)
    assert np.array_equal(ends, np.ones((2, 6)))


def test_the_table_stands_below_the_papers_rows():
    scores = score_detections(split_of(TRUTH), FOUND, draws=20)
    text = score_table("ours", scores, variant="b").markdown()
    assert "| AdaTAD-B + MOSS (paper) | 87.3 | 82.9 | 75.7 | 64.8 | 50.3 | 72.2 |" in text
    assert "| ours | 83.3 | 83.3 | 83.3 | 50.0 | 50.0 | 70.0 |" in text and "AdaTAD-L" not in text
    assert "2 videos, 4 actions, 9 detections" in text and "the paper counts 213 test videos" in text
    assert "3 right, 1 double detection, 2 confusion, 1 localisation, 2 background" in text
    own = score_table("ours", scores).markdown()
    assert "(paper)" not in own and "THUMOS" not in own and "213" not in own and "| ours | 83.3" in own
    means = {"mean of 3": {name: (value, 0.5) for name, value in scores.mean.items()}}
    assert "| mean of 3 | 83.3 ± 0.5 |" in table_8(means, variant="l").markdown()


def test_the_papers_averages_are_those_of_its_rows():
    """As printed each lies within the rounding of six numbers."""
    for rows in PAPER_TABLE_8.values():
        for values in rows.values():
            assert sum(values[:5]) / 5 == pytest.approx(values[5], abs=0.11)


def test_tables_of_other_variants_or_columns_are_refused():
    with pytest.raises(ValueError, match="Table 8 has no variant 's'; it has b, l"):
        table_8({"ours": {}}, variant="s")
    with pytest.raises(ValueError, match="at least one row"):
        table_8({}, variant="b")
    with pytest.raises(ValueError, match=r"row 'ours' has the columns \['0.5'\]; the table has \['0.3', "):
        table_8({"ours": {"0.5": 1.0}}, variant="b")


def test_the_files_of_a_test(tmp_path):
    scores = score_detections(split_of(TRUTH), FOUND, draws=20)
    save_detection_scores(scores, split_of(TRUTH), tmp_path, {"data": "thumos14"})
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["data"] == "thumos14" and found["mAP"] == scores.mean and found["split_at_tiou"] == 0.5
    assert found["classes"] == list(CLASSES) and found["split"] == {}
    assert found["interval_95"].keys() == scores.mean.keys() and found["detections"] == 9
    with (tmp_path / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == list(CLASSES)
    assert (rows[1]["0.5"], rows[1]["avg"], rows[1]["actions"], rows[1]["confusion"]) == (
        "50.00",
        "50.00",
        "2",
        "2",
    )
    assert rows[2]["avg"] == "60.00"
