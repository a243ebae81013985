"""A training run as one HTML page: its state, its curves, answers or tests over time, its settings."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from glob import escape as escape_glob
from typing import Any

import moss_vllm
from moss_vllm.report import samples
from moss_vllm.report.curves import Chart, Curve, as_number, curve, draw_all, with_mean
from moss_vllm.report.html import (
    PAGE_FILE,
    Html,
    counted,
    document,
    listed,
    moment,
    section,
    table,
    tag,
    tiles,
    trim,
)
from moss_vllm.report.run_files import SCORES, RunFiles
from moss_vllm.runtime.versions import without_absent
from moss_vllm.training.run_folder import SETTINGS_FILE

BYTES_PER_GIB = 2**30
MOST_ROWS = 200  # rejected rows on the page
ROW_CHARACTERS = 600  # of a row's name or reason
RUN_PARTS = {"curves": "Curves", "samples": "Samples", "settings": "Settings", "rejected": "Rejected rows"}
START_TABLES = {  # of the start report: title and heads of a table
    "parameters": ("What trains", ("group", "pattern", "tensors", "parameters", "learning rate")),
    "sources": ("Sources", ("source", "rows", "weight")),
    "data_lines": ("Data", ()),
    "views": ("Views", ()),
    "tokens": ("Tokens per clip", ()),
    "memory": ("Memory estimate of a process, for batches of the longest clip", ("part", "GiB")),
    "versions": ("Versions", ()),
}
Pick = Callable[[dict[str, Any]], Any]


def run_page(run: RunFiles) -> str:
    """The page's HTML."""
    name = "/".join(run.folder.resolve().parts[-2:])  # the last part alone may be "moss"
    figures, small, data = draw_all([*_curves(run), *_accuracy(run)])
    titles = RUN_PARTS if run.unit == "tokens" else {**RUN_PARTS, "samples": "Tests"}
    small_title = "Accuracy of each task; chance dashed" if run.unit == "tokens" else "Tests in training"
    parts = [
        tag("h1", name),
        tag("nav", *(tag("a", title, href=f"#{part}") for part, title in titles.items())),
        _status(run),
        tiles(figures_of(run)),
        listed(_notes(run)),
        *_evaluations(run),
        section(
            "curves",
            titles["curves"],
            tag("div", *figures, class_="charts") if run.steps else tag("p", "No step was logged."),
            *([tag("h3", small_title)] if small else []),
            tag("div", *small, class_="charts small"),
        ),
        section("samples", titles["samples"], *(_samples(run) if run.unit == "tokens" else _tests(run))),
        section("settings", titles["settings"], *_settings(run)),
        section("rejected", titles["rejected"], *_rejected(run)),
        tag(
            "p",
            f"Made by moss_vllm {moss_vllm.__version__}, {moment(datetime.now(timezone.utc))}",
            class_="soft",
        ),
    ]
    return document(f"{name} - training run", parts, data, "run.js")


def _evaluations(run: RunFiles) -> list[Html]:
    """Links to the pages of evaluations, where `experiments/demo.py` puts them beside the run."""
    folder = run.folder.resolve()
    pages = sorted(folder.parent.glob(f"eval/*/{escape_glob(folder.name)}/{PAGE_FILE}"))
    links = (tag("a", f"{page.parents[1].name} ", href=f"../{'/'.join(page.parts[-4:])}") for page in pages)
    return [tag("p", "Evaluated: ", *links)] if pages else []


