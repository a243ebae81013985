"""Owns: a test's scores with intervals, the missing clips beside them, Table 9, and a test's files."""

import csv
import json

import numpy as np
import pytest
from boundary_layouts import golden, record

from moss_vllm.boundaries.f1 import match_boundaries
from moss_vllm.boundaries.predictions import FrameScores, read_predictions
from moss_vllm.boundaries.schema import as_answer
from moss_vllm.boundaries.scores import (
    draw_clips,
    save_boundary_scores,
    score_boundaries,
    score_table,
    score_test,
    table_9,
)
from moss_vllm.core.boundary_presets import PAPER_TABLE_9
from moss_vllm.data.annotated_videos import Notes
from moss_vllm.data.boundaries.annotation import read_records
from moss_vllm.data.boundaries.datasets import BoundarySplit
from moss_vllm.runtime.line_store import ANSWERS, AnswerFile, Shard

GOLDEN = golden("f1")


def split_of(records, missing=()):
    videos = read_records(records, "file", Notes())
    there = tuple(video for video in videos if video.video_id not in missing)
    gone = tuple(video for video in videos if video.video_id in missing)
    return BoundarySplit("kinetics_gebd", "test", there, gone, (), "gt.pkl")


@pytest.fixture(scope="module")
def scores():
    return score_boundaries(split_of(GOLDEN["ground_truth"]), GOLDEN["predictions_seconds"], draws=50)


def test_scores_in_percent_with_the_other_rule_beside(scores):
    official, theirs = (GOLDEN["results"][name] for name in ("official_seconds", "efficientgebd_frames"))
    assert scores.mean == pytest.approx(
        {"F1@0.05": 100 * official["0.05"]["f1"], "Avg. F1": 100 * official["average"]["f1"]}
    )
    assert scores.other_rule == "efficientgebd" and scores.other == pytest.approx(
        {"F1@0.05": 100 * theirs["0.05"]["f1"], "Avg. F1": 100 * theirs["average"]["f1"]}
    )
    assert str(scores).startswith("F1@0.05 54.87 (") and str(scores).endswith(
        "19 clips, 1 without predictions; by the challenge's evaluation, in seconds"
    )
    assert scores.notes == (
        "clips that are not in gt.pkl, whose predictions are ignored: 1 (not_in_gt_0)",
        "clips in which nothing was found: 1 (video_D_003)",
        "clips whose boundaries are not in order of time, used as they stand: 2 (video_D_006, video_D_015)",
        "detections outside their clip, which are dropped: 4",
    )


def test_clips_missing_on_disk_count_as_missed():
    records = {"a": record("a", [2.0]), "b": record("b", [3.0])}
    scores = score_boundaries(split_of(records, missing=("b",)), {"a": [2.0]}, draws=5)
    assert scores.matches.missing == ("b",) and scores.mean["F1@0.05"] == pytest.approx(200 / 3)
    assert scores.other["F1@0.05"] == 100.0


def test_the_interval_holds_the_score_and_narrows_with_more_clips():
    def interval(count):
        rng = np.random.default_rng(0)
        records = {f"v{n}": record(f"v{n}", [2.0, 6.0]) for n in range(count)}
        found = {name: [2.0, 6.0 if rng.random() < 0.5 else 9.5] for name in records}
        matches = match_boundaries(split_of(records).videos, found)
        (low, _), (high, _) = draw_clips(matches, draws=200, seed=0)
        assert low < matches.scores()[0, 0] < high
        return high - low

    assert interval(200) < 0.5 * interval(20)
    with pytest.raises(ValueError, match="draws is 0; it must be at least 1"):
        draw_clips(None, draws=0, seed=0)


def test_the_table_has_the_papers_rows_and_says_where_rules_differ(scores):
    table = score_table("ours", scores, "kinetics_gebd")
    assert list(table.rows) == [*(f"{name} (paper)" for name in PAPER_TABLE_9), "ours"]
    assert table.rows["BasicGEBD + MOSS (paper)"] == {"Kinetics-GEBD": {"F1@0.05": 79.4, "Avg. F1": 89.0}}
    assert (
        table.notes[0]
        == "by the challenge's evaluation, in seconds; clips without predictions: 1 (video_D_002)"
    )
    assert table.notes[1] == (
        "by EfficientGEBD's tables, in frames and without the clips that have no predictions: "
        "F1@0.05 57.9, Avg. F1 73.0"
    )
    assert "| ours | 54.9 | 69.3 |" in table.markdown()


