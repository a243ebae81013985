"""Invariant: the readers return what the distributed files say, or one error naming file, row and remedy."""

import json
import os
import pickle
import time
import unicodedata

import pytest

from moss_vllm.data import annotations
from moss_vllm.data.annotations import find_video, read_json_rows, video_stem
from moss_vllm.data.favor import (
    FAVOR_TASKS,
    favor_answer_letter,
    favor_letter_prompt,
    favor_prompt,
    read_favor_bench,
    read_favor_train,
)
from moss_vllm.data.motionbench import (
    MOTIONBENCH_TASKS,
    motionbench_prompt,
    read_motionbench,
    read_motionbench_captions,
)
from moss_vllm.data.rows import CAPTION_PROMPT, BadRow, BadRows, ClipRow, MissingVideo, Turn

OPTIONS = ["Pick up the pot", "Turn left", "Turn around", "Put down the pot", "Turn around and walk forward"]
FAVOR_ITEM = {  # FAVOR-Bench, issue 3
    "question": "After pulling the sleeve and smoothing her hair, what did the brunette do next?",
    "options": OPTIONS,
    "correct_answer": "Turn around",
    "task_type": "AS",
}
MB_QUESTION = (
    "Please describe the detailed breakdown of the action in the video.\n"
    "A. Jump, Lay down, Stand\nB. Jump, Stand, Lay down\nC. Lay down, Stand, Jump"
)
MB_ROW = {  # MotionBench, issue 12
    "question_type": "Action Order",
    "video_type": "Gaming",
    "key": "37e1b635be3544d5a45106ea71c3b97c",
    "qa": [
        {"uid": "ggqGrLl5uBMMNzW2", "start": None, "end": None, "answer": "C", "question": MB_QUESTION},
    ],
    "video_path": "37e1b635be3544d5a45106ea71c3b97c.mp4",
    "video_info": {
        "duration": 8.383333206176758,
        "fps": 60.0,
        "resolution": {"width": 1280, "height": 1280},
    },
}
TRAIN_ROW = {
    "video_name": "abc123_4.mp4",
    "caption": "A man in a grey coat turns left, then walks.",
    "subset": "Koala36M",
    "url": "https://www.youtube.com/watch?v=aB3_-xY9zQ0",
    "start": "12.3",
    "end": 19.8,
}


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def write(folder, rows, name="rows.json"):
    text = "\n".join(map(json.dumps, rows)) + "\n" if name.endswith("jsonl") else json.dumps(rows)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def refusal(call, *parts):
    """The one BadRow of `call`, whose message holds every part."""
    with pytest.raises(BadRow) as caught:
        call()
    message = str(caught.value)
    for part in (*parts, caught.value.file, caught.value.reason, caught.value.remedy):
        assert str(part) in message
    assert not isinstance(caught.value, BadRows)
    return caught.value


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
        (b"", "file", "is empty"),
        (b" \n\n", "file", "is empty"),
        (b"[]", "file", "is an empty list"),
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


# ---- FAVOR-Bench


def test_favor_tasks_follow_table_5():
    assert list(FAVOR_TASKS) == ["AS", "CM", "HAC", "MAD", "NSM", "SAD"]
    assert FAVOR_TASKS["HAC"] == "Holistic Action Classification"


@pytest.mark.parametrize("name", ["1333C", "1333C.mp4"])
@pytest.mark.parametrize("folder", ["", "videos/FAVOR-Bench", "FAVOR-Bench"])
def test_favor_bench_row(tmp_path, name, folder):
    put(tmp_path / folder, "1333C.mp4")
    row = {"video_name": name, "questions": [FAVOR_ITEM, {**FAVOR_ITEM, "task_type": "CM"}], "caption": ""}
    write(tmp_path, [row], "video_perspective.json")
    (video,) = read_favor_bench(tmp_path, tmp_path)
    assert (video.video_id, video.path) == ("1333C", tmp_path / folder / "1333C.mp4")
    assert [(q.uid, q.task) for q in video.questions] == [("1333C_1", "AS"), ("1333C_2", "CM")]
    question = video.questions[0]
    assert (question.answer, question.options) == ("Turn around", tuple(OPTIONS))
    assert question.text == question.raw == FAVOR_ITEM["question"]