def _status(run: RunFiles) -> Html:
    """Finished, stopped on a loss that is not finite, or interrupted; and where --resume would start."""
    of = f"of {run.planned:,}" if run.planned is not None else "of an unknown number"
    last = f"step {run.last_step:,} {of}"
    stop = run.stopped_at()
    if run.finished:
        message = f"Finished: {last}; the last checkpoint is {run.finished}."
        return tag("p", message, class_="status good")
    if stop:
        what = "gradient" if "gradient" in stop else "loss"
        message = f"Stopped on a {what} that is not finite ({stop.get(what)}) at step {stop['step']:,} {of}. "
        message += f"The rows of its batch are in {stop['file']}: {_some(stop.get('row_ids'))}."
    elif run.steps:
        message = f"Interrupted at {last}, or still running: train.jsonl was last written "
        message += f"{moment(run.written)}."
    else:
        message = f"No step is logged yet {of}."
    if run.checkpoint:
        message += f" The same command with --resume auto continues from {run.checkpoint.name}."
    else:
        message += " There is no checkpoint."
    return tag("p", message, class_="status bad" if stop else "status open")


def _some(names: Any, most: int = 20) -> str:
    if not isinstance(names, list) or not names:
        return "not named"
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return trim(", ".join(map(str, names[:most])), ROW_CHARACTERS) + more


def figures_of(run: RunFiles) -> list[tuple[str, str]]:
    """The figures at the top with their names; a dash where no line has the number."""
    every = {
        key: [v for line in run.steps.values() if math.isfinite(v := as_number(line.get(key)))]
        for key in ("seconds", "clips", run.unit, "waited_s", "memory_gib")
    }
    seconds = sum(every["seconds"])

    def per_second(key: str, form: str = ",.1f", factor: int = 1) -> str:
        return format(factor * sum(every[key]) / seconds, form) if seconds and every[key] else "-"

    return [
        (_duration(_wall_s(run)), "wall time up to the last step"),
        (_duration(seconds if every["seconds"] else None), "of that in steps"),
        (per_second("clips"), "clips/s"),
        (per_second(run.unit, ",.0f"), f"{run.unit}/s"),
        (per_second("waited_s", ".1f", 100) + " %", "of step time waiting for data"),
        (f"{max(every['memory_gib']):.2f} GiB" if every["memory_gib"] else "-", "peak memory, first process"),
    ]


def _wall_s(run: RunFiles) -> float | None:
    """Seconds up to the last step, earlier processes of the run included; None if it did not log them."""
    elapsed_s = as_number(run.steps.get(run.last_step, {}).get("elapsed_s"))
    return elapsed_s if math.isfinite(elapsed_s) else None


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    hours, rest = divmod(round(seconds), 3600)
    if hours:
        return f"{hours:,} h {rest // 60:02} min"
    return f"{rest // 60} min {rest % 60:02} s" if rest >= 60 else f"{seconds:.1f} s"


def _notes(run: RunFiles) -> list[str]:
    """Missing and unreadable files, the last test, and interruptions."""
    notes = [*run.absent, *run.faults]
    if isinstance(resumed := run.report.get("resumed_at"), list) and resumed:
        steps = ", ".join(map(str, resumed))
        notes.append(f"Resumed at step {steps}; the first start was {run.report.get('started')}.")
    if scores := _scores(run.result):
        shown = run.result.get("views") or f"{run.result.get('size_px')} px"
        notes.append(f"Test of step {run.result.get('step')} ({shown}): {scores}.")
    for record in run.not_finite:
        if record is not run.stopped_at():
            notes.append(
                f"{record['file']}: not finite at step {record['step']:,}; the run went on from a checkpoint."
            )
    if run.finished and run.planned is not None and run.last_step != run.planned:
        notes.append(
            f"It has finished {run.planned:,} steps, but train.jsonl ends at step {run.last_step:,}."
        )
    return notes


def _scores(result: dict[str, Any]) -> str:
    """The scores of a test in words; empty for a result that has none."""
    scores = {title: as_number(result.get(key)) for key, title in SCORES.items()}
    named = ((f"{title[0].lower()}{title[1:]}", value) for title, value in scores.items())
    return ", ".join(f"{title} {value:.2f} %" for title, value in named if math.isfinite(value))


