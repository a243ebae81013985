"""Owns: without a terminal, progress is a line now and then, with the rate and the time left."""

from moss_vllm.runtime import progress
from moss_vllm.runtime.progress import show_progress


def test_items_pass_through_and_nothing_is_printed_for_ten_seconds(capsys):
    assert list(show_progress(iter("abc"), 3, "clips")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_a_line_has_rate_note_and_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    assert list(show_progress(iter([1, 2, 3]), 4, "clips", note=lambda: "1 bad")) == [1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and lines[2].startswith("3 of 4 clips, ")
    assert "/s, 1 bad, about 0.0 min left" in lines[2]


def test_items_may_hold_several_units(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    list(show_progress(["ab", "", "cde"], 1005, "questions", size=len))
    counts = [line.split(", ")[0] for line in capsys.readouterr().err.splitlines()]
    assert counts == ["2 of 1,005 questions", "2 of 1,005 questions", "5 of 1,005 questions"]


def test_before_anything_is_done_no_rate_is_made_up(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    list(show_progress([0, 2], 4, "steps", size=int))
    first, second = capsys.readouterr().err.splitlines()
    assert first == "0 of 4 steps" and second.startswith("2 of 4 steps, ") and second.endswith(" min left")
