"""Owns: what is wrong in the files of an action-recognition dataset is named, with the row and the remedy."""

import json

import pytest
from action_layouts import edit, message, moving_square, write_video

from moss_vllm.data.actions.datasets import read_action
from moss_vllm.data.rows import BadRows, MissingVideo

# ---- what is refused


def test_unknown_data_and_split():
    assert "'ucf101', 'train' is not one of ssv1, ssv2, diving48" in message("ucf101", ".")
    assert "'ssv1', 'val' is not one of" in message("ssv1", ".", "val")


LISTS = {
    "ssv1": "something-something-v1-train.csv",
    "ssv2": "labels/train.json",
    "diving48": "Diving48_V2_train.json",
    "gym99": "gym99_train_element_v1.1.txt",
    "k400": "train.csv",
    "list": "train.txt",
}


@pytest.mark.parametrize(
    ("data", "old", "new", "expected"),
    [
        ("ssv1", "100219;", "100219,", "line 2: '100219,Turning"),
        ("ssv1", "100219;", ";", "is not 'id;class name'; use the train or validation csv"),
        ("ssv2", '"id": "46"', '"id": 46', "row 1: 'id' is int, a string is needed"),
        ("ssv2", '"template"', '"templates"', "row 0 (id '45'): has no 'template'"),
        ("diving48", '"vid_name"', '"video"', "row 0: has no 'vid_name'"),
        ("diving48", '"label": 47', '"label": true', "class True is not one of 0 to 47; use the label file"),
        ("gym99", "0036 98", "0036  98 5", "line 1: 'A0xAXXysHUo_E_002184_002237_A_0035_0036  98 5' is not"),
        ("k400", ",84,", ",8x,", "line 2: time_start '8x' and time_end '94' are not both numbers"),
        ("k400", ",84,", ",inf,", "line 2: time_start 'inf' and time_end '94' are not both numbers"),
        ("k400", ",84,", ",nan,", "line 2: time_start 'nan' and time_end '94' are not both numbers"),
        ("k400", ",84,", ",1e999,", "line 2: time_start '1e999' and time_end '94' are not both numbers"),
        ("k400", ",84,94,train,0", ",84", "line 2: has no time_end"),
        ("k400", "time_start", "begin", "line 1: its header has no time_start"),
        ("list", "some class/clip 1 12 2", "clip", "line 2: 'clip' is neither 'folder frames class' nor"),
    ],
)
def test_a_malformed_row_is_named(make, data, old, new, expected):
    root = make(data)
    edit(root / LISTS[data], old, new)
    text = message(data, root, allow_missing=True)
    assert text.startswith(str(root / LISTS[data])) and expected in text


@pytest.mark.parametrize(
    ("data", "old", "name"),
    [
        ("ssv1", "100219", "../100219"),
        ("ssv1", "100219", ".."),
        ("ssv2", '"46"', '"/etc/46"'),
        ("diving48", "-mmq0PT-u8k_00156", "..\\\\\\\\x"),
        ("gym99", "A0xAXXysHUo_E_002184_002237_A_0036_0037", "a/../../b"),
        ("k400", "--3ouPhoy2A", "../x"),
        ("k400", '"air drumming",--3', '"../x",--3'),
        ("list", "some class/clip 1", "../clip"),
        ("list", "some class/clip 1", "/etc/clip"),
        ("list", "some class/clip 1", "C:/clip"),
    ],
)
def test_a_path_that_leaves_the_root_is_refused(make, data, old, name):
    root = make(data)
    edit(root / LISTS[data], old, name.replace("\\\\\\\\", "\\\\"))
    text = message(data, root, allow_missing=True)
    assert "is not a plain file name" in text or "is not a path below the video folder" in text


def test_repeated_clips_are_all_named(make):
    root = make("ssv1")
    path = root / "something-something-v1-train.csv"
    path.write_text(path.read_text() + path.read_text())
    with pytest.raises(BadRows) as caught:
        read_action("ssv1", root, "train")
    assert len(caught.value.rows) == 4
    assert "line 5: clip '100218' is already listed at line 1; keep one of the two rows" in str(caught.value)


