"""Owns: annotation files give their rows and videos, or one error naming file, row and remedy."""

import json
import os
import pickle
import time
import unicodedata

import pytest
from annotation_files import FAVOR_ITEM, TRAIN_ROW, put, refusal, write

from moss_vllm.data import annotations
from moss_vllm.data.annotations import find_video, read_json_rows, video_stem
from moss_vllm.data.favor import (
    read_favor_bench,
    read_favor_train,
)
from moss_vllm.data.motionbench import (
    read_motionbench,
    read_motionbench_captions,
)
from moss_vllm.data.rows import BadRow, BadRows, MissingVideo

# ---- json


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_reads_list_and_lines(tmp_path, name):
    data = [{"a": "line\u2028separator"}, {"b": [1, None]}]
    path = tmp_path / name
    lines = [json.dumps(row, ensure_ascii=False) for row in data]
    text = "\r\n\r\n".join(lines) + "\n\n" if name.endswith("l") else "\n[" + ",\n".join(lines) + "]"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())  # a byte order mark is no part of the data
    assert read_json_rows(path) == data


@pytest.mark.parametrize(
    ("content", "row", "reason"),
    [
        (b" \n\n", "file", "is empty"),
        (b'{\n "database": {}\n}', "file", "is one JSON object, not a list of rows"),
        (b'[{"a": 1},\n{"a" 2}]', "line 2", "broken JSON: Expecting ':' delimiter at column 6"),
        (b'{"a": 1}\n\n{"a": \n', "line 3", "broken JSON: Expecting value at column 7"),
        (b'[{"a": 1}, 7]', "row 1", "is a int, not an object"),
        (b'{"a": 1}\n"x"\n', "line 2", "is a str, not an object"),
        (b'{"a": 1}\n{"a": NaN}', "line 2", "NaN is not a number in JSON"),
        (b'[{"a": -Infinity}]', "file", "-Infinity is not a number in JSON"),
        (b'[{"a": 1e999}]', "file", "1e999 is not a number in JSON"),
        (b"[" * 200_000, "file", "recursion"),
        ('[{"a": "é"}]'.encode("latin-1"), "file", "is not UTF-8 text"),
        ('[{"a": 1}]'.encode("utf-16"), "file", "is not UTF-8 text"),
    ],
)
def test_refuses_broken_json(tmp_path, content, row, reason):
    (tmp_path / "rows.json").write_bytes(content)
    error = refusal(lambda: read_json_rows(tmp_path / "rows.json"), reason)
    assert (error.file, error.row) == (str(tmp_path / "rows.json"), row)


def test_refuses_missing_and_oversized_files(tmp_path, monkeypatch):
    refusal(lambda: read_json_rows(tmp_path / "no.json"), tmp_path / "no.json", "is not there")
    monkeypatch.setattr(annotations, "MAX_ANNOTATION_BYTES", 10)
    path = write(tmp_path, [{"a": 12345}])
    refusal(lambda: read_json_rows(path), "has 14 bytes, at most 10 are read")


def test_errors_survive_pickling():
    one = MissingVideo("f.json", 3, "is gone", "fetch it")
    several = BadRows([one, BadRow("f.json", "row 4 (uid 'x')", "is bad", "repair it")])
    assert str(one) == "f.json: row 3: is gone; fetch it"
    for error in (one, several):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.row) == (type(error), str(error), 3)
    assert [row.row for row in several.rows] == [3, "row 4 (uid 'x')"]


# ---- videos


@pytest.mark.parametrize("asked", ["x", "x.mp4", "x.MP4", "x.mp4.mp4"])
@pytest.mark.parametrize("stored", ["x.mp4", "x.MP4", "x.mp4.mp4", "sub/x.mp4"])
def test_finds_every_spelling(tmp_path, asked, stored):
    put(tmp_path, stored)
    found = find_video(tmp_path, asked, ("", "sub"), file="f", row=0)
    assert found.samefile(tmp_path / stored)


def test_finds_ids_with_bars_and_prefers_the_exact_name(tmp_path):
    put(tmp_path, "27k-12-4-3|P1|4966|5375.mp4", "a.avi", "a.mp4", "b.webm")
    names = ("27k-12-4-3|P1|4966|5375", "a.avi", "a", "b")
    found = [find_video(tmp_path, name, ("",), file="f", row=0).name for name in names]
    assert found == ["27k-12-4-3|P1|4966|5375.mp4", "a.avi", "a.mp4", "b.webm"]
    with pytest.raises(MissingVideo):  # never another container than the one asked for
        find_video(tmp_path, "a.mov", ("",), file="f", row=0)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".mp4",
        "/etc/passwd",
        "../secret.mp4",
        "a/../../secret",
        "..\\secret",
        "C:\\x.mp4",
        "\\\\host\\x.mp4",
    ]
    + ["x\0.mp4", "x\n.mp4", "\ud800.mp4", "x" * 300, "door/secret.mp4"],
)
def test_refuses_hostile_names(tmp_path, name):
    put(tmp_path, "secret.mp4", "root/videos/x.mp4")
    os.symlink(tmp_path, tmp_path / "root" / "door")
    error = refusal(
        lambda: find_video(tmp_path / "root", name, ("", "videos"), file="f.json", row=5), "row 5"
    )
    assert not isinstance(error, MissingVideo)
    str(error).encode()  # printable, whatever the name


