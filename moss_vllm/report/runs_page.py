"""Several training runs and evaluations on one page: what they differ in, their curves and their scores."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import moss_vllm
from moss_vllm.evaluation.scoring import Score
from moss_vllm.report.answer_files import Results, read_results
from moss_vllm.report.bars import Bars, draw_bars
from moss_vllm.report.curves import COLOUR_COUNT, Chart, Curve, as_number, curve, draw_all, with_mean
from moss_vllm.report.html import (
    Html,
    counted,
    document,
    join_parts,
    listed,
    moment,
    number_row,
    section,
    table,
    tag,
)
from moss_vllm.report.run_files import SCORES, RunFiles, read_run_files
from moss_vllm.report.run_page import figures_of
from moss_vllm.runtime.line_store import holds_answers

SIDE_BY_SIDE = "side-by-side.html"
LAST_STEPS = 20  # in the mean of a run's last losses
FIGURES = ("wall time up to the last step", "clips/s", "of step time waiting for data")  # of `figures_of`
ITS_OWN = ("out", "resume")  # settings in which every run differs
SIDE_PARTS = {"runs": "Runs", "settings": "Settings that differ", "curves": "Curves", "scores": "Scores"}


def runs_page(folders: Sequence[Path]) -> str:
    """The page's HTML, of folders of runs and of evaluations of a Video-LLM.

    A run and the evaluations in folders of the same name have the same colour.

    Raises: as `read_run_files` and `read_results`.
    """
    runs = name_apart({folder: read_run_files(folder) for folder in folders if not holds_answers(folder)})
    results = [read_results(folder) for folder in folders if holds_answers(folder)]
    tests: dict[str, dict[str, Results]] = {}
    for title in dict.fromkeys(map(_title, results)):
        tests[title] = _without_protocol(
            name_apart({one.folder: one for one in results if _title(one) == title})
        )
    names = dict.fromkeys([*runs, *(name for some in tests.values() for name in some)])
    colours = {name: place for place, name in enumerate(names)}
    large, small, data = draw_all(_charts(runs, colours))
    title = ", ".join(names)
    parts = [
        tag("h1", "Side by side"),
        tag("p", title),
        tag("nav", *(tag("a", words, href=f"#{part}") for part, words in SIDE_PARTS.items())),
        section("runs", SIDE_PARTS["runs"], *_runs(runs)),
        section("settings", SIDE_PARTS["settings"], *_differences(runs)),
        section(
            "curves",
            SIDE_PARTS["curves"],
            tag("div", *large, class_="charts") if large else tag("p", "No step was logged."),
            tag("div", *small, class_="charts small"),
        ),
        section("scores", SIDE_PARTS["scores"], *_scores(tests, colours)),
        tag(
            "p",
            f"Made by moss_vllm {moss_vllm.__version__}, {moment(datetime.now(timezone.utc))}",
            class_="soft",
        ),
    ]
    return document(f"{title} - side by side", parts, data, "run.js")


def name_apart(values: Mapping[Path, Any]) -> dict[str, Any]:
    """The values by the last part of each folder, or by as many parts as tell all of them apart."""
    paths = [folder.resolve() for folder in values]
    most = max((len(path.parts) for path in paths), default=0)
    for count in range(1, most + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return dict(zip(names, values.values(), strict=True))
    return {}


def _without_protocol(results: dict[str, Results]) -> dict[str, Results]:
    """moss for moss-option_text, of a test by that protocol; so it has the colour of the run called moss."""
    short = {name.removesuffix(f"-{one.protocol.name}"): one for name, one in results.items()}
    return short if len(short) == len(results) else results


def _runs(runs: Mapping[str, RunFiles]) -> list[Html]:
    """A line for each run: how far it came, its losses, its speed, its tests."""
    if not runs:
        return [tag("p", "No training run is named.")]
    tests = [key for key in SCORES if any(key in run.result for run in runs.values())]
    head = ["run", "state", "steps", f"loss, last {LAST_STEPS} steps", "held-out loss", *FIGURES]
    rows = []
    for name, run in runs.items():
        figures = {words: value for value, words in figures_of(run)}
        planned = "-" if run.planned is None else f"{run.planned:,}"
        state = "finished" if run.finished else "not finished"
        losses = [as_number(line.get("loss")) for line in run.steps.values()][-LAST_STEPS:]
        last = f"{sum(losses) / len(losses):.4f}" if losses else "-"
        unseen = next(reversed(run.held_out.values()), None)
        cells = [name, state, f"{run.last_step:,} of {planned}", last]
        cells += ["-" if unseen is None else f"{as_number(unseen):.4f}", *(figures[one] for one in FIGURES)]
        rows.append(number_row([*cells, *(f"{as_number(run.result.get(key)):.2f}" for key in tests)]))
    notes = [f"{name}: {fault}" for name, run in runs.items() for fault in run.faults]
    return [table([*head, *(f"{SCORES[key]}, %" for key in tests)], rows), listed(notes)]


def _differences(runs: Mapping[str, RunFiles]) -> list[Html]:
    """The settings, the engine and the data that are not the same in all runs."""
    every: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        parts = {key: run.report.get(key) for key in ("engine", "processes", "device", "plan")}
        versions = run.report.get("versions")
        parts |= (
            {f"version of {key}": one for key, one in versions.items()} if isinstance(versions, dict) else {}
        )
        for key, value in ({k: v for k, v in run.settings.items() if k not in ITS_OWN} | parts).items():
            every.setdefault(key, {})[name] = value
    rows = [
        [key, *(values.get(name, "not there") for name in runs)]
        for key, values in every.items()
        if any(values.get(name, "not there") != next(iter(values.values())) for name in runs)
    ]
    if len(runs) < 2:
        return [tag("p", "These are of two runs or more.")]
    return [table(["setting", *runs], rows) if rows else tag("p", "None but the folder.")]


def _charts(runs: Mapping[str, RunFiles], colours: Mapping[str, int]) -> list[Chart]:
    """Losses of all runs on one pair of axes, held-out losses on another; what was asked in training."""
    losses, unseen, norms = list[Curve](), list[Curve](), list[Curve]()
    asked: dict[tuple[str, str], list[Curve]] = {}
    for name, run in runs.items():
        colour = colours[name]
        for key, curves in (("loss", losses), ("grad_norm", norms)):
            points = {step: line[key] for step, line in run.steps.items() if key in line}
            if points:
                mean = with_mean(curve(name, points, colour))[-1]
                curves.append(Curve(name, mean.steps, mean.values, colour))
        unseen += [curve(name, run.held_out, colour)] if run.held_out else []
        for benchmark, lines in run.evals.items():
            for key, points in _in_training(lines).items():
                asked.setdefault((key, benchmark or ""), []).append(curve(name, points, colour))
    unit = next((run.loss_of for run in runs.values()), "")
    small = [
        Chart(SCORES.get(key, key), f"{benchmark} %".lstrip(), curves, ends=(0.0, 100.0), small=True)
        for (key, benchmark), curves in asked.items()
    ]
    return [
        Chart("Loss", f"{unit}, running mean", losses, log=True),
        Chart("Held-out loss", unit, unseen, log=True),
        Chart("Gradient norm", "before clipping, running mean", norms, log=True),
        *small,
    ]


def _in_training(lines: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[int, Any]]:
    """Scores by step, of questions (all tasks) or of tests."""
    found: dict[str, dict[int, Any]] = {}
    for step, line in lines.items():
        accuracy = line.get("accuracy")
        scores = {"all": accuracy.get("all")} if isinstance(accuracy, dict) else {}
        scores |= {key: line[key] for key in SCORES if key in line}
        for key, value in scores.items():
            found.setdefault(key, {})[step] = value
    return found


def _title(one: Results) -> str:
    return f"{one.benchmark}, protocol {one.protocol.name}"


def _scores(tests: Mapping[str, Mapping[str, Results]], colours: Mapping[str, int]) -> list[Html]:
    """Of each benchmark and protocol the bars and the numbers of all evaluations."""
    if not tests:
        return [tag("p", "No evaluation is named; give the folders of eval/*.py beside those of the runs.")]
    parts: list[Html] = []
    for title, some in tests.items():
        scored = {name: (one, one.score) for name, one in some.items() if one.score}
        parts.append(tag("h3", title))
        if not scored:
            parts.append(tag("p", "No question asked has a public answer."))
            continue
        first, score = next(iter(scored.values()))
        tasks = [task for task, number in score.total.items() if number]
        series = [
            Bars(name, own.accuracy, f"c{colours[name] % COLOUR_COUNT}", own.intervals, len(scored) <= 4)
            for name, (_, own) in scored.items()
        ]
        rows = [number_row(["chance", *(f"{first.chance[task]:.1f}" for task in tasks), ""])]
        for name, (_, own) in scored.items():
            cells = (_with_interval(own, task) for task in tasks)
            rows.append(number_row([name, *cells, f"{own.total['all']:,}"]))
        parts += [
            draw_bars("Right answers", tasks, series, first.chance, "chance"),
            table(["%", *tasks, "questions"], rows, class_="scores"),
            listed(_notes(some)),
        ]
    return parts


def _with_interval(score: Score, task: str) -> Html:
    """The accuracy, and Wilson's interval below it."""
    if task not in score.accuracy:
        return Html("-")
    low, high = score.intervals[task]
    return join_parts([f"{score.accuracy[task]:.1f}", tag("div", f"{low:.1f} to {high:.1f}", class_="soft")])


def _notes(some: Mapping[str, Results]) -> list[str]:
    """What keeps the numbers from being compared."""
    notes = []
    if len({(one.header.get("data"), one.done) for one in some.values()}) > 1:
        told = ", ".join(f"{name} {counted(one.done, 'question')}" for name, one in some.items())
        notes.append(f"These are not the same questions ({told}), so the rows do not compare.")
    if len({str(one.protocol) for one in some.values()}) > 1:
        notes += [f"{name}: protocol {one.protocol}" for name, one in some.items()]
    if len(some) > 1:
        notes.append(
            "Below each score is its 95 % interval; eval/compare.py tests differences, question by question."
        )
    if any(one.motion_world for one in some.values()):
        notes.append("These data are the motion world: no number compares with the paper's.")
    return notes
