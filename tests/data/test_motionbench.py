"""Owns: MotionBench and its captions read as distributed, each split by its rule; bad rows are named."""

import pytest
from annotation_files import MB_QUESTION, MB_ROW, put, refusal, write

from moss_vllm.data.motionbench import (
    MOTIONBENCH_TASKS,
    motionbench_prompt,
    read_motionbench,
    read_motionbench_captions,
)
from moss_vllm.data.rows import CAPTION_PROMPT, BadRow, ClipRow, Turn

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
