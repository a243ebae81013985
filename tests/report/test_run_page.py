"""Owns: a run's page shows the numbers of its files, escaped, and needs no other file."""

import json
import re
import shutil

import pytest
from action_layouts import write_layout
from launching import as_flags, load_script, logged
from pages import browse, write
from run_folders import FILES, RATES, TASKS, digits, eval_line, jsonl, settings, step_line

from moss_vllm.commands.scripts import report
from moss_vllm.report import html
from moss_vllm.report.run_files import read_run_files
from moss_vllm.report.run_page import figures_of

HOSTILE = """</script><script>alert("1")</script><img src=x onerror='alert(2)'>&amp;"""


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


def test_the_top_tells_how_the_run_went(folder):
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    (folder / "train.jsonl").write_text(jsonl({**line, "elapsed_s": 372.3 * line["step"]} for line in lines))
    page = write(folder)
    assert "Finished: step 10 of 10; the last checkpoint is step-000010." in page.text
    assert [value for value, _ in figures_of(read_run_files(folder))] == [
        "1 h 02 min",
        "5.0 s",
        "32.0",
        f"{sum(2800 + s for s in range(1, 11)) / 5:,.0f}",
        "10.0 %",
        "1.16 GiB",
    ]
    for name in FILES:
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
    assert ("content", html.POLICY) in page.attributes and "default-src 'none'" in html.POLICY
    assert "prefers-color-scheme: dark" in page.source


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


@pytest.fixture(scope="module")
def classifier_run(tmp_path_factory):
    """A finished run of recipes/action_recog.py: three steps on a handful of clips, a test after each."""
    root = tmp_path_factory.mktemp("classifier")
    write_layout("list", root / "clips")
    settings = {"data": "list", "root": root / "clips", "out": root / "run", "variant": "mini", "steps": 3}
    settings |= {"size_px": 28, "frames": 4, "clips_a_step": 4, "batch_size": 4, "workers": 0}
    settings |= {"tracker": "none", "eval_every": 1, "log_every": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        recipe = load_script("recipes/action_recog.py")
        recipe.main(as_flags(settings))
    return root / "run"


@pytest.mark.usefixtures("one_process")
def test_a_classifiers_run_has_its_frames_scores_and_views(classifier_run):
    page, lines = write(classifier_run), logged(classifier_run)
    assert "Finished: step 3 of 3; the last checkpoint is step-000003." in page.text
    for absent in ("is not there", "cannot be read", "not known", "token", "question"):
        assert absent not in page.text.replace("tokenizers", "")  # a package
    named = {name: value for value, name in figures_of(read_run_files(classifier_run))}
    frames, seconds = (sum(line[key] for line in lines) for key in ("frames", "seconds"))
    assert named["frames/s"] == f"{frames / seconds:,.0f}" != "0" and "tokens/s" not in named
    assert page.curve("Loss", "each step") == digits({line["step"]: line["loss"] for line in lines})
    evals = [json.loads(line) for line in (classifier_run / "evals.jsonl").read_text().splitlines()]
    for title, key in (("Top-1", "top1"), ("Top-5", "top5"), ("Mean over classes", "class_mean")):
        assert page.curve(title, title) == digits({line["step"]: line[key] for line in evals})
    assert page.source.count("% of 2 clips") == 3
    heads = ["step", "Top-1", "Top-5", "Mean over classes", "clips", "not read"]
    assert heads in page.cells and page.row("3")[3:] == ["2", "0"]
    result = json.loads((classifier_run / "test" / "result.json").read_text())
    assert f"Test of step {result['step']} (2 clips x 3 crops): top-1 {result['top1']:.2f} %" in page.text
    assert ["sampling", "uniform"] in page.cells and ["data", "list"] in page.cells


def test_a_classifiers_run_before_its_first_test_says_so(classifier_run, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("settings.json", "train.jsonl"):
        shutil.copy(classifier_run / name, run)
    page = write(run)
    assert "evals.jsonl is not there: no test was finished in training (--eval-every" in page.text
    assert "No test was finished in training." in page.text and "--eval-data" not in page.text
    assert "rejected.jsonl" not in page.text  # this recipe writes none before it trains


def test_a_boundary_models_run_has_its_f1(tmp_path):
    scores = {"F1@0.05": 26.7, "Avg. F1": 62.75, "clips": 80}
    clips = {"frames": 50, "size_px": 48, "sliced": False}
    for name, text in (
        ("settings.json", json.dumps({**settings(), "clips": clips})),
        ("train.jsonl", jsonl([{"step": 6, "loss": 0.5, "clips": 4, "frames": 200}])),
        ("evals.jsonl", jsonl([{"step": 6, "score": 26.7, **scores}])),
        ("test/result.json", json.dumps({"step": 6, "size_px": 48, **scores})),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    page = write(tmp_path)
    assert page.curve("Boundary F1 at 0.05", "Boundary F1 at 0.05") == {6: 26.7}
    assert page.curve("Average F1", "Average F1") == {6: 62.75}
    heads = ["step", "Boundary F1 at 0.05", "Average F1", "clips"]
    assert heads in page.cells and page.row("6") == ["26.70", "62.75", "80"]
    told = "Test of step 6 (48 px): boundary F1 at 0.05 26.70 %, average F1 62.75 %."
    assert told in page.text and "Loss of a frame" in page.text and "one view" not in page.text
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "evals.jsonl").unlink()
    page = write(tmp_path)
    assert "no test was finished in training" in page.text and "question" not in page.text


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_a_real_run_has_a_whole_page(recipe, tiny_base, world, tmp_path):
    out = tmp_path / "run"
    flags = {"model": tiny_base, "data": world / "FAVOR", "out": out, "steps": 4, "batch_size": 2}
    flags |= {"log_every": 2, "workers": 0, "lora_rank": 4, "save_every": 2, "tracker": "none"}
    flags |= {"eval_data": world / "MotionBench", "eval_every": 2, "eval_questions": 6}
    lines = recipe.main(as_flags(flags))
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
    for name, _, tensors, parameters, rate in read_run_files(out).report["parameters"]:
        assert re.search(rf"{name} \S+ {tensors} {parameters:,} {rate}", page.text)


PROBE = """
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
  paper: getComputedStyle(document.body).backgroundColor,
};
"""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_values_and_filters(folder, tmp_path, dark):
    page = report.main([str(folder)])
    seen = browse(page, tmp_path, PROBE, *(["--force-dark-mode"] if dark else []))
    assert seen["readout"].split() == "step 4 each step 0.75 mean of 5 steps 0.87".split()
    assert seen["cross"] == 1 and seen["rows"] == [True, False, False] and seen["wide"] <= 0
    assert seen["paper"] == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