def _curve(run: RunFiles, name: str, pick: Pick, colour: int = 0, style: str = "") -> Curve:
    """A curve over the steps whose line has the value; `pick` raises KeyError for the others."""
    points = {}
    for step, line in run.steps.items():
        try:
            points[step] = pick(line)
        except KeyError:
            continue
    return curve(name, points, colour, style)


def _ratio(top: Any, bottom: Any, factor: float = 1.0) -> float:
    top, bottom = as_number(top), as_number(bottom)
    return factor * top / bottom if bottom else math.nan


def _groups(run: RunFiles, key: str) -> list[str]:
    """Names under `key` in any line, in the order of their first appearance."""
    names: dict[str, None] = {}
    for line in run.steps.values():
        names |= dict.fromkeys(line[key] if isinstance(line.get(key), dict) else ())
    return list(names)


def _of_groups(run: RunFiles, key: str, first: int) -> list[Curve]:
    def pick(name: str) -> Pick:
        return lambda line: line[key][name] if isinstance(line[key], dict) else None

    return [_curve(run, name, pick(name), place) for place, name in enumerate(_groups(run, key), start=first)]


def _curves(run: RunFiles) -> list[Chart]:
    norm = _curve(run, "all", lambda line: line["grad_norm"], 6, "faint")
    speed = _curve(run, "each step", lambda line: _ratio(line["clips"], line["seconds"]))
    waiting = _curve(run, "each step", lambda line: _ratio(line["waited_s"], line["seconds"], 100))
    memory = _curve(run, "first process", lambda line: line["memory_gib"])
    return [
        Chart("Loss", run.loss_of, with_mean(_curve(run, "each step", lambda line: line["loss"]))),
        Chart("Learning rates", "of each group", _of_groups(run, "lr", 0), ends=(0.0,)),
        Chart("Gradient norms", "before clipping", [*_of_groups(run, "grad_norms", 0), norm], log=True),
        Chart("Speed", "clips/s", with_mean(speed), ends=(0.0,)),
        Chart("Waiting for data", "% of step time", with_mean(waiting), ends=(0.0,)),
        Chart("Peak memory so far", "GiB", [memory], ends=(0.0,)),
    ]


def _accuracy(run: RunFiles) -> list[Chart]:
    """A small chart for each task of each benchmark, or for each score of other tests."""
    charts = []
    for benchmark, lines in run.evals.items():
        if benchmark is None:
            kind = "video" if any("videos" in line for line in lines.values()) else "clip"
            unit = _percent_of((line.get(f"{kind}s") for line in lines.values()), kind)
            for key, title in SCORES.items():
                points = {step: line[key] for step, line in lines.items() if key in line}
                if not points:
                    continue
                charts.append(Chart(title, unit, [curve(title, points)], ends=(0.0, 100.0), small=True))
            continue
        accuracy, chance = (_by_task(lines, key) for key in ("accuracy", "chance"))
        for task, points in accuracy.items():
            curves = [curve(task, points)]
            if task in chance:
                curves.append(curve("chance", chance[task], 6, "dashed"))
            totals = _by_task(lines, "counts", "total").get(task, {})
            unit = f"{benchmark}, {_percent_of(totals.values(), 'question')}"
            charts.append(Chart(task, unit, curves, ends=(0.0, 100.0), small=True))
    return charts


def _percent_of(totals: Iterable[Any], noun: str) -> str:
    """The unit of an accuracy whose evaluations had these totals: "% of 12 questions"."""
    numbers = sorted({number for number in totals if isinstance(number, int)})
    return "% of " + " or ".join(counted(number, noun) for number in numbers) if numbers else "%"


def _by_task(lines: dict[int, dict[str, Any]], *keys: str) -> dict[str, dict[int, Any]]:
    """Values by task and step."""
    tasks: dict[str, dict[int, Any]] = {}
    for step, line in lines.items():
        values: Any = line
        for key in keys:
            values = values.get(key) if isinstance(values, dict) else None
        for task, value in values.items() if isinstance(values, dict) else ():
            tasks.setdefault(task, {})[step] = value
    return tasks