def test_missing_videos_are_counted_and_the_first_named(make):
    root = make("ssv2")
    videos = root / "20bn-something-something-v2"
    for name in ("45.webm", "47.webm"):
        (videos / name).unlink()
    with pytest.raises(MissingVideo) as caught:
        read_action("ssv2", root, "train")
    assert str(caught.value) == (
        f"{root}/labels/train.json: 2 of 4 clips: "
        f"no video in 20bn-something-something-v2, videos, . of {root}: 45.webm, 47.webm; "
        "download them, or allow missing videos (--allow-missing)"
    )
    kept = read_action("ssv2", root, "train", allow_missing=True)
    assert [clip.clip_id for clip in kept.clips] == ["46", "48"]
    assert [row.row_id for row in kept.missing] == ["45", "47"]
    # Without a single one the root is wrong, whatever was allowed.
    for path in videos.iterdir():
        path.unlink()
    text = message("ssv2", root, allow_missing=True)
    assert "all 4 of 4 clips" in text and "pass the folder of the videos as root" in text


def test_many_missing_videos_make_a_short_message(make):
    root = make("list")
    (root / "train.txt").write_text("".join(f"gone/{i}.mp4 0\n" for i in range(1000)) + "clip_5.webm 1\n")
    text = message("list", root)
    assert "1,000 of 1,001 clips" in text and "gone/4.mp4, ... and 995 more" in text and len(text) < 400


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "broken JSON"),
        ("[]", "is a list, not a filled object"),
        (json.dumps({"a": "0", "b": "2"}), "its indices are not 0 to 1, each once"),
        (json.dumps({"a,b": "0", "ab": "1"}), "has class 'a,b' twice"),
    ],
)
def test_a_wrong_label_file_is_refused(make, text, expected):
    root = make("ssv2")
    (root / "labels" / "labels.json").write_text(text)
    assert expected in message("ssv2", root)


def test_wrong_categories_are_refused(make):
    root = make("gym99")
    path = root / "gym99_categories.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:5], "Clabel: five", *lines[6:]]))
    assert "line 6: 'Clabel: five' is not 'Clabel: N; set: N; Glabel: N; name'" in message("gym99", root)
    path.write_text("\n".join(lines[1:]))
    assert "the labels of its 98 classes are not 0 to 97" in message("gym99", root)


def test_two_lists_that_could_be_meant_are_named(make):
    root = make("list")
    (root / "train.txt").rename(root / "ssv1_train.txt")
    assert len(read_action("list", root, "train").clips) == 4
    (root / "ssv2_train.txt").write_text("x 0\n")
    assert "2 files look like *train*.txt: ssv1_train.txt, ssv2_train.txt" in message("list", root)
    assert len(read_action("list", root, "train", annotation=root / "ssv1_train.txt").clips) == 4


def test_a_csv_without_classes_is_refused(make):
    root = make("ssv1")
    text = message("ssv1", root, annotation=root / "something-something-v1-test.csv")
    assert "'9001' is not 'id;class name'" in text and "the test csv has no classes" in text
    root = make("k400")
    (root / "test.csv").write_text("youtube_id,time_start,time_end,split\nabc,0,10,test\n")
    text = message("k400", root, "test", annotation=root / "test.csv")
    assert "its header has no label" in text


def test_kinetics_times_may_be_fractions(make):
    root = make("k400")
    edit(root / "train.csv", ",84,94,", ",84.0,94.0,")
    assert read_action("k400", root, "train").clips[0].clip_id == "---QUuC4vJs_000084_000094"


def test_a_list_of_videos_whose_names_end_in_numbers(make, tmp_path):
    root = make("list")
    write_video(root / "take 2.mp4", moving_square(0, frames=2))
    (root / "train.txt").write_text("take 2.mp4 3\n")
    assert read_action("list", root, "train").clips[0].label == 3
