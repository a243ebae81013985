"""Owns: THUMOS-14 and json in its form are read as distributed; what is left out is counted and named."""

import json
import shutil

import pytest
from action_layouts import moving_square, write_frames, write_video
from detection_layouts import CLASSES, REMOVED, TEST, VALIDATION, as_actionformer, thumos, write_thumos

from moss_vllm.data.detection.annotation import Action
from moss_vllm.data.detection.datasets import read_detection
from moss_vllm.data.rows import BadRow, BadRows, MissingVideo


@pytest.fixture
def root(tmp_path):
    write_thumos(tmp_path)
    return tmp_path


def change(root, edit):
    """Change the annotation's content, and return its file."""
    file = root / "annotations" / "thumos_14_anno.json"
    content = json.loads(file.read_text())
    edit(content["database"])
    file.write_text(json.dumps(content))
    return file


# ---- what is read


def test_thumos_as_distributed(root):
    train, test = read_detection("thumos14", root, "train"), read_detection("thumos14", str(root), "test")
    assert train.classes == test.classes == CLASSES
    assert tuple(video.video_id for video in train.videos) == VALIDATION
    assert tuple(video.video_id for video in test.videos) == TEST
    assert test.videos[0].path == str(root / "raw_data" / "video" / f"{TEST[0]}.mp4")
    assert test.videos[0].actions == (Action(0.2, 1.1, 1), Action(5.0, 7.0, 1))
    assert (test.videos[0].frames, test.videos[0].duration_s, test.videos[0].fps) == (1199, 40.0, 1199 / 40)
    assert test.report() == (
        "thumos14 test: kept 3 of 3 videos, 0 missing, 5 actions of 3 classes; "
        "published count 211 videos, 3,325 actions"
    )


def test_what_is_left_out_or_kept_against_expectation_is_counted_and_named(root):
    train, test = (read_detection("thumos14", root, split) for split in ("train", "test"))
    assert train.notes == (
        "segments annotated as two classes, both of which count: 1 (CliffDiving and Diving 1)",
        f"segments left out as Ambiguous: 1 ({VALIDATION[0]})",
        "segments that end after their video, kept as annotated: 1 "
        f"({VALIDATION[1]} [30, 41.5] Diving, the video ends at 40 s)",
    )
    assert test.notes == (
        f"{REMOVED[0]} is left out: it is another video than annotated; ActionFormer's evaluation scores it",
        f"{REMOVED[1]} is left out: it has only Ambiguous actions",
        "segments annotated as two classes, both of which count: 1 (CliffDiving and Diving 1)",
        f"repeated segments, counted once: 1 ({TEST[0]} [0.2005, 1.0995] CricketShot)",
        "segments left out as they end where they start, or before: 2 "
        f"({TEST[0]} [3.0, 3.0] Diving, {TEST[1]} [9.0, 8.0] Diving)",
        f"segments left out as Ambiguous: 1 ({TEST[2]})",
    )


def test_actionformers_file_is_the_same_split_with_frames_from_the_rate(root):
    file = write_thumos(root / "other", as_actionformer(thumos()))
    file.rename(file.with_name("thumos14.json"))
    ours, theirs = (read_detection("thumos14", one, "test") for one in (root, root / "other"))
    assert [video.actions for video in ours.videos] == [video.actions for video in theirs.videos]
    assert {video.frames for video in theirs.videos} == {1199}  # 1198.8
    assert theirs.notes[0] == "the file has ActionFormer's subsets: 'Test' is what test reads"
    assert [note for note in theirs.notes if "round(duration * fps)" in note] == [
        f"videos without 'frame', which is taken as round(duration * fps): 3 ({', '.join(TEST)})"
    ]
    train = read_detection("thumos14", root / "other", "train")
    assert tuple(video.video_id for video in train.videos) == VALIDATION


def test_subsets_are_equal_not_contained(root):
    change(root, lambda database: database[TEST[0]].update(subset="validation_2"))
    assert len(read_detection("thumos14", root, "test").videos) == 2
    assert len(read_detection("thumos14", root, "test", subset="validation_2").videos) == 1


def test_one_subset_of_another_name_changes_no_other(root):
    change(root, lambda database: database[TEST[2]].update(subset="Test"))
    assert tuple(video.video_id for video in read_detection("thumos14", root, "test").videos) == TEST[:2]
    with pytest.raises(BadRow, match="no video has the subset ''"):
        read_detection("thumos14", root, "test", subset="")


@pytest.mark.parametrize(
    "name, told",
    [
        ("vide\u0301o", "is 'vid\u00e9o' again, in another Unicode form of its name; keep one"),
        ("\ud800", r"'\\ud800' is not a path below the video folder"),
    ],
)
def test_an_id_that_names_no_file_of_its_own_is_refused(root, name, told):
    change(root, lambda database: database.update({"vid\u00e9o": database[TEST[0]], name: database[TEST[0]]}))
    with pytest.raises(BadRow, match=told):
        read_detection("thumos14", root, "test", find_videos=False)


