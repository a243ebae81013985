"""Owns: several runs and evaluations on one page - what differs, all curves, all scores, by their names."""

import json

import pytest
from answer_folders import LETTER, OFFICIAL, ask, in_turn
from pages import Page, refusal, write
from run_folders import digits, eval_line, jsonl, settings, step_line

from moss_vllm.commands.scripts import report
from moss_vllm.evaluation.protocols import FAVOR_BENCH, MOTIONBENCH


@pytest.fixture
def demo(motion, favor, tmp_path):
    """Folders as the demo has them: two runs, and evaluations of three models in two benchmarks."""
    for number, arm in enumerate(("plain", "moss")):
        run = tmp_path / "demo" / arm
        run.mkdir(parents=True)
        given = settings(steps=60, use_moss=arm == "moss", out=str(run), lr_llm=0.001 * (number + 1))
        (run / "settings.json").write_text(json.dumps(given))
        lines = [step_line(step, loss=4 / step - number / 100) for step in range(1, 61)]
        lines += [{"step": step, "held_out_loss": 5 / step - number / 10, "rows": 9} for step in (30, 60)]
        (run / "train.jsonl").write_text(jsonl(lines))
        (run / "evals.jsonl").write_text(jsonl(eval_line(step) for step in (30, 60)))
        (run / "finished").write_text("step-000060\n" if number else "")
    (tmp_path / "demo" / "plain" / "finished").unlink()
    for name, videos, benchmark, protocol in (
        ("MotionBench", motion[:12], MOTIONBENCH, LETTER),
        ("FAVOR", favor[:12], FAVOR_BENCH, OFFICIAL),
    ):
        for place, arm in enumerate(("base", "plain", "moss")):
            said = in_turn(*"ABCAB"[: place + 2])
            ask(tmp_path / "demo" / "eval" / name / arm, videos, benchmark, protocol, said)
    return tmp_path / "demo"


def several(*folders):
    return Page(report.main(list(map(str, folders))))


def test_runs_have_their_differences_curves_and_last_numbers_side_by_side(demo):
    page = several(demo / "plain", demo / "moss")
    assert (demo / "side-by-side.html").is_file() and "plain, moss" in page.text
    assert page.row("setting") == ["plain", "moss"]
    assert page.row("use_moss") == ["false", "true"] and page.row("lr_llm") == ["0.001", "0.002"]
    assert not {"out", "steps", "model", "device"} & {cells[0] for cells in page.cells if len(cells) == 3}
    last = sum(4 / step for step in range(41, 61)) / 20
    assert page.row("plain")[:4] == ["not finished", "60 of 60", f"{last:.4f}", f"{5 / 60:.4f}"]
    assert page.row("moss")[:4] == ["finished", "60 of 60", f"{last - 0.01:.4f}", f"{5 / 60 - 0.1:.4f}"]
    for title in ("Loss", "Held-out loss", "Gradient norm", "all", "MR"):
        if title != "MR":  # of the tasks only all of them
            curves = page.charts[title]["curves"]
            assert [one["name"] for one in curves] == ["plain", "moss"]
            assert [one["colour"] for one in curves] == [0, 1]
    assert page.curve("Held-out loss", "plain") == digits({30: 5 / 30, 60: 5 / 60})
    assert page.curve("Loss", "moss").keys() == set(range(1, 61)) and "MR" not in page.charts
    assert page.curve("all", "moss") == {30: 30.0, 60: 60.0}


def test_scores_stand_beside_each_other_with_their_intervals(demo):
    folders = [
        demo / "eval" / name / arm for name in ("MotionBench", "FAVOR") for arm in ("base", "plain", "moss")
    ]
    page = several(demo / "plain", demo / "moss", *folders)
    assert (
        "MotionBench-Dev, protocol letter" in page.text
        and "FAVOR-Bench, protocol favor_official" in page.text
    )
    for name in ("MotionBench", "FAVOR"):
        told = json.loads((demo / "eval" / name / "moss" / "result.json").read_text())
        low, high = told["interval_95_percent"]["all"]
        cell = f"{told['accuracy_percent']['all']:.1f}{low:.1f} to {high:.1f}"
        assert cell in [cells[1] for cells in page.cells if cells[0] == "moss"]
    bars = [text for text in page.source.split("<title>") if text.startswith("moss, all:")]
    # The run's colour is that of the evaluations of its name.
    assert len(bars) == 2 and all('class="c1"' in text.split("<path")[0] for text in bars)
    assert "These data are the motion world: no number compares with the paper's." in page.text
    assert "(paper)" not in page.text and "do not compare" not in page.text
    assert "eval/compare.py tests differences" in page.text


def test_other_questions_are_told_of(demo, motion, tmp_path):
    ask(tmp_path / "some", motion[:5], MOTIONBENCH, LETTER, in_turn("A"))
    page = several(demo / "eval" / "MotionBench" / "moss", tmp_path / "some")
    assert (
        "These are not the same questions (moss " in page.text and "so the rows do not compare" in page.text
    )
    assert "No training run is named." in page.text and "No step was logged." in page.text


def test_folders_of_the_same_name_get_as_much_of_their_paths_as_they_need(demo, tmp_path):
    (tmp_path / "other").mkdir()
    (demo / "moss").rename(tmp_path / "other" / "plain")
    page = several(demo / "plain", tmp_path / "other" / "plain")
    assert page.row("setting") == ["demo/plain", "other/plain"] and (tmp_path / "side-by-side.html").is_file()


def test_a_name_with_markup_stays_text(demo, tmp_path):
    hostile = demo / "<img src=x onerror=hacked>"
    (demo / "moss").rename(hostile)
    page = several(demo / "plain", hostile)
    assert "img" not in page.tags and "<img src=x onerror=hacked>" in page.row("setting")


def test_what_cannot_stand_side_by_side_is_refused(demo, tmp_path):
    detector = tmp_path / "detector"
    detector.mkdir()
    (detector / "result.json").write_text('{"split_at_tiou": 0.5}')
    told = f"{detector} holds the test of a detector or boundary model; side by side are training runs"
    assert told in refusal(demo / "plain", detector)
    assert "a folder is named twice" in refusal(demo / "plain", demo / "eval" / ".." / "plain")
    assert "--strips is for the answers of one evaluation" in refusal(
        demo / "plain", demo / "moss", "--strips", 3
    )
    assert not list(tmp_path.rglob("side-by-side.html"))


def test_a_run_alone_has_its_held_out_curve_too(demo):
    page = write(demo / "plain")
    assert page.curve("Loss", "held out") == digits({30: 5 / 30, 60: 5 / 60})
    assert page.curve("Loss", "each step").keys() == set(range(1, 61)) and "logged twice" not in page.text
