"""Owns: boundaries and scores come back from the files in use, and what cannot be meant is named."""

import json

import numpy as np
import pytest
from boundary_layouts import golden, record, write_pickle

from moss_vllm.boundaries.predictions import (
    FrameScores,
    pick_boundaries,
    read_predictions,
    write_predictions,
    write_scores,
)
from moss_vllm.data.annotated_videos import Notes
from moss_vllm.data.boundaries.annotation import read_records
from moss_vllm.data.boundaries.datasets import BoundarySplit
from moss_vllm.data.rows import BadRow, BadRows

PEAKS = {one["name"]: one for one in golden("peaks")["sequences"]}


@pytest.fixture
def split():
    videos = read_records({name: record(name, [2.0, 5.0]) for name in ("a", "b")}, "file", Notes())
    return BoundarySplit("kinetics_gebd", "test", tuple(videos), (), (), "gt.pkl")


def test_seconds_come_back(split, tmp_path):
    found = {"a": [2.0, 5.1], "b": [], "elsewhere": [1.0]}
    write_predictions(tmp_path / "found.json", found)
    assert json.loads((tmp_path / "found.json").read_text()) == found
    assert read_predictions(tmp_path / "found.json", split) == found
    write_pickle(tmp_path / "found.pkl", found, protocol=3)
    assert read_predictions(tmp_path / "found.pkl", split) == found


def test_scores_become_boundaries_at_any_threshold(split, tmp_path):
    one = PEAKS["bumps"]
    scores = {"a": FrameScores(np.array(one["frame_indices"], np.float64), np.array(one["scores"]))}
    write_scores(tmp_path / "scores.json", scores)
    for threshold, boundaries in one["boundaries"].items():
        for rule in ("official", "efficientgebd"):
            expected = {"a": [number / 10 for number in boundaries[rule]]}
            assert pick_boundaries(split, scores, float(threshold), rule) == expected
            # Numbers beyond the 100 frames of the clip are times after its end.
            if max(expected["a"]) <= 10:
                found = read_predictions(
                    tmp_path / "scores.json", split, threshold=float(threshold), rule=rule
                )
                assert found == expected


def test_efficientgebds_pickle_is_read(split, tmp_path):
    theirs = {"a": {"frame_idx": [1, 21, 41, 61, 81], "scores": [[0.1, 0.6, 0.7, 0.1, 0.9]], "num_slices": 1}}
    write_pickle(tmp_path / "model_pred_dict_epoch09.pkl", theirs)
    path = tmp_path / "model_pred_dict_epoch09.pkl"
    assert read_predictions(path, split, threshold=0.5) == {"a": [4.1, 8.1]}  # of 1.5, the even place 2
    assert read_predictions(path, split, threshold=0.5, rule="official") == {"a": [2.1, 8.1]}


ENTRIES = [
    (3, "the entry is a int, a list of numbers is needed; repair the entry"),
    ([1.0, "2"], "the entry has '2', which is no number"),
    ([1.0, float("nan")], "the entry has nan, which is no number"),
    ({"frame_idx": [1, 2], "scores": [0.5]}, "has 2 frames and 1 scores"),
    ({"frame_idx": [1, 2], "scores": [0.5, 1.5]}, "'scores' has 1.5, a number from 0 to 1 is needed"),
    (
        {"frame_idx": [1], "scores": [[0.5], [0.6]]},
        "'scores' has the lists of 2 heads; keep that of one head",
    ),
    ({"scores": [0.5]}, "'frame_idx' is a NoneType, a list of numbers is needed"),
    ({"frame_idx": [1]}, "'scores' is a NoneType"),
]


@pytest.mark.parametrize("entry, told", ENTRIES)
def test_an_entry_that_cannot_be_meant_is_named(split, tmp_path, entry, told):
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"b": [1.0], "a": entry}))
    with pytest.raises(BadRow) as caught:
        read_predictions(path, split, threshold=0.5)
    assert str(caught.value).startswith(f"{path}: video 'a'") and told in str(caught.value)


def test_all_bad_entries_come_in_one_error(split, tmp_path):
    (tmp_path / "found.json").write_text(json.dumps({"a": 1, "b": {}}))
    with pytest.raises(BadRows, match="2 bad rows"):
        read_predictions(tmp_path / "found.json", split)


def test_scores_need_a_threshold(split, tmp_path):
    (tmp_path / "found.json").write_text(json.dumps({"a": {"frame_idx": [1], "scores": [0.5]}}))
    with pytest.raises(
        BadRow, match="video 'a': has scores of frames, which become boundaries at a threshold"
    ):
        read_predictions(tmp_path / "found.json", split)


def test_frame_numbers_are_no_seconds(split, tmp_path):
    (tmp_path / "found.json").write_text(json.dumps({"a": [3, 21, 50], "b": [70]}))
    with pytest.raises(
        BadRow, match="3 of 4 boundaries lie after the end of their clip; write them in seconds"
    ):
        read_predictions(tmp_path / "found.json", split)


def test_files_of_another_form(split, tmp_path):
    (tmp_path / "found.json").write_text('{"a": [1.0')
    with pytest.raises(BadRow, match="line 1: broken JSON"):
        read_predictions(tmp_path / "found.json", split)
    with pytest.raises(BadRow, match="holds a list, not a dict of clips"):
        read_predictions(write_pickle(tmp_path / "found.pkl", [1.0]), split)


@pytest.mark.parametrize(
    "content, has",
    [({}, "has no clip"), ({"x": [1.0]}, "has clips such as 'x', and none of the 2 of gt.pkl, such as 'a'")],
)
def test_predictions_of_other_clips_are_told_with_both_files(split, tmp_path, content, has):
    path = tmp_path / "found.json"
    path.write_text(json.dumps(content))
    with pytest.raises(BadRow) as caught:
        read_predictions(path, split)
    assert str(caught.value).startswith(f"{path}: file: {has}; check that it is")
