"""Owns: a file of predictions reads back as it was, and what cannot be meant in one is named with its row."""

import json

import numpy as np
import pytest

from moss_vllm.data.rows import BadRow, BadRows
from moss_vllm.detection.predictions import (
    Detections,
    join_detections,
    no_detections,
    read_predictions,
    write_predictions,
)

CLASSES = ("Billiards", "Diving")
GOOD = {"segment": [1.0, 2.5], "label": "Diving", "score": 0.5}


def write(tmp_path, content):
    file = tmp_path / "found.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def told(tmp_path, content):
    file = write(tmp_path, content)
    with pytest.raises(BadRow) as caught:
        read_predictions(file, CLASSES)
    assert str(caught.value).startswith(f"{file}: ")
    return str(caught.value).removeprefix(f"{file}: ")


def test_what_is_written_is_read_rounded(tmp_path):
    found = {
        "v": Detections(
            np.array([[-0.001, 0.285], [1.005, 3.0]]), np.array([0.12345, 1.0]), np.array([1, 0])
        ),
        "nothing": no_detections(),
    }
    write_predictions(tmp_path / "a" / "found.json", found, CLASSES)
    assert json.loads((tmp_path / "a" / "found.json").read_text()) == {
        "results": {
            "v": [
                {"segment": [0.0, 0.28], "label": "Diving", "score": 0.1235},
                {"segment": [1.0, 3.0], "label": "Billiards", "score": 1.0},
            ],
            "nothing": [],
        }
    }
    assert "-0.0" not in (tmp_path / "a" / "found.json").read_text()
    back = read_predictions(tmp_path / "a" / "found.json", CLASSES)
    assert list(back) == ["v", "nothing"] and len(back["nothing"]) == 0
    assert back["v"].segments_s.tolist() == [[0.0, 0.28], [1.0, 3.0]] and back["v"].labels.tolist() == [1, 0]


def test_other_keys_are_free_and_classes_may_differ_in_spelling(tmp_path):
    row = {**GOOD, "label": " Diving ", "extra": 1, "score": 1}
    file = write(tmp_path, {"version": "1", "external_data": {}, "results": {"v": [row]}})
    assert read_predictions(file, CLASSES)["v"].labels.tolist() == [1]


@pytest.mark.parametrize(
    "content, expected",
    [
        ("", "file: is empty"),
        ("[]", "file: holds a list, not an object {...}; repair the row, or write the file again"),
        ('{"results": {', "line 1: broken JSON"),
        ({"result": {}}, "file: has no object 'results'; it must be"),
        ({"results": []}, "file: has no object 'results'"),
        ({"results": {"v": {}}}, "video 'v': is a dict, not a list of detections; write []"),
        ('{"results": {"v": [], "v": []}}', "file: has the key 'v' twice"),
    ],
)
def test_a_file_of_another_form(tmp_path, content, expected):
    assert told(tmp_path, content).startswith(expected)


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"label": "Golf"}, "class 'Golf' is not among the 2 of the label file"),
        ({"label": 3}, "'label' is int, a string is needed"),
        ({"label": None}, "'label' is NoneType"),
        ({"score": float("nan")}, "'score' is nan, a number from 0 to 1 is needed"),
        ({"score": 1.01}, "'score' is 1.01"),
        ({"score": -0.1}, "'score' is -0.1"),
        ({"score": "0.5"}, "'score' is '0.5'"),
        ({"score": True}, "'score' is True"),
        ({"segment": [2.5, 1.0]}, "segment [2.5, 1.0] ends before it starts"),
        ({"segment": [1.0, float("nan")]}, "'segment' is [1.0, nan], two times in seconds are needed"),
        ({"segment": [1.0, float("inf")]}, "'segment' is [1.0, inf]"),
        ({"segment": [1.0]}, "'segment' is [1.0]"),
        ({"segment": None}, "'segment' is None"),
    ],
)
def test_a_row_that_cannot_be_meant(tmp_path, change, expected):
    text = told(tmp_path, {"results": {"u": [GOOD], "v": [GOOD, {**GOOD, **change}]}})
    assert text.startswith("video 'v', row 1: ") and expected in text


@pytest.mark.parametrize("row", [[1.0, 2.0], 3, "x", None])
def test_a_row_that_is_no_object(tmp_path, row):
    text = told(tmp_path, {"results": {"v": [row]}})
    assert text.startswith(f"video 'v', row 0: is {row!r}, two times in seconds are needed")


def test_a_row_that_lacks_a_key(tmp_path):
    for key, expected in (
        ("segment", "'segment' is None"),
        ("label", "has no 'label'"),
        ("score", "has no 's"),
    ):
        row = {name: value for name, value in GOOD.items() if name != key}
        assert expected in told(tmp_path, {"results": {"v": [row]}})


def test_all_bad_rows_come_in_one_error(tmp_path):
    file = write(tmp_path, {"results": {"u": [{**GOOD, "score": 2}], "v": 1, "w": [GOOD, {}]}})
    with pytest.raises(BadRows) as caught:
        read_predictions(file, CLASSES)
    assert [row.row for row in caught.value.rows] == ["video 'u', row 0", "video 'v'", "video 'w', row 1"]


def test_ids_are_those_of_the_annotation_in_any_unicode_form(tmp_path):
    file = write(tmp_path, {"results": {"vide\u0301o": [GOOD], "other": [GOOD]}})
    assert list(read_predictions(file, CLASSES, ["vid\u00e9o", "w"])) == ["vid\u00e9o", "other"]
    assert read_predictions(write(tmp_path, {"results": {}}), CLASSES, ["w"]) == {}


@pytest.mark.parametrize(
    "ids, annotated, expected",
    [
        (
            ("v_1", "v_2"),
            ("1", "2"),
            "none of its 2 videos is annotated: it names v_1, v_2; annotated are 1, 2",
        ),
        (("vide\u0301o", "vid\u00e9o"), ("vid\u00e9o",), "is there twice, in two Unicode forms of its name"),
    ],
)
def test_ids_that_cannot_be_those_of_the_annotation(tmp_path, ids, annotated, expected):
    file = write(tmp_path, {"results": dict.fromkeys(ids, [GOOD])})
    with pytest.raises(BadRow, match=expected):
        read_predictions(file, CLASSES, annotated)


def test_joined_detections_keep_their_order():
    one = Detections(np.array([[0.0, 1.0]]), np.array([0.5]), np.array([1]))
    both = join_detections([one, no_detections(), one])
    assert len(both) == 2 and both.labels.tolist() == [1, 1] and both.segments_s.shape == (2, 2)
    assert len(join_detections([])) == 0
