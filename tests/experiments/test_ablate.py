"""Owns: what experiments/ablate.py runs, repeats, refuses and adds up."""

import csv
import json
import statistics
import subprocess
import sys

import ablate
import ablation_plan
import ablation_results
import ablation_tasks
import pytest

from moss_vllm.data.world.actions import CLASSES, GROUPS, MiniSize, ensure_mini_actions
from moss_vllm.data.world.untrimmed import UNTRIMMED_CLASSES
from moss_vllm.runtime.tables import Table

LATER = ["--resume", "auto", "--out"]


# ---- what is run


def plan(tmp_path, tables, *, rows=None, seeds=1, extra=()):
    return ablation_plan.plan_runs(
        ablation_plan.choose_rows(tables, rows), "mini", None, seeds, tmp_path / "out", list(extra)
    )


def test_a_row_is_a_command(tmp_path):
    found = plan(tmp_path, ["table4b"], rows=["n=1,3"], seeds=2, extra=["--steps", "7"])
    (only,) = found["table4b"]
    first, second = only.runs
    flags = ["--data", "mini", "--steps", "7", "--temporal-options", "{orders: [1, 3]}", "--seed", "1"]
    assert list(second.flags) == [*flags, *LATER, str(second.folder)]
    assert second.folder.name == "seed-1" and second.folder.parent == first.folder.parent
    assert first.folder.parent.name.startswith("moss-orders-1-3-")
    assert (second.settings["steps"], second.settings["variant"], second.settings["seed"]) == (7, "mini", 1)


def test_rows_that_mean_the_same_share_a_run(tmp_path):
    found = plan(tmp_path, ["table10c", "table4a", "table4b"], seeds=3)
    assert sum(len(planned.runs) for rows in found.values() for planned in rows) == 3 * (8 + 5 + 5)
    assert len(ablation_results.all_runs(found)) == 3 * (8 + 3 + 4)
    by_name = {p.row.name: p.runs for rows in found.values() for p in rows}
    assert by_name["1st STSS"] == by_name["n=1"] and by_name["MOSS"] == by_name["n=1,2"]


def test_what_changes_the_numbers_changes_the_folder(tmp_path):
    def folder(*extra):
        return plan(tmp_path, ["table4a"], rows=["n=2"], extra=extra)["table4a"][0].runs[0].folder

    assert folder("--workers", "0", "--cache", "x", "--log-every", "5") == folder()
    assert len({folder(), folder("--steps", "7"), folder("--lr", "0.1"), folder("--lr", "0.2")}) == 4