def test_favor_flat_file_groups_by_video(tmp_path):
    put(tmp_path, "00X3U.mp4", "B7DNX.mp4")
    keys = [("00X3U_1", "00X3U.mp4"), ("B7DNX_1", "B7DNX.mp4"), ("00X3U_2", "00X3U.mp4")]
    flat = [{"question_key": key, "video_name": name, **FAVOR_ITEM} for key, name in keys]
    videos = read_favor_bench(write(tmp_path, flat, "question_perspective.json"), tmp_path)
    found = {video.video_id: [q.uid for q in video.questions] for video in videos}
    assert found == {"00X3U": ["00X3U_1", "00X3U_2"], "B7DNX": ["B7DNX_1"]}


def favor_question(tmp_path, **changes):
    put(tmp_path, "1333C.mp4")
    rows = [{"video_name": "1333C.mp4", "questions": [{**FAVOR_ITEM, **changes}]}]
    return read_favor_bench(write(tmp_path, rows), tmp_path)[0].questions[0]


def test_favor_prompt_is_verbatim(tmp_path):
    question = favor_question(tmp_path, options=["Turn around", 'Open the cook\'s "pot"'])
    assert favor_prompt(question) == (
        "Carefully watch the video and pay attention to temporal dynamics in this video, focusing on the "
        "camera motions, actions, activities, and interactions. Based on your observations, select the best "
        "option that accurately addresses the question.\n"
        "After pulling the sleeve and smoothing her hair, what did the brunette do next?\n"
        "You can only response with the answer among ['Turn around', 'Open the cook\\'s \"pot\"']"
    )


def test_favor_letter_prompt_is_verbatim(tmp_path):
    question = favor_question(tmp_path, question="Q?", options=["Turn left", " Turn around"])
    assert favor_letter_prompt(question) == (
        "Question: Q?\nOptions:\n(A) Turn left\n(B)  Turn around\n"
        "Answer with the option's letter from the given choices directly and only give the best option."
    )
    assert favor_answer_letter(question) == "B"  # blanks at the ends of an option are no other answer


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"correct_answer": "C"}, "answer 'C' is none of its options"),
        ({"correct_answer": None}, "'correct_answer' is NoneType"),
        ({"task_type": "Action Sequence"}, "unknown task_type 'Action Sequence'"),
        ({"options": []}, "options are []"),
        ({"options": "Turn around"}, "options are 'Turn around'"),
        ({"options": ["Turn around", " "]}, "'option 1' is empty"),
        ({"options": ["Turn around", 3]}, "'option 1' is int"),
        ({"question": ""}, "'question' is empty"),
        ({"question": "\ud800"}, "'question' holds half a surrogate pair"),
    ],
)
def test_favor_bad_question(tmp_path, changes, reason):
    refusal(
        lambda: favor_question(tmp_path, **changes),
        tmp_path / "rows.json",
        "row 0 (video '1333C.mp4'), question '1333C_1'",
        reason,
    )


def test_favor_duplicates(tmp_path):
    put(tmp_path, "a.mp4")
    twice = [{"video_name": name, "questions": [FAVOR_ITEM]} for name in ("a", "a.mp4")]
    path = write(tmp_path, twice)
    refusal(lambda: read_favor_bench(path, tmp_path), "row 1 (video 'a.mp4')", "was already listed")
    path = write(tmp_path, [{"question_key": "a_1", "video_name": "a", **FAVOR_ITEM}] * 2)
    refusal(
        lambda: read_favor_bench(path, tmp_path), "row 1", "uid 'a_1' was already used by row 0 (video 'a')"
    )


@pytest.mark.parametrize("questions", [None, [], {}, ["text"]])
def test_favor_bad_questions_field(tmp_path, questions):
    path = write(tmp_path, [{"video_name": "a.mp4", "questions": questions}])
    put(tmp_path, "a.mp4")
    refusal(lambda: read_favor_bench(path, tmp_path), path, "row 0 (video 'a.mp4')")


