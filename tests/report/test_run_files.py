"""Owns: a run's files are read as far as they go, and the page names whatever cannot be read."""

import json

import pytest
from pages import refusal, write
from run_folders import FILES, jsonl, settings, step_line

from moss_vllm.report import run_files
from moss_vllm.report.run_files import read_run_files
from moss_vllm.report.run_page import figures_of


def test_a_killed_run_is_shown_as_far_as_it_got(folder):
    (folder / "finished").unlink()
    whole = jsonl(step_line(step) for step in range(1, 8))
    (folder / "train.jsonl").write_text(whole[:-30])
    (folder / "evals.jsonl").unlink()
    page = write(folder)
    assert "Interrupted at step 6 of 10, or still running: train.jsonl was last written" in page.text
    assert "The same command with --resume auto continues from step-000010." in page.text
    assert "train.jsonl ends in a torn line 7: the run was killed, or writes it now" in page.text
    assert "evals.jsonl is not there: no question was asked in training (--eval-data asks some)" in page.text
    assert sorted(page.curve("Loss", "each step")) == [1, 2, 3, 4, 5, 6]


def test_a_whole_last_line_without_its_newline_counts(folder):
    (folder / "train.jsonl").write_text(jsonl(step_line(step) for step in range(1, 11)).rstrip("\n"))
    page = write(folder)
    assert 10 in page.curve("Loss", "each step") and "torn" not in page.text


def test_unreadable_lines_are_counted_and_named(folder):
    lines = jsonl(step_line(step) for step in range(1, 31)).encode().splitlines()
    for number in (3, 9):
        lines[number - 1] = lines[number - 1][:20]
    lines[11], lines[12], lines[13] = b"\x00\xff", b"[1]", b'{"step": "14"}'
    (folder / "train.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    (folder / "rejected.jsonl").write_text("[" * 100_000 + "\n")
    (folder / "evals.jsonl").write_text("{\n" * 1200)
    page = write(folder)
    assert "train.jsonl: 5 lines cannot be read: 3, 9, 12, 13, 14" in page.text
    assert "train.jsonl: 5 steps before step 30 without a line" in page.text
    assert "rejected.jsonl: 1 line cannot be read: 1" in page.text
    named = ", ".join(map(str, range(1, 11)))
    assert f"evals.jsonl: 1,200 lines cannot be read: {named} and 1,190 more" in page.text
    assert set(range(1, 31)) - set(page.curve("Loss", "each step")) == {3, 9, 12, 13, 14}


@pytest.mark.parametrize("gone", FILES)
def test_what_is_absent_is_said(folder, gone):
    (folder / gone).unlink()
    page = write(folder)
    assert f"{gone} is not there: {run_files.MISSING[gone]}" in page.text
    if gone == "settings.json":
        assert "Finished: step 10 of an unknown number" in page.text


def test_a_run_without_a_step_has_a_page(folder):
    for name in ("train.jsonl", "evals.jsonl", "finished"):
        (folder / name).unlink()
    (folder / "step-000010").rmdir()
    page = write(folder)
    assert "No step is logged yet of 10. There is no checkpoint." in page.text
    assert page.charts == {} and [value for value, _ in figures_of(read_run_files(folder))] == ["-"] * 4 + [
        "- %",
        "-",
    ]


def test_empty_and_broken_files_have_a_page(folder):
    for name in FILES:
        (folder / name).write_text("")
    page = write(folder)
    assert "settings.json cannot be read as JSON" in page.text and page.charts == {}
    (folder / "settings.json").write_text(
        '{"settings": [], "parameters": {"a": 1}, "memory": [3], "tokens": "x"}'
    )
    (folder / "train.jsonl").write_text(
        '{"step": 1}\n{"step": 2, "lr": 3, "loss": "no", "seconds": 0, "clips": 1}\n'
    )
    page = write(folder)
    assert page.curve("Loss", "each step") == {2: None} and page.curve("Speed", "each step") == {2: None}


def test_a_stop_on_a_loss_that_is_not_finite_is_told(folder):
    (folder / "finished").unlink()
    stop = {"step": 11, "loss": "nan", "row_ids": ["a.mp4", "b.mp4"]}
    (folder / "not-finite-step-000011-0.json").write_text(json.dumps(stop))
    page = write(folder)
    assert (
        "Stopped on a loss that is not finite (nan) at step 11 of 10. The rows of its batch are in "
        "not-finite-step-000011-0.json: a.mp4, b.mp4. The same command with --resume auto continues from "
        "step-000010."
    ) in page.text


def test_a_stop_that_was_passed_later_is_a_note(folder):
    (folder / "not-finite-step-000004-0.json").write_text(json.dumps({"gradient": "inf", "row_ids": []}))
    note = "not-finite-step-000004-0.json: not finite at step 4; the run went on from a checkpoint."
    page = write(folder)
    assert "Finished: step 10 of 10" in page.text and note in page.text
    (folder / "finished").unlink()
    page = write(folder)
    assert "Interrupted at step 10 of 10" in page.text and note in page.text


def test_a_resumed_run_says_so(folder):
    (folder / "settings.json").write_text(json.dumps(settings(resume="auto")))
    assert "Resumed" not in write(folder).text  # --resume auto of a run that never stopped
    (folder / "settings.json").write_text(json.dumps({**settings(resume="auto"), "resumed_at": [4, 8]}))
    with (folder / "train.jsonl").open("a") as file:  # two runs wrote at once
        file.write(jsonl([step_line(10, loss=0.125)]))
    page = write(folder)
    assert "Resumed at step 4, 8; the first start was 2020-01-01T00:00:00+00:00." in page.text
    assert "train.jsonl: 1 step logged twice; the later line is shown" in page.text
    assert page.curve("Loss", "each step")[10] == 0.125


def test_a_finished_run_whose_log_is_short_is_doubted(folder):
    (folder / "train.jsonl").write_text(jsonl(step_line(step) for step in range(1, 9)))
    assert "It has finished 10 steps, but train.jsonl ends at step 8." in write(folder).text


def test_a_folder_that_is_no_run_is_refused(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(tmp_path) == (
        f"error: {tmp_path} is neither the folder of a run (it has no settings.json, train.jsonl, "
        "evals.jsonl, rejected.jsonl) nor of an evaluation (it has no answers/*.jsonl); give the --out of a "
        "script in recipes/ or eval/"
    )
    assert refusal(folder / "step-000010") == (
        f"error: {folder}/step-000010 is a checkpoint of a run; give the run's folder, {folder}"
    )
    for path, what in ((tmp_path / "gone", "not there"), (folder / "finished", "a file")):
        assert refusal(path) == f"error: {path} is {what}; give the folder of a run or of an evaluation"
    assert not (tmp_path / "page.html").exists()
    run = tmp_path / "runs" / "demo" / "moss"
    run.mkdir(parents=True)
    (run / "train.jsonl").write_text("")
    assert refusal("runs/favor_lora").endswith("of an evaluation; there are runs/demo/moss")
