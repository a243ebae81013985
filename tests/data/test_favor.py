"""Owns: FAVOR-Train and FAVOR-Bench read as distributed, with the authors' prompts; bad rows are named."""

import pytest
from annotation_files import FAVOR_ITEM, OPTIONS, TRAIN_ROW, put, refusal, write

from moss_vllm.data.favor import (
    FAVOR_TASKS,
    favor_answer_letter,
    favor_letter_prompt,
    favor_prompt,
    read_favor_bench,
    read_favor_train,
)
from moss_vllm.data.rows import BadRow, BadRows, ClipRow, Turn

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
    assert read_favor_train(tmp_path, tmp_path) == [
        ClipRow("abc123_4", clip, turns, None, None, cut_from="aB3_-xY9zQ0")
    ]


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
        ({"video_name": "b.mp4", "caption": " \n"}, "row 1 (video 'b.mp4'): 'caption' is empty"),
        ({"video_name": "b.mp4", "caption": ["x"]}, "row 1 (video 'b.mp4'): 'caption' is list"),
        (
            {"video_name": "b.mp4", "caption": "x", "questions": [FAVOR_ITEM]},
            "row 1 (video 'b.mp4'): is a row of FAVOR-Bench, the test set",
        ),
    ],
)
def test_favor_train_bad_row(tmp_path, row, reason):
    put(tmp_path, "abc123_4.mp4", "b.mp4")
    path = write(tmp_path, [TRAIN_ROW, row])
    refusal(lambda: read_favor_train(path, tmp_path), path, reason)