# ---- FAVOR-Train


def test_favor_train_hosted_clip_is_already_cut(tmp_path):
    put(tmp_path, "videos/FAVOR-Train/abc123_4.mp4", "aB3_-xY9zQ0.mp4")
    write(tmp_path, [TRAIN_ROW], "train.json")
    clip = tmp_path / "videos/FAVOR-Train/abc123_4.mp4"
    turns = (
        Turn("Describe what is happening in the video.", "A man in a grey coat turns left, then walks."),
    )
    assert read_favor_train(tmp_path, tmp_path) == [ClipRow("abc123_4", clip, turns, None, None)]


def test_favor_train_cuts_the_uncut_source(tmp_path):
    put(tmp_path, "aB3_-xY9zQ0.mp4")
    (row,) = read_favor_train(write(tmp_path, [TRAIN_ROW]), tmp_path)
    assert (row.path, row.start_s, row.end_s) == (tmp_path / "aB3_-xY9zQ0.mp4", 12.3, 19.8)


@pytest.mark.parametrize(
    ("start", "end"), [("9", 2), (None, 3), ("nan", "5"), (-1, 2), (0, "inf"), ("0:01", 5), (0, 10**400)]
)
def test_favor_train_bad_times(tmp_path, start, end):
    put(tmp_path, "aB3_-xY9zQ0.mp4")
    path = write(tmp_path, [{**TRAIN_ROW, "start": start, "end": end}])
    refusal(lambda: read_favor_train(path, tmp_path), "row 0 (video 'abc123_4.mp4')", repr(start), repr(end))


def test_favor_train_bad_rows_are_collected_when_asked(tmp_path):
    put(tmp_path, "b.mp4")
    data = [TRAIN_ROW, {"video_name": "b", "caption": "Walks.", "subset": None}, {"video_name": "b.mp4"}]
    path = write(tmp_path, data)
    with pytest.raises(BadRows, match="2 bad rows, 1 of them without a video"):
        read_favor_train(path, tmp_path)
    bad: list[BadRow] = []
    assert [row.row_id for row in read_favor_train(path, tmp_path, bad=bad)] == ["b"]
    assert [(row.kind, row.row) for row in bad] == [
        ("missing", "row 0 (video 'abc123_4.mp4')"),
        ("bad", "row 2 (video 'b.mp4')"),
    ]
    # Without one usable row there is nothing to go on with.
    folders = f"none of the folders ., videos/FAVOR-Train, FAVOR-Train, videos of {tmp_path}"
    refusal(lambda: read_favor_train(write(tmp_path, [TRAIN_ROW]), tmp_path, bad=[]), folders)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"caption": "x"}, "row 1: has no 'video_name'"),
        ({"video_name": "b.mp4"}, "row 1 (video 'b.mp4'): has no 'caption'"),
        ({"video_name": "b.mp4", "caption": " \n"}, "row 1 (video 'b.mp4'): 'caption' is empty"),
        ({"video_name": "b.mp4", "caption": ["x"]}, "row 1 (video 'b.mp4'): 'caption' is list"),
        (
            {"video_name": "abc123_4", "caption": "x"},
            "row 1 ('abc123_4'): its video was already captioned",
        ),
        (
            {"video_name": "b.mp4", "caption": "x", "questions": [FAVOR_ITEM]},
            "row 1 (video 'b.mp4'): is a row of FAVOR-Bench, the test set",
        ),
        (
            {"video_name": "../b.mp4", "caption": "x"},
            "row 1 (video '../b.mp4'): video name '../b.mp4' is not",
        ),
    ],
)
def test_favor_train_bad_row(tmp_path, row, reason):
    put(tmp_path, "abc123_4.mp4", "b.mp4")
    path = write(tmp_path, [TRAIN_ROW, row])
    refusal(lambda: read_favor_train(path, tmp_path), path, reason)


# ---- MotionBench


def motionbench_row(name="v", **qa):
    item = {**MB_ROW["qa"][0], "uid": f"{name}-uid", **qa}
    return {**MB_ROW, "video_path": f"{name}.mp4", "qa": [item]}