@pytest.mark.parametrize(
    "call, message",
    [
        (["table10e"], "no row of table10e runs on --data mini: the miniature's image encoder has random"),
        (["table4a", "detection"], "table4a, detection are tables of two recipes; run those of each by"),
        (["table4a", "--rows", "k=2"], "no row is called k=2; table4a have none; n=1"),
        (["table4a", "--", "--seed", "3", "--data", "ssv1"], "data, seed after '--'"),
        (
            ["table4a", "--", "--variant", "b"],
            "variant is 'b'; rows on --data mini are laid out for the mini",
        ),
        (["table4a", "--", "--lr", "7"], "lr is 7.0; it must be from 0 to 1"),
    ],
)
def test_what_cannot_run_is_said_before_anything_runs(tmp_path, monkeypatch, call, message):
    monkeypatch.setattr(ablate, "run_remaining", lambda *_: pytest.fail("something was run"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        ablate.main(call)


# ---- what came of it


@pytest.fixture
def world(tmp_path):
    """Mini actions of which nothing but their groups is read."""
    root = tmp_path / "mini"
    root.mkdir()
    (root / "mini_actions.json").write_text(json.dumps({**vars(MiniSize()), "format": 1}))
    with (root / "groups.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("name", "group"), *CLASSES.items()])
    return root


def fabricate(run, right, *, best=50.0, trainable=1000):
    """A finished run with `right` of 4 clips of each group answered."""
    (run.folder / "test").mkdir(parents=True)
    answers = run.folder / "evals" / "step-000002" / "answers"
    answers.mkdir(parents=True)
    names = {group: next(name for name in CLASSES if CLASSES[name] == group) for group in GROUPS}
    protocol = {"name": "views"}
    lines = [{"header": {"benchmark": "mini", "checkpoint": "x", "protocol": protocol, "questions": 20}}]
    for group in GROUPS:
        for clip in range(4):
            correct, uid = clip < right[group], f"{group}-{clip}"
            answer = {"uid": uid, "task": names[group], "output": "?", "parsed": "?", "answer": names[group]}
            lines.append(
                {"video_id": uid, "answers": [{**answer, "correct": correct, "in_top5": True, "top5": []}]}
            )
    (answers / "00-of-01.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    score = 100 * sum(right.values()) / 20
    evals = [
        {"step": step, "score": value, "clips": 20, "failed": 0} for step, value in ((1, 99.0), (2, score))
    ]
    (run.folder / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evals))
    steps = [{"step": step, "seconds": seconds} for step, seconds in ((1, 9.0), (2, 0.5), (3, 0.4))]
    (run.folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    record = {
        "settings": dict(run.settings),
        "steps": 2,
        "parameters": [["frozen", "", 1, 7, "frozen"], ["moss", "", 1, trainable, "0.1"]],
        "data_lines": ["mini"],
    }
    (run.folder / "settings.json").write_text(json.dumps(record))
    result = {"top1": best, "class_mean": 0.0, "step": 1}
    (run.folder / "test" / "result.json").write_text(json.dumps(result))
    (run.folder / "finished").write_text("step-000002")
    return score


def right(all_groups, **others):
    return {**dict.fromkeys(GROUPS, all_groups), **others}


def call(world, tmp_path, *more):
    """Table 10c's MOSS and its first order, seeds 0 and 1."""
    flags = ["--rows", "MOSS", "1st STSS", "--seeds", "2", "--root", str(world)]
    return ["table10c", *flags, "--out", str(tmp_path / "out"), *more]


def planned_runs(world, tmp_path, *extra):
    tables = ablation_plan.choose_rows(["table10c"], ["MOSS", "1st STSS"])
    found = ablation_plan.plan_runs(tables, "mini", str(world), 2, tmp_path / "out", extra)
    return {planned.row.name: planned.runs for planned in found["table10c"]}


def test_finished_runs_are_found_and_added_up(world, tmp_path, monkeypatch):
    monkeypatch.setattr(ablate, "start_run", lambda *_: pytest.fail("a finished run was repeated"))
    runs = planned_runs(world, tmp_path)
    counts = {
        "1st STSS": [right(2), right(1, order=0)],
        "MOSS": [right(2, order=4), right(3, order=4, camera=1)],
    }
    scores = {
        name: [fabricate(run, each, trainable=223_708) for run, each in zip(runs[name], found, strict=True)]
        for name, found in counts.items()
    }
    assert scores == {"1st STSS": [50.0, 20.0], "MOSS": [60.0, 70.0]}
    found = ablate.main(call(world, tmp_path, "--json", str(tmp_path / "deep" / "a.json")))
    assert json.loads((tmp_path / "deep" / "a.json").read_text()) == json.loads(json.dumps(found))
    first, moss = found["tables"]["table10c"]
    assert (first["name"], moss["name"]) == ("1st STSS", "MOSS")
    assert moss["accuracy"]["all"] == (65.0, pytest.approx(statistics.stdev([60, 70])))
    assert moss["accuracy"]["order"] == (100.0, 0.0) and first["accuracy"]["order"][0] == 25.0
    assert [seed["best"] for seed in moss["seeds"]] == [50.0, 50.0]
    assert moss["seeds"][0]["seconds_a_step"] == 0.5 and moss["seeds"][0]["trainable"] == 223_708
    assert moss["settings"]["variant"] == "mini" and moss["set"] == {} and "seed" not in moss["settings"]
    adds = found["moss_minus_first_order"]
    assert adds["per_seed"]["all"] == [10.0, 50.0] and adds["mean"]["all"] == 30.0
    assert adds["sd"]["all"] == pytest.approx(statistics.stdev([10, 50]))
    assert adds["per_seed"]["camera"] == [0.0, 0.0] and adds["per_seed"]["order"] == [50.0, 100.0]
    assert found["failed"] == []

    text = (tmp_path / "out" / "TABLE.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| MOSS")]
    cells = "151.5 | 5.6 | 9.9 | 60.0 | 87.7 | 65.0 ± 7.1 | 62.5 ± 17.7"
    assert line.startswith(f"| MOSS | {cells} |") and line.endswith("| 50.0 ± 0.0 | 224 | 500 |")
    assert "- all: +30.0 ± 28.3 (+10.0 +50.0)" in text and "tested on 20 clips after 2 steps" in text
    assert "1st STSS: a row that this table of the paper does not have" in text


def test_one_seed_has_no_spread(world, tmp_path, capsys):
    for (first, _), count in zip(planned_runs(world, tmp_path).values(), (2, 1), strict=True):
        fabricate(first, right(count))
    found = ablate.main(call(world, tmp_path, "--seeds", "1"))
    assert found["moss_minus_first_order"]["sd"] == {}
    assert "- all: -25.0 (-25.0)" in (tmp_path / "out" / "TABLE.md").read_text()
    assert "2 runs, 2 of them finished before" in capsys.readouterr().out


def test_a_run_of_other_settings_is_refused(world, tmp_path):
    first, second = planned_runs(world, tmp_path)["MOSS"]
    for run, name, value in ((first, "lr", 0.5), (second, "workers", 7)):
        fabricate(run, right(1))
        record = json.loads((run.folder / "settings.json").read_text())
        record["settings"][name] = value
        (run.folder / "settings.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"seed-0 \(lr was 0.5, is 0\.\d+\); set it as it was, remove"):
        ablate.main(call(world, tmp_path))


def test_runs_from_before_data_seed_are_taken_and_one_of_its_own_is_another_experiment(
    world, tmp_path, capsys
):
    runs = [run for of_row in planned_runs(world, tmp_path).values() for run in of_row]
    for run in runs:
        fabricate(run, right(1))
        record = json.loads((run.folder / "settings.json").read_text())
        del record["settings"]["data_seed"]
        (run.folder / "settings.json").write_text(json.dumps(record))
    ablate.main(call(world, tmp_path))
    assert "4 runs, 4 of them finished before" in capsys.readouterr().out
    others = [run for of_row in planned_runs(world, tmp_path, "--data-seed", "5").values() for run in of_row]
    assert {(run.settings["seed"], run.settings["data_seed"]) for run in others} == {(0, 5), (1, 5)}
    assert not {run.folder for run in others} & {run.folder for run in runs}


def test_runs_on_other_data_do_not_share_a_table(world, tmp_path):
    for runs in planned_runs(world, tmp_path).values():
        for run in runs:
            fabricate(run, right(1))
    record = json.loads((run.folder / "settings.json").read_text())
    (run.folder / "settings.json").write_text(json.dumps({**record, "data_lines": ["other"]}))
    with pytest.raises(ValueError, match=r"saw \['mini'\], .*seed-1 \['other'\]"):
        ablate.main(call(world, tmp_path))


def test_a_last_test_of_another_step_is_refused(world, tmp_path):
    run = planned_runs(world, tmp_path)["MOSS"][0]
    fabricate(run, right(1))
    (run.folder / "evals.jsonl").write_text(json.dumps({"step": 1, "score": 1.0}) + "\n")
    with pytest.raises(ValueError, match="the last test is of step 1 of 2"):
        ablate.main(call(world, tmp_path))


def fake_recipe(monkeypatch, script):
    """Processes that are a line of Python."""

    def start(run, environment):
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "threads").write_text(environment["OMP_NUM_THREADS"])
        with (run.folder / "log.txt").open("a") as log:
            return subprocess.Popen([sys.executable, "-c", script, str(run.folder)], stdout=log, stderr=log)

    monkeypatch.setattr(ablate, "start_run", start)


def test_a_failing_run_is_reported_and_the_others_go_on(world, tmp_path, monkeypatch, capsys):
    runs = planned_runs(world, tmp_path)
    for run in runs["1st STSS"]:
        fabricate(run, right(1))
    script = "import sys; print('a', 'b', sep=chr(10)); sys.exit(3 * sys.argv[1].endswith('-0'))"
    fake_recipe(monkeypatch, script)
    monkeypatch.setattr(ablate.os, "cpu_count", lambda: 6)
    found = ablate.main(call(world, tmp_path, "--jobs", "3"))
    told = capsys.readouterr().out
    assert sorted(found["failed"]) == sorted(run.name for run in runs["MOSS"])  # the second left no result
    assert "FAILED with status 3" in told and "FAILED with status 0" in told and "  | a\n  | b" in told
    assert (runs["MOSS"][0].folder / "threads").read_text() == "2"
    assert "MOSS: 0 of 2 seeds" in (tmp_path / "out" / "TABLE.md").read_text()
    assert found["tables"]["table10c"][0]["accuracy"]["all"] == (25.0, 0.0)
    assert found["moss_minus_first_order"] == {}


def test_running_processes_end_with_the_script(world, tmp_path, monkeypatch):
    runs = planned_runs(world, tmp_path)["MOSS"]
    fake_recipe(monkeypatch, "import time; time.sleep(100)")
    started, plain = [], ablate.start_run
    monkeypatch.setattr(ablate, "start_run", lambda *how: started.append(plain(*how)) or started[-1])
    monkeypatch.setattr(ablate.time, "sleep", lambda _: ablate.signal.raise_signal(ablate.signal.SIGTERM))
    with pytest.raises(SystemExit, match="stopped; the same command continues"):
        ablate.run_remaining(runs, 2, 1, lambda run: "")
    assert len(started) == 2 and all(process.returncode == -15 for process in started)


def test_two_at_once_in_one_folder_are_refused(world, tmp_path):
    with ablate.alone_in(tmp_path / "out"):
        with pytest.raises(ValueError, match=r"another experiments/ablate.py runs there"):
            ablate.main(call(world, tmp_path))


def test_a_dry_run_prints_what_is_left(world, tmp_path, capsys):
    runs = planned_runs(world, tmp_path)
    fabricate(runs["MOSS"][0], right(1))
    found = ablate.main(call(world, tmp_path, "--dry-run"))
    assert found["left"] == [
        list(run.flags) for run in (runs["1st STSS"][0], runs["1st STSS"][1], runs["MOSS"][1])
    ]
    assert capsys.readouterr().out.count("recipes/action_recog.py --data mini") == 3


def test_rows_that_are_other_ones_on_the_miniature_are_told(tmp_path):
    found = plan(tmp_path, ["table10b"])
    (table,) = ablation_results.make_tables(found, {}, "mini")
    assert isinstance(table, Table)
    assert "k=6: not run, the miniature has 4 layers" in table.notes
    assert "k=4,6: here temporal_layers 2,4" in table.notes
    assert ablation_results.does_order_2_add(found, {}) == ""


# ---- detection


def fabricate_detector(run, precision):
    """A finished run of recipes/detection.py whose classes have these average mAPs, by group."""
    (run.folder / "test").mkdir(parents=True)
    score = statistics.mean(precision[group] for group in UNTRIMMED_CLASSES.values())
    last = {"step": 2, "score": score, "mAP": {"avg": score}, "videos": 4}
    (run.folder / "evals.jsonl").write_text(json.dumps(last) + "\n")
    (run.folder / "train.jsonl").write_text(json.dumps({"step": 1, "seconds": 0.25}) + "\n")
    record = {"settings": dict(run.settings), "steps": 2, "data_lines": ["mini"]}
    record["parameters"] = [["detector", "", 1, 332_302, "0.002"], ["encoder", "", 1, 7, "frozen"]]
    (run.folder / "settings.json").write_text(json.dumps(record))
    (run.folder / "test" / "result.json").write_text(json.dumps({"step": 2, "mAP": {"avg": score}}))
    with (run.folder / "test" / "per_class.csv").open("w", newline="") as file:
        rows = [(name, precision[group]) for name, group in UNTRIMMED_CLASSES.items()]
        csv.writer(file).writerows([("class", "avg"), *rows])
    (run.folder / "finished").write_text("step-000002")


def test_a_table_of_detection_has_average_map_by_group(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(ablation_tasks, "draw_untrimmed", drawn.append)
    monkeypatch.setattr(ablate, "start_run", lambda *_: pytest.fail("a finished run was repeated"))
    rows, out = ["first order", "MOSS"], tmp_path / "out"
    tables = ablation_plan.choose_rows(["detection"], rows)
    found = ablation_plan.plan_runs(tables, "mini", "drawn", 2, out, ["--steps", "2"])["detection"]
    groups = dict.fromkeys(UNTRIMMED_CLASSES.values(), 40.0)
    for planned, gains in zip(found, ((0, 0), (4, 8)), strict=True):
        for run, gain in zip(planned.runs, gains, strict=True):
            fabricate_detector(run, groups | {"relation": 40.0 + gain})
    flags = ["--rows", *rows, "--root", "drawn", "--seeds", "2", "--out", str(out), "--", "--steps", "2"]
    written = ablate.main(["detection", *flags])
    assert drawn == ["drawn"] and written["failed"] == []
    first, moss = written["tables"]["detection"]
    assert (first["paper"]["thumos14"], moss["paper"]["thumos14"]) == (None, 72.2)
    assert first["accuracy"] == dict.fromkeys(("all", *groups), (40.0, 0.0))
    assert (
        moss["accuracy"]["relation"] == (46.0, pytest.approx(8**0.5)) and moss["accuracy"]["all"][0] == 41.5
    )
    assert moss["seeds"][0]["clips"] == 4 and moss["seeds"][0]["trainable"] == 332_302
    assert written["moss_minus_first_order"]["per_seed"]["relation"] == [4.0, 8.0]
    text = (out / "TABLE.md").read_text()
    assert "Detection: average mAP on mini (%) beside the paper's" in text
    assert "tested on 4 videos after 2 steps" in text and "FLOPs" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("| MOSS")]
    assert line.startswith("| MOSS | 72.2 | 41.5 ± 0.7 | 40.0 ± 0.0 |") and line.endswith("| 332 | 250 |")


# ---- boundaries


def test_a_table_of_boundaries_has_both_columns_of_table_9(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation_tasks, "draw_boundaries", lambda root: None)
    monkeypatch.setattr(ablate, "start_run", lambda *_: pytest.fail("a finished run was repeated"))
    rows, out = ["first order", "MOSS"], tmp_path / "out"
    tables = ablation_plan.choose_rows(["boundaries"], rows)
    found = ablation_plan.plan_runs(tables, "mini", "drawn", 2, out, ["--steps", "2"])["boundaries"]
    for number, planned in enumerate(found):
        for run in planned.runs:
            score = 60.0 + 4 * number + run.seed
            (run.folder / "test").mkdir(parents=True)
            last = {"step": 2, "score": score, "clips": 5}
            (run.folder / "evals.jsonl").write_text(json.dumps(last) + "\n")
            (run.folder / "train.jsonl").write_text(json.dumps({"step": 1, "seconds": 0.25}) + "\n")
            record = {"settings": dict(run.settings), "steps": 2, "data_lines": ["mini"]}
            record["parameters"] = [["head", "", 1, 32_891, "0.003"], ["conv1", "", 1, 7, "frozen"]]
            (run.folder / "settings.json").write_text(json.dumps(record))
            result = {"step": 2, "F1@0.05": score, "Avg. F1": score + 10}
            (run.folder / "test" / "result.json").write_text(json.dumps(result))
            (run.folder / "finished").write_text("step-000002")
    flags = ["--rows", *rows, "--root", "drawn", "--seeds", "2", "--out", str(out), "--", "--steps", "2"]
    written = ablate.main(["boundaries", *flags])
    first, moss = written["tables"]["boundaries"]
    assert (first["paper"]["tapos"], moss["paper"]["kinetics_gebd"], moss["paper"]["tapos"]) == (
        None, 79.4, 68.5
    )  # fmt: skip
    spread = pytest.approx(0.5**0.5)
    assert moss["accuracy"] == {"all": (64.5, spread), "Avg. F1": (74.5, spread)}
    assert written["moss_minus_first_order"]["per_seed"]["all"] == [4.0, 4.0]
    text = (out / "TABLE.md").read_text()
    assert "Boundaries: F1@0.05 on mini (%) beside the paper's" in text
    assert "tested on 5 clips after 2 steps" in text and "FLOPs" not in text


@pytest.mark.slow
def test_two_rows_for_real(tmp_path, monkeypatch):
    world = ensure_mini_actions(tmp_path / "mini", MiniSize(train_per_class=1, test_per_class=1))
    # The recipe takes mini actions of the usual size alone.
    (world / "mini_actions.json").write_text(json.dumps({**vars(MiniSize()), "format": 1}))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    more = ["--seeds", "1", "--jobs", "2", "--", "--steps", "2", "--workers", "0", "--clips-a-step", "4"]
    found = ablate.main(call(world, tmp_path, *more))
    assert found["failed"] == []
    for found_row in found["tables"]["table10c"]:
        (seed,) = found_row["seeds"]
        assert (seed["steps"], seed["clips"], seed["failed_clips"]) == (2, 12, 0)
        assert set(seed["accuracy"]) == {"all", *GROUPS} and seed["seconds_a_step"] > 0
        weights = [len([name for name in CLASSES if CLASSES[name] == group]) for group in GROUPS]
        by_group = [seed["accuracy"][group] for group in GROUPS]
        mean = sum(w * value for w, value in zip(weights, by_group, strict=True)) / 12
        assert seed["accuracy"]["all"] == pytest.approx(mean)
    monkeypatch.setattr(ablate, "start_run", lambda *_: pytest.fail("a finished run was repeated"))
    again = ablate.main(call(world, tmp_path, *more))
    assert again["tables"] == found["tables"]