def test_the_table_of_both_data_sets_and_of_own_data():
    cells = {"F1@0.05": 70.0, "Avg. F1": 80.0}
    table = table_9({"ours": {"kinetics_gebd": cells, "tapos": cells}})
    assert table.rows["BasicGEBD + MOSS (paper)"]["TAPOS"] == {"F1@0.05": 68.5, "Avg. F1": 76.6}
    assert "| DDM-Net (paper) | 76.4 | 87.3 | 60.4 | 72.8 |" in table.markdown()
    own = table_9({"ours": {"json": cells}})
    assert list(own.rows) == ["ours"] and list(own.columns) == ["json"]
    with pytest.raises(ValueError, match="a table needs at least one row"):
        table_9({})


def test_predictions_of_other_clips_alone_are_refused():
    with pytest.raises(ValueError, match="predictions of none of the 1 clips of gt.pkl; check the files"):
        score_boundaries(split_of({"a": record("a", [2.0])}), {"b": [2.0]})


HEADER = {
    "benchmark": "kinetics_gebd",
    "checkpoint": "run/best",
    "protocol": {"name": "boundaries", "length": 100},
    "questions": 3,
    "data": "0123",
}


def store(folder, answers, failed=()):
    """Lines as a test writes them: scores of the frames of each clip."""
    with AnswerFile(folder / ANSWERS, HEADER, Shard()) as file:
        for name, scores in answers.items():
            numbers = np.arange(1.0, len(scores) + 1)
            answer = as_answer(name, FrameScores(numbers, np.array(scores)))
            file.add({"video_id": name, "answers": [answer]})
        for name in failed:
            file.add({"video_id": name, "answers": [], "failed": "no video"})


def test_a_test_is_scored_from_its_lines(tmp_path):
    split = split_of({name: record(name, [0.5]) for name in "abc"})
    store(tmp_path, {"a": [0, 0, 0.2, 0.4, 0.9, 0.4, 0], "b": [0.1] * 9}, failed="c")
    scores = score_test(tmp_path, split, {"step": 7}, threshold=0.3)
    assert scores.matches.missing == ("c",) and scores.mean["F1@0.05"] == pytest.approx(50.0)
    assert scores.notes[:2] == (
        "boundaries at a threshold of 0.3, runs centred as in EfficientGEBD",
        "clips that could not be read: 1 (c)",
    )
    assert json.loads((tmp_path / "predictions.json").read_text()) == {"a": [0.5], "b": []}
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["step"], result["threshold"], result["failed"]) == (7, 0.3, {"c": "no video"})
    lower = read_predictions(tmp_path / "scores.json", split, threshold=0.1)
    assert lower == {"a": [0.5], "b": [0.5]}
    assert score_test(tmp_path, split, {}, threshold=0.1).mean["F1@0.05"] == pytest.approx(80.0)


def test_a_test_of_clips_that_cannot_be_read_has_no_scores(tmp_path):
    store(tmp_path, {}, failed="a")
    with pytest.raises(ValueError, match="none of the 1 clips could be read; the first one: no video"):
        score_test(tmp_path, split_of({"a": record("a", [0.5])}), {}, threshold=0.3)


def test_lines_whose_columns_do_not_fit_are_refused(tmp_path):
    with AnswerFile(tmp_path / ANSWERS, HEADER, Shard()) as file:
        answer = {"uid": "a", "numbers": [1.0, 2.0], "scores": [0.5]}
        file.add({"video_id": "a", "answers": [answer]})
    with pytest.raises(ValueError, match="2 frame numbers and 1 scores"):
        score_test(tmp_path, split_of({"a": record("a", [0.5])}), {}, threshold=0.3)


def test_files_of_a_test(scores, tmp_path):
    save_boundary_scores(scores, split_of(GOLDEN["ground_truth"]), tmp_path, {"threshold": 0.3})
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["threshold"] == 0.3 and result["rule"] == "official"
    assert result["F1@0.05"] == scores.mean["F1@0.05"]
    assert result["f1_precision_recall"]["0.05"] == pytest.approx([54.8673, 55.3571, 54.3860], abs=1e-4)
    assert result["clips_without_predictions"] == ["video_D_002"] and result["detections"] == 56
    rows = list(csv.DictReader((tmp_path / "per_clip.csv").open()))
    assert sum(int(row["found"]) for row in rows) == 31 and len(rows) == 19
    assert {row["clip"] for row in rows if row["predicted"] == "no"} == {"video_D_002"}