def test_motionbench_tasks_follow_table_5():
    assert list(MOTIONBENCH_TASKS) == ["MR", "LM", "CM", "MO", "AO", "RC"]
    assert MOTIONBENCH_TASKS["MO"] == "Motion-related Objects"


@pytest.mark.parametrize(
    "folder", ["", "videos", "self-collected", "public-dataset", "MotionBench/public-dataset"]
)
@pytest.mark.parametrize("suffix", [".mp4", ".MP4"])
def test_motionbench_row(tmp_path, folder, suffix):
    put(tmp_path / folder, MB_ROW["key"] + suffix)
    write(tmp_path, [MB_ROW], "video_info.meta.jsonl")
    (video,) = read_motionbench(tmp_path, tmp_path)
    assert (video.video_id, video.path.parent) == (MB_ROW["key"], tmp_path / folder)
    (question,) = video.questions
    assert (question.uid, question.task, question.answer) == ("ggqGrLl5uBMMNzW2", "AO", "C")
    assert question.text == "Please describe the detailed breakdown of the action in the video."
    assert question.options == ("Jump, Lay down, Stand", "Jump, Stand, Lay down", "Lay down, Stand, Jump")
    assert motionbench_prompt(question) == (
        f"{MB_QUESTION}\n"
        "Answer with the option's letter from the given choices directly and only give the best option."
    )


def test_motionbench_dev_is_every_row_with_an_answer(tmp_path):
    put(tmp_path, "v.mp4", "w.mp4")
    rows = [motionbench_row(), motionbench_row("w", answer="NA"), motionbench_row(uid="v-uid_1", answer="A")]
    path = write(tmp_path, rows, "video_info.meta.jsonl")
    found = {
        split: {
            v.video_id: [(q.uid, q.answer) for q in v.questions]
            for v in read_motionbench(path, tmp_path, split=split)
        }
        for split in ("dev", "test", "all")
    }
    # One video over two rows stays one video: it is encoded once.
    assert found["dev"] == {"v": [("v-uid", "C"), ("v-uid_1", "A")]}
    assert found["test"] == {"w": [("w-uid", None)]}
    assert found["all"] == {**found["dev"], **found["test"]}
    (tmp_path / "w.mp4").unlink()
    assert len(read_motionbench(path, tmp_path)) == 1  # dev needs no test video
    with pytest.raises(ValueError, match="unknown MotionBench split 'val'; use one of dev, test, all"):
        read_motionbench(path, tmp_path, split="val")
    path = write(tmp_path, rows[:1], "video_info.meta.jsonl")
    refusal(lambda: read_motionbench(path, tmp_path, split="test"), "has no question of split 'test'")


@pytest.mark.parametrize(
    ("raw", "text", "options"),
    [
        ("How often?\nA. 1\nB. 2\nC. 3\nD. 4\nE. 5\nF. 6\n", "How often?", ("1", "2", "3", "4", "5", "6")),
        ("Which?\r\nA) a\r\nB)b\r\nC) c", "Which?", ("a", "b", "c")),
        (
            "Which?\nU.S. flag\nA. a\n  long one\nB. b\n\n C. c\n",
            "Which?\nU.S. flag",
            ("a\n  long one", "b", "c"),
        ),
        ("Which?\nA.\nleft\nB. b\nC. A. b", "Which?", ("left", "b", "A. b")),
    ],
)
def test_motionbench_options(tmp_path, raw, text, options):
    put(tmp_path, "v.mp4")
    path = write(tmp_path, [motionbench_row(question=raw)], "m.jsonl")
    question = read_motionbench(path, tmp_path)[0].questions[0]
    assert (question.text, question.options, question.raw) == (text, options, raw)