def test_classes_are_those_of_the_list_in_its_order_or_sorted_without_one(root, tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("Diving\nCricketShot\nCliffDiving\nGolfSwing\n")
    split = read_detection("thumos14", root, "test", classes=own)
    assert split.classes[0] == "Diving" and split.videos[1].actions[0].label == 2
    (root / "annotations" / "category_idx.txt").unlink()
    split = read_detection("thumos14", root, "test")
    assert split.classes == CLASSES
    assert "there is no category_idx.txt; the 3 labels of the json are the classes, sorted" in split.notes


def test_videos_are_found_in_several_folders_as_files_or_frames(root, tmp_path):
    videos, first, second = root / "raw_data" / "video", tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    shutil.move(videos / f"{TEST[0]}.mp4", first / f"{TEST[0]}.MKV")
    write_frames(second / TEST[1], moving_square(0, 4))
    (second / f"{TEST[0]}.mp4").touch()
    found = read_detection("thumos14", root, "test", videos=[first, second, videos])
    paths = [first / f"{TEST[0]}.MKV", second / TEST[1], videos / f"{TEST[2]}.mp4"]
    assert [video.path for video in found.videos] == list(map(str, paths))


def test_own_json_with_frames_counted_where_it_has_none(tmp_path):
    rows = annotations = [{"segment": [0.1, 0.4], "label": "wave"}]
    database = {
        "a": {"subset": "training", "duration": 0.5, "annotations": rows},
        "b": {"subset": "training", "duration": 0.5, "annotations": annotations},
        "c": {"subset": "training", "duration": 0.5, "frame": 12, "annotations": []},
    }
    (tmp_path / "mine.json").write_text(json.dumps({"database": database}))
    write_video(tmp_path / "videos" / "a.mp4", moving_square(0, 6))
    write_frames(tmp_path / "videos" / "b", moving_square(0, 5))
    split = read_detection("json", tmp_path, "train")
    assert [video.frames for video in split.videos] == [6, 5] and split.classes == ("wave",)
    assert split.report() == (
        "json train: kept 2 of 2 videos, 0 missing, 2 actions of 1 classes; no published count"
    )
    assert split.notes[1:] == (
        "videos left out as they have no action to train on: 1 (c)",
        "videos without 'frame' and 'fps', whose files were counted: 2 (a, b)",
    )


def test_missing_videos_are_named_or_left_out(root):
    video = root / "raw_data" / "video" / f"{TEST[1]}.mp4"
    video.unlink()
    with pytest.raises(MissingVideo, match=f"1 of 3 videos: neither a video nor .*: {TEST[1]}; download"):
        read_detection("thumos14", root, "test")
    split = read_detection("thumos14", root, "test", allow_missing=True)
    assert [row.row_id for row in split.missing] == [TEST[1]] and len(split.videos) == 2
    shutil.rmtree(video.parent)
    with pytest.raises(MissingVideo, match="all 3 of 3 videos: .*; pass the folders of the videos"):
        read_detection("thumos14", root, "test", allow_missing=True)


# ---- what is refused

ANNOTATED = [  # a change to a test video's row, and what is told of it
    ({"duration": None}, "video 'video_test_0000004': 'duration' is None, a number above 0"),
    ({"duration": "40"}, "'duration' is '40'"),
    ({"duration": float("nan")}, "'duration' is nan"),
    ({"duration": True}, "'duration' is True"),
    ({"frame": 0}, "'frame' is 0, a number above 0 is needed; fill in 'frame'"),
    ({"frame": 30.5}, "'frame' is 30.5; write the video's number of frames"),
    ({"frame": 10}, "10 frames in 40 s: 0.25 frames a second; write the duration in seconds"),
    ({"duration": 0.5}, "1199 frames in 0.5 s: 2398 frames a second"),
    ({"duration": 1e9, "frame": 3e10}, "30,000,000,000 frames in 1e+09 s, more than the 10,000,000 that are"),
    ({"annotations": [{"segment": [1, 1e300], "label": "Diving"}]}, "segment 0: ends at 1e+300 s, the video"),
    ({"annotations": {}}, "'annotations' is dict, a list is needed; write [] for a video without"),
    ({"annotations": None}, "'annotations' is NoneType"),
    ({"annotations": [[1, 2, "Diving"]]}, "segment 0: is [1, 2, 'Diving'], two times"),
    ({"annotations": [{"segment": [1.0], "label": "Diving"}]}, "segment 0: 'segment' is [1.0], two times"),
    ({"annotations": [{"segment": "1-2", "label": "Diving"}]}, "segment 0: 'segment' is '1-2'"),
    ({"annotations": [{"segment": [1.0, float("inf")], "label": "Diving"}]}, "is [1.0, inf], two times"),
    ({"annotations": [{"segment": [1.0, 2.0], "label": 3}]}, "segment 0 [1.0, 2.0]: 'label' is int"),
    ({"annotations": [{"segment": [1.0, 2.0]}]}, "segment 0 [1.0, 2.0]: has no 'label'"),
    ({"annotations": [{"segment": [1.0, 2.0], "label": "Golf"}]}, "class 'Golf' is not among the 3"),
    ({"annotations": [{"segment": [-1.0, 2.0], "label": "Diving"}]}, "[-1.0, 2.0]: starts before its video"),
]


@pytest.mark.parametrize("given, told", ANNOTATED)
def test_a_row_that_cannot_be_meant_is_named(root, given, told):
    file = change(root, lambda database: database[TEST[0]].update(given))
    with pytest.raises(BadRow) as caught:
        read_detection("thumos14", root, "test")
    assert str(caught.value).startswith(f"{file}: video '{TEST[0]}'") and told in str(caught.value)


def test_all_bad_rows_come_in_one_error(root):
    def edit(database):
        database[TEST[0]]["duration"] = -1
        database[TEST[1]]["annotations"][0]["label"] = "Golf"
        database[TEST[1]]["annotations"][1]["segment"] = 3

    change(root, edit)
    with pytest.raises(BadRows) as caught:
        read_detection("thumos14", root, "test")
    assert [row.row for row in caught.value.rows] == [
        f"video '{TEST[0]}'",
        f"video '{TEST[1]}', segment 0 [4.0, 5.0]",
        f"video '{TEST[1]}', segment 1",
    ]
    assert len(read_detection("thumos14", root, "train").videos) == 2  # whose rows are fine


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "file: is empty"),
        ("[]", "file: holds a list, not an object {...}"),
        ('{"database": {"a": {}', "line 1: broken JSON: "),
        ("{}", "file: has no object 'database'; it must be"),
        ('{"database": []}', "file: has no object 'database'"),
        ('{"database": {}}', "file: has no videos in 'database'"),
        ('{"database": {"a": 1}}', "video 'a': is a int, not an object"),
        ('{"database": {"../a": {"subset": "validation"}}}', "video '../a': '../a' is not a plain file name"),
        ('{"database": {"a": {}}}', "video 'a': has no 'subset'"),
        ('{"database": {"a": {"subset": "validation"}, "a": {}}}', "file: has the key 'a' twice; keep one"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_of_another_form_is_refused(root, text, told):
    (root / "annotations" / "thumos_14_anno.json").write_text(text)
    with pytest.raises(BadRow) as caught:
        read_detection("thumos14", root, "test")
    assert told in str(caught.value)


def test_a_subset_that_no_video_has_is_named_with_those_there(root):
    with pytest.raises(BadRow) as caught:
        read_detection("thumos14", root, "test", subset="testing")
    told = "'testing', by which test is chosen; there are 'validation' (5 videos), 'training' (2 videos)"
    assert told in str(caught.value)


def test_times_that_are_no_seconds_are_refused(root):
    def edit(database):
        for video in database.values():
            for row in video["annotations"]:
                row["segment"] = [30 * second for second in row["segment"]]

    change(root, edit)
    with pytest.raises(BadRow, match="4 of 6 segments start after their video ends; write segments and"):
        read_detection("thumos14", root, "test")


def test_no_action_to_test_with_is_refused(root):
    change(root, lambda database: [database[name].update(annotations=[]) for name in TEST])
    with pytest.raises(BadRow, match="no video to test with has an action; check the subsets"):
        read_detection("thumos14", root, "test")


def test_folders_that_are_not_there_or_hold_a_video_twice_are_refused(root):
    with pytest.raises(BadRow, match="gone: folder: is not a folder; pass a folder of videos or frames"):
        read_detection("thumos14", root, "test", videos=[root / "raw_data" / "video", root / "gone"])
    (root / "raw_data" / "video" / TEST[0]).mkdir()
    with pytest.raises(BadRow, match=f"is the name of 2 in .*: {TEST[0]}, {TEST[0]}.mp4; keep one"):
        read_detection("thumos14", root, "test")


def test_a_file_whose_frames_cannot_be_counted_is_named(root):
    change(root, lambda database: database[TEST[0]].pop("frame"))
    with pytest.raises(BadRow, match=f"'{TEST[0]}': has no 'frame', and its frames cannot be counted: "):
        read_detection("thumos14", root, "test")


def test_unknown_data_and_split(root):
    with pytest.raises(
        ValueError, match="'activitynet', 'test' is not one of thumos14, json, mini and train or test"
    ):
        read_detection("activitynet", root, "test")
    with pytest.raises(ValueError, match="'thumos14', 'validation' is not one of"):
        read_detection("thumos14", root, "validation")
