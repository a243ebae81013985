"""Owns: an evaluation's folder is read as far as it goes, and what cannot be shown is named."""

import os

from answer_folders import LETTER, ask, in_turn
from pages import refusal, write

from moss_vllm.data.rows import BenchmarkVideo, Question
from moss_vllm.evaluation.protocols import MOTIONBENCH


def test_a_killed_evaluation_is_shown_as_far_as_it_got(motion, tmp_path):
    ask(tmp_path, motion[:5], MOTIONBENCH, LETTER, in_turn("A", "B"), total=300, save=False)
    file = tmp_path / "answers" / "00-of-01.jsonl"
    file.write_bytes(file.read_bytes()[:-40])  # the last line is torn
    page = write(tmp_path, "--strips", "0")
    asked = [q.uid for video in motion[:4] for q in video.questions]
    assert set(page.questions) == set(asked)
    assert f"Partial: {len(asked)} of 300 questions" in page.text
    assert "result.json is not there, for the evaluation did not come to its end" in page.text


def test_a_result_of_another_time_is_left_out_and_said(motion, tmp_path):
    ask(tmp_path, motion[:8], MOTIONBENCH, LETTER, in_turn("A"), limit=3)
    page = write(tmp_path, "--strips", "0")
    kept = len(page.questions)
    assert (
        f"result.json tells of 3 questions, at another time or of another run; this page counts the {kept}"
        in page.text
    )
    questions = next(cells for cells in page.cells if cells[0] == "questions")
    public = sum(q.answer is not None for video in motion[:8] for q in video.questions)
    assert questions[1] == str(public)
    for broken in ("{", "[]", '{"asked": 3}'):
        (tmp_path / "result.json").write_text(broken)
        assert (
            "result.json is left out, it is no result of this version"
            in write(tmp_path, "--strips", "0").text
        )


def test_failed_videos_are_named_and_count_as_wrong(small, motion):
    page, gone = write(small, "--strips", "0"), motion[2]
    wrong, unseen = sum(q.answer is not None for q in gone.questions), len(gone.questions)
    noun = "question" if unseen == 1 else "questions"
    told = f"1 video missing or unreadable, of their {unseen} {noun} {wrong} count as wrong"
    assert f"{told}: {gone.video_id}: its header is lost" in page.text
    row = page.questions[gone.video_id]
    assert row[4] == "its header is lost" and page.outcomes()[gone.video_id] == "failed"
    secret = next(video for video in motion if all(q.answer is None for q in video.questions))
    out = small.parent / "secret"
    ask(out, [motion[0], secret], MOTIONBENCH, LETTER, in_turn("A"), failed={secret.video_id: "gone"})
    unseen = len(secret.questions)
    noun = "question" if unseen == 1 else "questions"
    told = f"of their {unseen} {noun} 0 count as wrong, the answers of {unseen} are withheld"
    assert told in write(out, "--strips", "0").text
    (small / "result.json").unlink()
    assert "1 video missing or unreadable, not counted in any number" in write(small, "--strips", "0").text


def test_a_pipe_in_place_of_a_video_or_of_answers_is_named(tmp_path):
    os.mkfifo(tmp_path / "v.mp4")
    asked = (Question("q", "MR", "What?", ("a", "b"), "A", "What?"),)
    videos = [BenchmarkVideo("v", tmp_path / "v.mp4", asked)]
    ask(tmp_path, videos, MOTIONBENCH, LETTER, lambda q: "A", save=False)
    assert "1 video cannot be read now: v." in write(tmp_path).text
    os.mkfifo(tmp_path / "answers" / "1.jsonl")
    assert "answers/1.jsonl is not a regular file; remove it" in refusal(tmp_path)


def test_what_cannot_be_shown_is_refused(small, tmp_path, motion):
    assert refusal(small / "answers") == (
        f"error: {small}/answers is a part of an evaluation; give its folder, {small}"
    )
    run = tmp_path / "run"
    run.mkdir()
    (run / "train.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    assert refusal(run, "--strips", 3) == (
        f"error: --strips is for the answers of an evaluation; {run} holds a training run"
    )
    empty = tmp_path / "empty" / "answers"
    empty.mkdir(parents=True)
    (empty / "00-of-01.jsonl").write_text('{"header"')
    assert refusal(empty.parent) == (
        f"error: {empty} holds no whole line yet; wait for the evaluation to write one"
    )
    other = small / "answers" / "01-of-02.jsonl"
    other.write_text("{}\n")
    assert f"{other}: line 1 is no line of an answer store" in refusal(small)
    file = small / "answers" / "00-of-01.jsonl"
    other.unlink()
    file.write_text(file.read_text().replace('"options"', '"choices"'))
    assert "answers lacks options; evaluate again" in refusal(small)