@pytest.mark.parametrize(
    ("qa", "reason"),
    [
        ({"answer": "D"}, "answer 'D' is not among its options A, B, C"),
        ({"answer": "AB"}, "answer 'AB' is not among its options"),
        ({"answer": None}, "'answer' is NoneType"),
        ({"uid": 3}, "'uid' is int"),
        ({"question": "Which?\nA. a\nB. b\nD. d"}, "options are lettered A, B, D"),
        ({"question": "Which?\nA. a\nB. b"}, "options are lettered A, B"),
        ({"question": "Which?\nA. a\nB. b\nA. a\nB. b"}, "options are lettered A, B, A, B"),
        ({"question": "Which?"}, "options are lettered not at all"),
        ({"question": "Which?\nA. a\nB. \nC. c"}, "options are lettered A, B, C, with 1 empty"),
        (
            {"question": "?" + "".join(f"\n{letter}. x" for letter in "ABCDEFG")},
            "lettered A, B, C, D, E, F, G",
        ),
    ],
)
def test_motionbench_bad_question(tmp_path, qa, reason):
    put(tmp_path, "v.mp4")
    path = write(tmp_path, [motionbench_row(**qa)], "m.jsonl")
    refusal(lambda: read_motionbench(path, tmp_path), path, "row 0 (video 'v.mp4')", reason)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**motionbench_row("w"), "question_type": "Motion"}, "uid 'w-uid': unknown question_type 'Motion'"),
        ({**motionbench_row("w"), "question_type": ["Action Order"]}, "'question_type' is list"),
        ({**motionbench_row("w"), "qa": []}, "row 1 (video 'w.mp4'): 'qa' is not a filled list"),
        ({**motionbench_row("w"), "qa": ["x"]}, "row 1 (video 'w.mp4'): an entry of 'qa' is a str"),
        ({**motionbench_row("w"), "video_path": None}, "row 1: 'video_path' is NoneType"),
        (
            motionbench_row("w", uid="v-uid"),
            "uid 'v-uid' was already used by row 0 (video 'v.mp4'), uid 'v-uid'",
        ),
        (motionbench_row("gone"), "video 'gone.mp4' is in none of the folders ., videos, self-collected"),
    ],
)
def test_motionbench_bad_row(tmp_path, row, reason):
    put(tmp_path, "v.mp4", "w.mp4")
    path = write(tmp_path, [motionbench_row(), row], "m.jsonl")
    refusal(lambda: read_motionbench(path, tmp_path), path, "row 1", reason)


# ---- MotionBenchCaption-train


@pytest.mark.parametrize("folder", ["videos", "MotionBenchCaption-train/videos", ""])
def test_motionbench_captions(tmp_path, folder):
    put(tmp_path / folder, "0a1b.mp4")
    row = {"video_path": "0a1b.mp4", "motion_caption": "The camera pans left.", "fps": 30}
    write(tmp_path, [row], "train.jsonl")
    turns = (Turn(CAPTION_PROMPT, "The camera pans left."),)
    assert read_motionbench_captions(tmp_path, tmp_path) == [
        ClipRow("0a1b", tmp_path / folder / "0a1b.mp4", turns, None, None)
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"motion_caption": "x"}, "row 1: has no 'video_path'"),
        ({"video_path": "b.mp4", "caption": "x"}, "row 1 (video 'b.mp4'): has no 'motion_caption'"),
        ({"video_path": "a.mp4", "motion_caption": "x"}, "row 1 ('a'): its video was already captioned"),
        (
            {"video_path": "gone.mp4", "motion_caption": "x"},
            "'gone.mp4' is in none of the folders ., videos, ",
        ),
        ({"video_path": "../b.mp4", "motion_caption": "x"}, "video name '../b.mp4' is not a relative"),
    ],
)
def test_motionbench_captions_bad_row(tmp_path, row, reason):
    put(tmp_path, "videos/a.mp4", "videos/b.mp4")
    path = write(tmp_path, [{"video_path": "a.mp4", "motion_caption": "It turns."}, row], "train.jsonl")
    refusal(lambda: read_motionbench_captions(path, tmp_path), path, reason)
    bad: list[BadRow] = []
    assert len(read_motionbench_captions(path, tmp_path, bad=bad)) == 1
    assert [one.kind for one in bad] == ["missing" if "gone" in reason else "bad"]
