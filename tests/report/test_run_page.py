"""Owns: a run's page says what its files hold - all of it, escaped, alone - and what they do not hold."""

import html
import json
import math
import re
import shutil
import subprocess
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import report

import moss_vllm
from moss_vllm.report import html as frame
from moss_vllm.report import run_files
from moss_vllm.report.curves import MOST_POINTS, running_mean, thin
from moss_vllm.report.run_files import read_run
from moss_vllm.report.run_page import figures_of
from moss_vllm.training import run_folder

RATES = {"moss": 3e-3, "projector": 3e-4, "llm lora": 1e-3}
TASKS = {"all": 25.0, "MR": 25.0, "CM": 20.0}
NOTHING_ABSENT = ["settings.json", "train.jsonl", "evals.jsonl", "rejected.jsonl"]
HOSTILE = """</script><script>alert("1")</script><img src=x onerror='alert(2)'>&amp;"""


def step_line(step, **more):
    line = {
        "step": step,
        "loss": 3 / step,
        "grad_norm": 1 + step / 7,
        "lr": {k: v / step for k, v in RATES.items()},
    }
    if step % 2 == 0:
        line["grad_norms"] = {name: 0.1 * step + place for place, name in enumerate(RATES)}
    line |= {
        "clips": 16,
        "tokens": 2800 + step,
        "memory_gib": 1.0 + step / 64,
        "seconds": 0.5,
        "waited_s": 0.05,
    }
    return line | more


def eval_line(step, outputs=(("B", True),), **more):
    samples = [
        {
            "video": f"video{n}",
            "question": f"Question {n}?",
            "options": ["left", "right"],
            "answer": "B",
            "output": output,
            "correct": correct,
        }
        for n, (output, correct) in enumerate(outputs)
    ]
    return {
        "step": step,
        "benchmark": "MotionBench-Dev",
        "protocol": "letter",
        "accuracy": {task: step + place / 3 for place, task in enumerate(TASKS)},
        "chance": TASKS,
        "counts": {key: dict.fromkeys(TASKS, 12) for key in ("correct", "answered", "total")},
        "samples": samples,
        **more,
    }


def settings(steps=10, **more):
    return {
        "settings": {
            "model": "miniature",
            "steps": steps,
            "resume": None,
            "lr_moss": 0.003,
            "use_moss": True,
            **more,
        },
        "engine": "one process",
        "processes": 1,
        "device": "cpu",
        "attention": "sdpa (flash-attn needs a CUDA device, this is cpu)",
        "stss": "self-similarity: banded path (no CUDA device)",
        "parameters": [
            ["moss", r"vision_model\.moss\.", 38, 250720, "0.003"],
            ["frozen", ".", 166, 1514624, "frozen"],
        ],
        "plan": "kept 597 of 600 rows: 0 too long, 0 bad, 3 missing",
        "sources": [["FAVOR", 597, 597.0]],
        "tokens": {"min": 172, "median": 174, "max": 186},
        "memory": {"frozen_weights": 2**29, "total": 2**31},
        "versions": {"python": "3.11.7", "torch": "2.12.1"},
        "command": "recipes/favor_lora.py --steps 10",
        "started": "2020-01-01T00:00:00+00:00",
    }


def jsonl(lines):
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def folder(tmp_path):
    """A finished run of ten steps, with two evaluations and a rejected row."""
    run = tmp_path / "favor_lora"
    (run / "step-000010").mkdir(parents=True)
    (run / "settings.json").write_text(json.dumps(settings()))
    (run / "train.jsonl").write_text(jsonl(step_line(step) for step in range(1, 11)))
    asked = {
        5: [("A", False), ("B", True), ("A", False)],
        10: [("B", True), ("B", True), ("it moves", False)],
    }
    (run / "evals.jsonl").write_text(jsonl(eval_line(*one) for one in asked.items()))
    row = {"row_id": "row 5", "source": "FAVOR", "kind": "missing", "reason": "video 'a.mp4' is nowhere"}
    (run / "rejected.jsonl").write_text(jsonl([row]))
    (run / "finished").write_text("step-000010\n")
    return run