@pytest.mark.parametrize("asked", ["NFC", "NFD"])
@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("name", ["caf\u00e9.mp4", "\u00fcb\u00fcng/\ud55c\uae00", "\u00e9 \u1e69.webm"])
def test_a_name_in_other_code_points_is_the_same_name(tmp_path, asked, stored, name):
    place = tmp_path / (unicodedata.normalize(stored, name) + ("" if "." in name else ".mp4"))
    place.parent.mkdir(exist_ok=True)
    place.touch()
    name = unicodedata.normalize(asked, name)
    assert find_video(tmp_path, name, ("videos", ""), file="x", row=0) == place
    assert video_stem(name) == video_stem(unicodedata.normalize(stored, name))


def test_a_name_that_is_neither_composed_nor_decomposed(tmp_path):
    place = tmp_path / "e\u0301 \u00e9.mp4"
    place.touch()
    assert find_video(tmp_path, "\u00e9 \u00e9", ("",), file="x", row=0) == place
    other = tmp_path / "\u00e9 e\u0301.mp4"
    other.touch()
    with pytest.raises(
        BadRow, match="is that of 2 files .* in other code points; remove all but one of them"
    ):
        find_video(tmp_path, "\u00e9 \u00e9", ("",), file="x", row=0)
    assert find_video(tmp_path, other.name, ("",), file="x", row=0) == other  # an exact name is one file


@pytest.mark.parametrize("name", [".mp4" * 100_000 + "x", "x" + ".mp4" * 100_000, "a/" * 100_000, "x" * 300])
def test_a_name_that_no_file_can_have_is_a_bad_row_at_once(tmp_path, name):
    (tmp_path / "train.json").write_text(json.dumps([{**TRAIN_ROW, "video_name": name}]))
    started = time.monotonic()
    video_stem(name)
    with pytest.raises(BadRow, match="row 0") as caught:
        read_favor_train(tmp_path, tmp_path)
    assert time.monotonic() - started < 1 and len(str(caught.value)) < 2000


def test_accepts_links_made_by_download_tools(tmp_path):
    put(tmp_path, "blobs/0a1b", "disk/y.mp4", "root/z.mp4")
    os.symlink("../blobs/0a1b", tmp_path / "root" / "x.mp4")  # the hub's cache
    os.symlink(tmp_path / "disk", tmp_path / "root" / "videos")  # a folder the user put elsewhere
    found = [find_video(tmp_path / "root", n, ("", "videos"), file="f", row=0).name for n in ("x", "y")]
    assert found == ["x.mp4", "y.mp4"]


def test_all_missing_videos_and_bad_rows_come_together(tmp_path):
    rows = [{"video_name": f"v{n}.mp4", "questions": [FAVOR_ITEM]} for n in range(14)]
    rows[2] = {"video_name": 7, "questions": [FAVOR_ITEM]}
    put(tmp_path, "v0.mp4")
    path = write(tmp_path, rows)
    with pytest.raises(BadRows) as caught:
        read_favor_bench(path, tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: 13 bad rows, 12 of them without a video:"
    assert len(lines) == 12 and lines[-1] == "  ... and 3 more"
    assert "row 2: 'video_name' is int" in lines[1] and "fill in 'video_name'" in lines[1]
    missing = (
        f"video 'v1.mp4' is in none of the folders ., videos/FAVOR-Bench, FAVOR-Bench, videos of {tmp_path}"
    )
    assert missing in lines[2] and "download it" in lines[2]
    assert len(caught.value.rows) == 13


@pytest.mark.parametrize(
    ("read", "names"),
    [
        (read_favor_bench, "video_perspective.json, question_perspective.json"),
        (read_favor_train, "train.json, sft.json"),
        (read_motionbench_captions, "train.jsonl, MotionBenchCaption-train/train.jsonl"),
        (read_motionbench, "video_info.meta.jsonl, MotionBench/video_info.meta.jsonl"),
    ],
)
def test_folder_without_annotation_names_what_was_tried(tmp_path, read, names):
    refusal(lambda: read(tmp_path, tmp_path), tmp_path, f"holds none of {names}")