def _samples(run: RunFiles) -> list[Html]:
    if not run.evals:
        return [tag("p", "No question was asked in training; --eval-data asks some.")]
    evals = enumerate(run.evals.items())
    shown = (samples.show_samples(str(name), lines, number) for number, (name, lines) in evals)
    return [part for parts in shown for part in parts]


def _tests(run: RunFiles) -> list[Html]:
    """The tests in training, one line each."""
    lines = run.evals.get(None, {})
    if not lines:
        return [tag("p", "No test was finished in training.")]
    heads = {"step": "step", **SCORES, "clips": "clips", "videos": "videos", "failed": "not read"}
    heads = {key: head for key, head in heads.items() if any(key in line for line in lines.values())}
    found = [[line.get(key) for key in heads] for line in lines.values()]
    rows = [[f"{value:.2f}" if isinstance(value, float) else value for value in row] for row in found]
    note = "Percent of the test clips, one view each; every clip's answer is in evals/step-N/answers."
    if "videos" in heads:
        note = "mAP in percent; the detections of every video are in evals/step-N/answers."
    if "F1@0.05" in heads:
        note = "F1 in percent; the scores of every clip's frames are in evals/step-N/answers."
    return [table(list(heads.values()), rows), tag("p", note, class_="soft")]


def _settings(run: RunFiles) -> list[Any]:
    """The start report's tables, then its other entries as they are."""
    report = dict(run.report)
    if not report:
        return [tag("p", f"{SETTINGS_FILE} is not there or cannot be read.")]
    report.pop("settings", None)
    command = report.pop("command", None)
    shown = {"memory": _gib, "versions": without_absent}
    tables = {
        name: _table(title, head, _pairs(shown.get(name, _pairs)(report.pop(name))))
        for name, (title, head) in START_TABLES.items()
        if name in report
    }
    trained = tables.pop("parameters", "")
    settings = _table("Settings", (), _pairs(dict(run.settings)))
    others = [_table("The run", (), _pairs(report)), *tables.values()]
    return [
        tag("h3", "Command"),
        tag("p", tag("code", command)),
        trained,
        tag("div", tag("div", settings), tag("div", *others), class_="columns"),
    ]


def _table(title: str, head: Sequence[str], rows: Any) -> Html:
    if not isinstance(rows, list) or not rows:
        return tag("div", tag("h3", title), tag("p", "not known" if rows is None else rows))
    cells = [row if isinstance(row, list | tuple) else (row,) for row in rows]
    return tag("div", tag("h3", title), table(head, cells, class_=None if head else "pairs"))


def _pairs(values: Any) -> Any:
    return list(values.items()) if isinstance(values, dict) else values


def _gib(memory: Any) -> Any:
    if not isinstance(memory, dict):
        return memory
    return [
        (name.replace("_", " "), f"{as_number(value) / BYTES_PER_GIB:.3f}") for name, value in memory.items()
    ]


def _rejected(run: RunFiles) -> list[Html]:
    """Number of rows of each kind, and the first rows with their reasons."""
    total = len(run.rejected)
    if not total:
        return [tag("p", "No row was rejected, as far as the files tell.")]
    counts = Counter(str(row.get("kind")) for row in run.rejected)
    by_kind = ", ".join(f"{number:,} {kind}" for kind, number in counts.items())
    summary = f"{counted(total, 'row')}: {by_kind}."
    summary += f" The first {MOST_ROWS} are shown." if total > MOST_ROWS else ""
    names = ("row_id", "source", "kind", "reason")
    rows = [
        [trim(str(row.get(key, "-")), ROW_CHARACTERS) for key in names] for row in run.rejected[:MOST_ROWS]
    ]
    return [tag("p", summary), table(("row", "source", "kind", "reason"), rows)]