class Page(HTMLParser):
    """Tags, attributes and visible text of a page, and the data of its curves by chart."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.words, self.hidden = [], [], [], False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))
        data = json.loads(re.search(r'id="data">(.*?)</script>', self.source, re.S)[1])
        titles = [html.unescape(title) for title in re.findall(r"<figcaption><b>(.*?)</b>", self.source)]
        self.charts = dict(zip(titles, data, strict=True))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.hidden = tag in ("script", "style")

    def handle_endtag(self, tag):
        self.hidden = False

    def handle_data(self, data):
        if not self.hidden:
            self.words.append(data)

    def curve(self, title, name):
        """Values by step."""
        (found,) = [one for one in self.charts[title]["curves"] if one["name"] == name]
        return dict(zip(found["x"], found["y"], strict=True))


def write(folder, *more):
    return Page(report.main([str(folder), *more]))


def digits(values):
    return {step: float(f"{value:.6g}") for step, value in values.items()}


def test_curves_are_the_values_of_the_files(folder):
    page, steps = write(folder), range(1, 11)
    assert page.curve("Loss", "each step") == digits({s: 3 / s for s in steps})
    assert page.curve("Loss", "mean of 5 steps")[5] == float(f"{sum(3 / s for s in range(3, 8)) / 5:.6g}")
    for place, (name, rate) in enumerate(RATES.items()):
        assert page.curve("Learning rates", name) == digits({s: rate / s for s in steps})
        assert page.curve("Gradient norms", name) == digits(
            {s: 0.1 * s + place for s in steps if s % 2 == 0 if s}
        )
    assert page.curve("Gradient norms", "all") == digits({s: 1 + s / 7 for s in steps})
    assert page.curve("Speed", "each step") == dict.fromkeys(steps, 32.0)
    assert page.curve("Waiting for data", "each step") == dict.fromkeys(steps, 10.0)
    assert page.curve("Peak memory so far", "first process") == digits({s: 1 + s / 64 for s in steps})
    for place, (task, chance) in enumerate(TASKS.items()):
        assert page.curve(task, task) == digits({s: s + place / 3 for s in (5, 10)})
        assert page.curve(task, "chance") == {5: chance, 10: chance}
        assert page.charts[task]["range"][0] == 0 and page.charts[task]["range"][1] >= 100


def test_lines_are_drawn_where_their_values_belong(folder):
    page = write(folder)
    chart = page.charts["Speed"]
    width, height, left, right, top, bottom = chart["box"]
    (faint,) = re.findall(r'Speed over steps.*?class="curve c0 faint" d="(.*?)"', page.source, re.S)
    points = [tuple(map(float, point)) for point in re.findall(r"[ML]([\d.]+) ([\d.]+)", faint)]
    high = chart["range"][1]  # the axis begins at 0
    assert chart["span"] == [0, 10] and chart["range"][0] == 0
    expected_y = height - bottom - (height - bottom - top) * 32 / high
    assert points == [
        (pytest.approx(left + (width - left - right) * s / 10, abs=0.06), pytest.approx(expected_y, abs=0.06))
        for s in range(1, 11)
    ]
    (dashed,) = re.findall(r'"CM over steps.*?class="curve c6 dashed" d="(.*?)"', page.source, re.S)
    assert len(set(re.findall(r"[ML][\d.]+ ([\d.]+)", dashed))) == 1  # chance is level


def test_the_top_tells_how_the_run_went(folder):
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    (folder / "train.jsonl").write_text(jsonl({**line, "elapsed_s": 372.3 * line["step"]} for line in lines))
    page = write(folder)
    assert "Finished: step 10 of 10; the last checkpoint is step-000010." in page.text
    assert [value for value, _ in figures_of(read_run(folder))] == [
        "1 h 02 min",
        "5.0 s",
        "32.0",
        f"{sum(2800 + s for s in range(1, 11)) / 5:,.0f}",
        "10.0 %",
        "1.16 GiB",
    ]
    for name in NOTHING_ABSENT:
        assert f"{name} is not there" not in page.text


def test_settings_and_the_start_report_are_shown(folder):
    page = write(folder)
    for shown in (
        r"moss vision_model\.moss\. 38 250,720 0.003",
        "frozen . 166 1,514,624 frozen",
        "attention sdpa (flash-attn needs a CUDA device, this is cpu)",
        "stss self-similarity: banded path (no CUDA device)",
        "min 172 median 174 max 186",
        "frozen weights 0.500 total 2.000",
        "python 3.11.7 torch 2.12.1",
        "recipes/favor_lora.py --steps 10",
        "model miniature steps 10 resume - lr_moss 0.003 use_moss true",
        "FAVOR 597 597",
        "kept 597 of 600 rows: 0 too long, 0 bad, 3 missing",
        "1 row: 1 missing. row source kind reason row 5 FAVOR missing video 'a.mp4' is nowhere",
    ):
        assert shown in re.sub(r"\s+", " ", page.text.replace("\n", " ")), shown


def test_samples_stand_side_by_side_and_can_be_filtered(folder):
    page = write(folder)
    assert "All (3) Right at last (2) Wrong at last (1) Changed (1)" in page.text
    assert [value for name, value in page.attributes if name == "data-is"] == [
        "right changed",
        "right",
        "wrong",
    ]
    assert "Question 0? left right video video0 ✗ wrong A ✓ right B" in page.text
    assert "Question 2? left right video video2 ✗ wrong A ✗ wrong it moves" in page.text
    assert page.source.count('<li class="key">right</li>') == 3


def test_many_evaluations_are_thinned_but_counted(folder):
    lines = [eval_line(step, [("B", True)] if step == 7 else [("A", False)]) for step in range(1, 101)]
    (folder / "evals.jsonl").write_text(jsonl(lines))
    page = write(folder)
    shown = re.findall(r'<th scope="col">step (\d+)</th>', page.source)
    assert len(shown) == 16 and shown[0] == "1" and shown[-1] == "100" and "7" not in shown
    assert "16 of 100 evaluations are shown; the filter counts all of them." in page.text
    assert "Changed (1)" in page.text


def test_a_favor_answer_is_marked_by_its_text(folder):
    line = eval_line(5)
    line["samples"][0] |= {"answer": "left ", "correct": None}
    (folder / "evals.jsonl").write_text(jsonl([line]))
    page = write(folder)
    assert page.source.count('<li class="key">left</li>') == 1 and "not judged" in page.text


def test_nothing_of_a_file_becomes_markup(folder):
    more = {"lr": {HOSTILE: 1.0}, "grad_norms": {HOSTILE: 1.0}}
    (folder / "train.jsonl").write_text(jsonl(step_line(step, **more) for step in (1, 2)))
    line = eval_line(2, [(HOSTILE, False)], benchmark=HOSTILE, accuracy={HOSTILE: 1.0}, chance={HOSTILE: 1.0})
    line["samples"][0] |= {"question": HOSTILE, "options": [HOSTILE], "video": HOSTILE}
    (folder / "evals.jsonl").write_text(jsonl([line]))
    row = dict.fromkeys(("row_id", "source", "kind", "reason"), HOSTILE)
    (folder / "rejected.jsonl").write_text(jsonl([row]))
    (folder / "rejected-0.jsonl").write_text(jsonl([row]))
    report_ = {key: HOSTILE for key in settings()} | {
        HOSTILE: {HOSTILE: HOSTILE},
        "settings": {HOSTILE: HOSTILE},
    }
    (folder / "settings.json").write_text(json.dumps(report_))
    (folder / "finished").unlink()
    stop = {"step": 3, "loss": HOSTILE, "row_ids": [HOSTILE]}
    (folder / "not-finite-step-000003-0.json").write_text(json.dumps(stop))
    page = write(folder)
    assert page.tags.count("script") == 2 and "img" not in page.tags
    assert "onerror" not in {name for name, _ in page.attributes}
    assert page.text.count(HOSTILE) > 20  # shown, as text
    assert [one["name"] for one in page.charts["Learning rates"]["curves"]] == [HOSTILE]


def test_half_a_surrogate_pair_is_shown_escaped(folder):
    (folder / "rejected.jsonl").write_text('{"row_id": "a\\ud800b"}\n')
    assert "a\\ud800b" in write(folder).text


def test_the_page_needs_nothing_else(folder):
    page = write(folder)
    links = [value for name, value in page.attributes if name in ("src", "href", "action", "data")]
    assert links == ["data:,", "#curves", "#samples", "#settings", "#rejected"]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import|fetch\(|innerHTML", page.source)
    assert ("content", frame.POLICY) in page.attributes and "default-src 'none'" in frame.POLICY
    assert "prefers-color-scheme: dark" in page.source


def test_style_and_script_are_in_the_wheel():
    root = Path(moss_vllm.__file__).parent
    patterns = re.search(r"^moss_vllm = \[(.*)\]$", (root.parent / "pyproject.toml").read_text(), re.M)[1]
    for name in ("page/page.css", "page/run.js"):
        assert (root / name).is_file()
        assert any(fnmatch(name, pattern) for pattern in re.findall(r'"(.*?)"', patterns)), name


def test_a_killed_run_is_shown_as_far_as_it_got(folder):
    (folder / "finished").unlink()
    whole = jsonl(step_line(step) for step in range(1, 8))
    (folder / "train.jsonl").write_text(whole[:-30])
    (folder / "evals.jsonl").unlink()
    page = write(folder)
    assert "Interrupted at step 6 of 10, or still running: train.jsonl was last written" in page.text
    assert "The same command with --resume auto goes on from step-000010." in page.text
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
    page = write(folder)
    assert "train.jsonl: 5 lines cannot be read: 3, 9, 12, 13, 14" in page.text
    assert "train.jsonl: 5 steps before step 30 without a line" in page.text
    assert "rejected.jsonl: 1 line cannot be read: 1" in page.text
    assert set(range(1, 31)) - set(page.curve("Loss", "each step")) == {3, 9, 12, 13, 14}


def test_only_the_first_unreadable_lines_are_named(folder):
    (folder / "evals.jsonl").write_text("{\n" * 1200)
    page = write(folder)
    named = ", ".join(map(str, range(1, 11)))
    assert f"evals.jsonl: 1,200 lines cannot be read: {named} and 1,190 more" in page.text


@pytest.mark.parametrize("gone", NOTHING_ABSENT)
def test_what_is_absent_is_said(folder, gone):
    (folder / gone).unlink()
    page = write(folder)
    assert f"{gone} is not there: {run_files.MADE_BY[gone]}" in page.text
    if gone == "settings.json":
        assert "Finished: step 10 of an unknown number" in page.text


def test_a_run_without_a_step_has_a_page(folder):
    for name in ("train.jsonl", "evals.jsonl", "finished"):
        (folder / name).unlink()
    (folder / "step-000010").rmdir()
    page = write(folder)
    assert "No step is logged yet of 10. There is no checkpoint." in page.text
    assert page.charts == {} and [value for value, _ in figures_of(read_run(folder))] == ["-"] * 4 + [
        "- %",
        "-",
    ]


def test_empty_and_broken_files_have_a_page(folder):
    for name in NOTHING_ABSENT:
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


def test_losses_that_are_not_finite_are_gaps_and_said(folder):
    wrong = {4: math.nan, 6: math.inf, 7: -math.inf, 9: 10**400}
    lines = (step_line(s, **({"loss": wrong[s]} if s in wrong else {})) for s in range(1, 11))
    (folder / "train.jsonl").write_text(jsonl(lines))
    page = write(folder)
    loss = page.curve("Loss", "each step")
    assert {step for step, value in loss.items() if value is None} == set(wrong)
    told = "each step: 4 of 10 values not finite, left as gaps at step 4, 6, 7, 9"
    assert told in page.text and page.text.count("values not finite") == 1
    (drawn,) = re.findall(r'Loss over steps.*?class="curve c0 faint" d="(.*?)"', page.source, re.S)
    assert drawn.count("M") == 4 and drawn.count("L") == 2  # 1-3, 5, 8, 10


def test_a_norm_of_zero_has_no_place_on_a_log_axis(folder):
    (folder / "train.jsonl").write_text(
        jsonl(step_line(s, grad_norm=0.0 if s == 3 else s) for s in range(1, 11))
    )
    page = write(folder)
    assert page.charts["Gradient norms"]["log"] and page.curve("Gradient norms", "all")[3] is None
    assert "all: 1 value of zero or below cannot be shown on this axis" in page.text
    assert "not finite," not in page.text


def test_a_stop_on_a_loss_that_is_not_finite_is_told(folder):
    (folder / "finished").unlink()
    stop = {"step": 11, "loss": "nan", "row_ids": ["a.mp4", "b.mp4"]}
    (folder / "not-finite-step-000011-0.json").write_text(json.dumps(stop))
    page = write(folder)
    assert (
        "Stopped on a loss that is not finite (nan) at step 11 of 10. The rows of its batch are in "
        "not-finite-step-000011-0.json: a.mp4, b.mp4. The same command with --resume auto goes on from "
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


def test_wall_time_is_the_logs_and_not_the_date_of_a_file(folder):
    assert "- wall time up to the last step" in write(folder).text
    (folder / "train.jsonl").write_text(
        jsonl(step_line(step, elapsed_s=47.6 * step) for step in range(1, 11))
    )
    assert "7 min 56 s wall time up to the last step" in write(folder).text


def test_a_run_is_named_with_its_folder_and_leads_to_its_evaluations(folder):
    answers = folder.parent / "eval" / "MotionBench" / "favor_lora"
    answers.mkdir(parents=True)
    assert "Evaluated" not in write(folder).text
    (answers / "page.html").write_text("")
    page = write(folder)
    assert f"{folder.parent.name}/favor_lora - training run" in page.source
    assert ("href", "../eval/MotionBench/favor_lora/page.html") in page.attributes


def test_a_finished_run_whose_log_is_short_is_doubted(folder):
    (folder / "train.jsonl").write_text(jsonl(step_line(step) for step in range(1, 9)))
    assert "It has finished 10 steps, but train.jsonl ends at step 8." in write(folder).text


def test_rejected_rows_are_counted_and_the_first_200_shown(folder):
    rows = [
        {"row_id": f"row {n}.", "source": "FAVOR", "kind": "bad" if n % 3 else "missing", "reason": "x" * n}
        for n in range(1000)
    ]
    (folder / "rejected.jsonl").write_text(jsonl(rows))
    (folder / "rejected-0.jsonl").write_text(jsonl([{"row_id": "late", "reason": "broken"}]))
    page = write(folder)
    told = "1,001 rows: 334 missing, 666 bad, 1 while training. The first 200 are shown."
    assert told in page.text and "row 199." in page.text and "row 200." not in page.text
    (folder / "rejected.jsonl").write_text(jsonl([dict(rows[0], reason="y" * 700)]))
    page = write(folder)
    assert (
        "y" * 600 + "... (100 more characters)" in page.text and "late - while training broken" in page.text
    )


def test_thinning_keeps_ends_extremes_and_gaps():
    values = np.random.default_rng(0).normal(size=100_000)
    values[31_415], values[27_182], values[50_000:50_400], values[77_777] = 99.0, -99.0, np.nan, np.nan
    kept = thin(values)
    assert len(kept) <= 1.01 * MOST_POINTS and kept[0] == 0 and kept[-1] == 99_999
    assert {31_415, 27_182, 77_777} <= set(kept.tolist())
    assert any(50_000 <= place < 50_400 for place in kept) and (np.diff(kept) > 0).all()
    for stretch in np.array_split(np.arange(100_000), 100):  # of several thinned ones each
        inner = kept[(kept >= stretch[0]) & (kept <= stretch[-1])]
        assert np.nanmax(values[inner]) > np.nanquantile(values[stretch], 0.99)
    assert thin(values[:1000]).tolist() == list(range(1000))
    assert len(thin(np.full(5000, np.nan))) <= MOST_POINTS


def test_the_running_mean_leaves_gaps_out():
    values = np.array([1.0, 2.0, np.nan, 4.0, 9.0])
    expected = [1.5, 1.5, np.nan, 6.5, 6.5]
    np.testing.assert_allclose(running_mean(values, 1), expected)


def test_a_long_run_stays_small(folder):
    steps = 100_000
    (folder / "settings.json").write_text(json.dumps(settings(steps=steps)))
    spike = 12_345
    lines = (step_line(s, loss=50.5 if s == spike else 1 + math.sin(s) / 3) for s in range(1, steps + 1))
    (folder / "train.jsonl").write_text(jsonl(lines))
    (folder / "evals.jsonl").write_text(jsonl(eval_line(s) for s in range(100, steps + 1, 100)))
    page = write(folder)
    assert (folder / "page.html").stat().st_size < 2_000_000
    loss = page.curve("Loss", "each step")
    assert loss[spike] == 50.5 and 500 < len(loss) <= MOST_POINTS and {1, steps} <= set(loss)
    assert "Thinned: of 100,000 points about 1,000 a curve are drawn" in page.text


def test_a_folder_that_is_no_run_is_refused(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        report.main([str(tmp_path)])
    assert str(error.value) == (
        f"error: {tmp_path} is no folder of a run, for it holds none of settings.json, train.jsonl, "
        "evals.jsonl, rejected.jsonl, nor of an evaluation, for it holds no answers/*.jsonl; give what was "
        "--out of recipes/favor_lora.py or of a script in eval/"
    )
    with pytest.raises(SystemExit) as error:
        report.main([str(folder / "step-000010")])
    assert str(error.value) == (
        f"error: {folder}/step-000010 is a checkpoint of a run; give the run's folder, {folder}"
    )
    for path, what in ((tmp_path / "gone", "not there"), (folder / "finished", "a file")):
        with pytest.raises(SystemExit) as error:
            report.main([str(path)])
        assert str(error.value) == f"error: {path} is {what}; give the folder of a run or of an evaluation"
    assert not (tmp_path / "page.html").exists()
    run = tmp_path / "runs" / "demo" / "moss"
    run.mkdir(parents=True)
    (run / "train.jsonl").write_text("")
    with pytest.raises(SystemExit, match="is not there; .* of an evaluation; there are runs/demo/moss$"):
        report.main(["runs/favor_lora"])


def test_where_the_page_goes(folder, tmp_path, capsys):
    assert report.main([str(folder)]) == folder / "page.html"
    size = (folder / "page.html").stat().st_size / 1e3
    assert (
        capsys.readouterr().out == f"{folder}/page.html is written ({size:,.0f} kB); open it in a browser\n"
    )
    out = tmp_path / "new" / "mine.html"
    assert report.main([str(folder), "--out", str(out)]) == out and out.read_text().startswith(
        "<!DOCTYPE html>"
    )
    with pytest.raises(SystemExit) as error:
        report.main([str(folder), "--out", str(tmp_path)])
    assert str(error.value) == (
        f"error: --out {tmp_path} is a folder; name a file in it, such as {tmp_path}/page.html"
    )
    log = folder / "train.jsonl"
    before = log.read_text()
    with pytest.raises(SystemExit, match=r"does not end in .html; name the page to write, such as page.html"):
        report.main([str(folder), "--out", str(log)])
    with pytest.raises(SystemExit, match=r"the folder of --out, .* is not a folder that can be written to"):
        report.main([str(folder), "--out", str(log / "page.html")])
    assert log.read_text() == before


def test_a_page_that_cannot_be_finished_leaves_the_old_one(folder, monkeypatch):
    page = report.main([str(folder)])
    before = page.read_bytes()

    def fill_the_disk(self, data):
        with self.open("wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(SystemExit, match="No space left on device"):
        report.main([str(folder)])
    assert page.read_bytes() == before
    assert not [path for path in folder.iterdir() if "part" in path.name]


def test_the_name_of_the_settings_file_is_the_start_reports():
    assert run_files.SETTINGS == run_folder.SETTINGS_FILE


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_a_real_run_has_a_whole_page(recipe, tiny_base, world, tmp_path):
    out = tmp_path / "run"
    flags = {
        "model": tiny_base,
        "data": world / "FAVOR",
        "out": out,
        "steps": 4,
        "batch_size": 2,
        "log_every": 2,
    }
    flags |= {
        "workers": 0,
        "lora_rank": 4,
        "save_every": 2,
        "tracker": "none",
        "eval_data": world / "MotionBench",
    }
    flags |= {"eval_every": 2, "eval_questions": 6}
    lines = recipe.main([f"--{name.replace('_', '-')}={value}" for name, value in flags.items()])
    page = write(out)
    assert "Finished: step 4 of 4; the last checkpoint is step-000004." in page.text
    assert "is not there" not in page.text and "cannot be read" not in page.text
    assert page.curve("Loss", "each step") == digits({line["step"]: line["loss"] for line in lines})
    for name in RATES:
        rates = page.curve("Learning rates", name)
        assert rates == digits({line["step"]: line["lr"][name] for line in lines})
        norms = {line["step"]: line["grad_norms"][name] for line in lines if "grad_norms" in line}
        assert page.curve("Gradient norms", name) == digits(norms) and sorted(norms) == [2, 4]
    evals = [json.loads(line) for line in (out / "evals.jsonl").read_text().splitlines()]
    assert page.curve("all", "all") == digits({line["step"]: line["accuracy"]["all"] for line in evals})
    for sample in evals[-1]["samples"]:
        assert sample["question"] in page.text and sample["video"] in page.text
    for name, _, tensors, parameters, rate in read_run(out).report["parameters"]:
        assert re.search(rf"{name} \S+ {tensors} {parameters:,} {rate}", page.text)


PROBE = """
<script>
const svg = document.querySelector('figure[data-chart="0"] > svg'), box = svg.getBoundingClientRect();
const [width, , left, right] = charts[0].box, [first, last] = charts[0].span;
const x = left + (width - left - right) * (4 - first) / (last - first);
svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + x / width * box.width }));
document.querySelector('[data-only="changed"]').click();
const seen = {
  readout: document.querySelector(".readout").innerText,
  cross: document.querySelectorAll("figure .cross").length,
  rows: [...document.querySelectorAll(".answers tbody tr")].map(row => row.checkVisibility()),
  wide: document.documentElement.scrollWidth - innerWidth,
  dark: getComputedStyle(document.body).backgroundColor,
};
const told = Object.assign(document.createElement("pre"), { id: "probe", textContent: JSON.stringify(seen) });
document.body.append(told);
</script>
"""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_values_and_filters(folder, tmp_path, dark):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the PATH")
    page = tmp_path / "probed.html"
    page.write_text(report.main([str(folder)]).read_text().replace("</body>", PROBE + "</body>"))
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
    ]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,900", "--enable-logging=stderr"]
    command = [browser, *flags, *(["--force-dark-mode"] if dark else []), "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    seen = json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)[1]))
    assert seen["readout"].split() == "step 4 each step 0.75 mean of 5 steps 0.87".split()
    assert seen["cross"] == 1 and seen["rows"] == [True, False, False] and seen["wide"] <= 0
    assert seen["dark"] == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
