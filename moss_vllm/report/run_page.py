"""A training run as one HTML page: how it stands, its curves, the same questions over time, its settings."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from glob import escape as escape_glob
from typing import Any

import moss_vllm
from moss_vllm.report import samples
from moss_vllm.report.curves import Chart, Curve, as_number, curve, draw_all, with_mean
from moss_vllm.report.html import (
    PAGE_FILE,
    Html,
    count,
    cut,
    document,
    listed,
    moment,
    section,
    table,
    tag,
    tiles,
)
from moss_vllm.report.run_files import Run

GIB = 2**30
MOST_ROWS = 200  # rejected rows that are shown
MOST_CHARACTERS = 600  # of a row's name or reason
PARTS = {"curves": "Curves", "samples": "Samples", "settings": "Settings", "rejected": "Rejected rows"}
Pick = Callable[[dict[str, Any]], Any]


def run_page(run: Run) -> str:
    """The page's HTML."""
    name = "/".join(run.folder.resolve().parts[-2:])  # the last part alone may be "moss"
    figures, small, data = draw_all([*_curves(run), *_accuracy(run)])
    parts = [
        tag("h1", name),
        tag("nav", *(tag("a", title, href=f"#{part}") for part, title in PARTS.items())),
        _status(run),
        tiles(figures_of(run)),
        listed(_notes(run)),
        *_evaluations(run),
        section(
            "curves",
            PARTS["curves"],
            tag("div", *figures, class_="charts") if run.steps else tag("p", "No step was logged."),
            *([tag("h3", "Accuracy of each task; chance dashed")] if small else []),
            tag("div", *small, class_="charts small"),
        ),
        section("samples", PARTS["samples"], *_samples(run)),
        section("settings", PARTS["settings"], *_settings(run)),
        section("rejected", PARTS["rejected"], *_rejected(run)),
        tag(
            "p",
            f"Made by moss_vllm {moss_vllm.__version__}, {moment(datetime.now(timezone.utc))}",
            class_="soft",
        ),
    ]
    return document(f"{name} - training run", parts, data, "run.js")


def _evaluations(run: Run) -> list[Html]:
    """Links to pages of what `experiments/demo.py` evaluated beside the run, where they are there."""
    folder = run.folder.resolve()
    found = sorted(folder.parent.glob(f"eval/*/{escape_glob(folder.name)}/{PAGE_FILE}"))
    links = (tag("a", f"{page.parents[1].name} ", href=f"../{'/'.join(page.parts[-4:])}") for page in found)
    return [tag("p", "Evaluated: ", *links)] if found else []


def _status(run: Run) -> Html:
    """Finished, stopped on a loss that is not finite, or interrupted; and what goes on from it."""
    of = f"of {run.planned:,}" if run.planned is not None else "of an unknown number"
    last = f"step {run.last_step:,} {of}"
    stop = run.stopped_at()
    if run.finished:
        told = f"Finished: {last}; the last checkpoint is {run.finished}."
        return tag("p", told, class_="status good")
    if stop:
        what = "gradient" if "gradient" in stop else "loss"
        told = f"Stopped on a {what} that is not finite ({stop.get(what)}) at step {stop['step']:,} {of}. "
        told += f"The rows of its batch are in {stop['file']}: {_some(stop.get('row_ids'))}."
    elif run.steps:
        told = f"Interrupted at {last}, or still running: train.jsonl was last written {moment(run.written)}."
    else:
        told = f"No step is logged yet {of}."
    if run.checkpoint:
        told += f" The same command with --resume auto goes on from {run.checkpoint.name}."
    else:
        told += " There is no checkpoint."
    return tag("p", told, class_="status bad" if stop else "status open")


def _some(names: Any, most: int = 20) -> str:
    if not isinstance(names, list) or not names:
        return "not named"
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return cut(", ".join(map(str, names[:most])), MOST_CHARACTERS) + more


def figures_of(run: Run) -> list[tuple[str, str]]:
    """What stands at the top: each figure and its name; a dash for what no line tells."""
    every = {
        key: [v for line in run.steps.values() if math.isfinite(v := as_number(line.get(key)))]
        for key in ("seconds", "clips", "tokens", "waited_s", "memory_gib")
    }
    seconds = sum(every["seconds"])

    def a_second(key: str, unit: str = ",.1f", factor: int = 1) -> str:
        return format(factor * sum(every[key]) / seconds, unit) if seconds and every[key] else "-"

    return [
        (_duration(_wall_s(run)), "wall time up to the last step"),
        (_duration(seconds if every["seconds"] else None), "of that in steps"),
        (a_second("clips"), "clips/s"),
        (a_second("tokens", ",.0f"), "tokens/s"),
        (a_second("waited_s", ".1f", 100) + " %", "of step time waiting for data"),
        (f"{max(every['memory_gib']):.2f} GiB" if every["memory_gib"] else "-", "peak memory, first process"),
    ]


def _wall_s(run: Run) -> float | None:
    """As the last step's line has it, over all lives of the run; None of runs that did not log it."""
    elapsed_s = as_number(run.steps.get(run.last_step, {}).get("elapsed_s"))
    return elapsed_s if math.isfinite(elapsed_s) else None


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    hours, rest = divmod(round(seconds), 3600)
    if hours:
        return f"{hours:,} h {rest // 60:02} min"
    return f"{rest // 60} min {rest % 60:02} s" if rest >= 60 else f"{seconds:.1f} s"


def _notes(run: Run) -> list[str]:
    """What is absent or cannot be read, and what else happened on the way."""
    notes = [*run.absent, *run.faults]
    if isinstance(resumed := run.report.get("resumed_at"), list) and resumed:
        steps = ", ".join(map(str, resumed))
        notes.append(f"Resumed at step {steps}; the first start was {run.report.get('started')}.")
    for one in run.not_finite:
        if one is not run.stopped_at():
            notes.append(
                f"{one['file']}: not finite at step {one['step']:,}; the run went on from a checkpoint."
            )
    if run.finished and run.planned is not None and run.last_step != run.planned:
        notes.append(
            f"It has finished {run.planned:,} steps, but train.jsonl ends at step {run.last_step:,}."
        )
    return notes


def _curve(run: Run, name: str, pick: Pick, colour: int = 0, style: str = "") -> Curve:
    """The steps whose line has a value; `pick` raises KeyError where it has none."""
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


def _groups(run: Run, key: str) -> list[str]:
    """Names under `key` in any line, in the order they first appear."""
    found: dict[str, None] = {}
    for line in run.steps.values():
        found |= dict.fromkeys(line[key] if isinstance(line.get(key), dict) else ())
    return list(found)


def _of_groups(run: Run, key: str, first: int) -> list[Curve]:
    def pick(name: str) -> Pick:
        return lambda line: line[key][name] if isinstance(line[key], dict) else None

    return [_curve(run, name, pick(name), place) for place, name in enumerate(_groups(run, key), start=first)]


def _curves(run: Run) -> list[Chart]:
    norm = _curve(run, "all", lambda line: line["grad_norm"], 6, "faint")
    speed = _curve(run, "each step", lambda line: _ratio(line["clips"], line["seconds"]))
    waiting = _curve(run, "each step", lambda line: _ratio(line["waited_s"], line["seconds"], 100))
    memory = _curve(run, "first process", lambda line: line["memory_gib"])
    return [
        Chart("Loss", "of an answer token", with_mean(_curve(run, "each step", lambda line: line["loss"]))),
        Chart("Learning rates", "of each group", _of_groups(run, "lr", 0), ends=(0.0,)),
        Chart("Gradient norms", "before clipping", [*_of_groups(run, "grad_norms", 0), norm], log=True),
        Chart("Speed", "clips/s", with_mean(speed), ends=(0.0,)),
        Chart("Waiting for data", "% of step time", with_mean(waiting), ends=(0.0,)),
        Chart("Peak memory so far", "GiB", [memory], ends=(0.0,)),
    ]


def _accuracy(run: Run) -> list[Chart]:
    """A small chart for each task of each benchmark asked."""
    charts = []
    for benchmark, lines in run.evals.items():
        found = {key: _by_task(lines, key) for key in ("accuracy", "chance")}
        for task, points in found["accuracy"].items():
            curves = [curve(task, points)]
            if task in found["chance"]:
                curves.append(curve("chance", found["chance"][task], 6, "dashed"))
            asked = _by_task(lines, "counts", "total").get(task, {})
            counts = sorted({n for n in asked.values() if isinstance(n, int)})
            of = " or ".join(count(number, "question") for number in counts)
            unit = f"{benchmark}, % of {of}" if of else f"{benchmark}, %"
            charts.append(Chart(task, unit, curves, ends=(0.0, 100.0), small=True))
    return charts


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


def _samples(run: Run) -> list[Html]:
    if not run.evals:
        return [tag("p", "No question was asked in training; --eval-data asks some.")]
    shown = (samples.show(name, lines, n) for n, (name, lines) in enumerate(run.evals.items()))
    return [part for parts in shown for part in parts]


def _settings(run: Run) -> list[Html]:
    """The start report's tables; what it has besides is shown as it is."""
    report = dict(run.report)
    if not report:
        return [tag("p", "settings.json is not there or cannot be read.")]
    report.pop("settings", None)
    command, groups = report.pop("command", None), report.pop("parameters", None)
    sources, tokens = report.pop("sources", None), report.pop("tokens", None)
    memory, versions = report.pop("memory", None), report.pop("versions", None)
    tables = [
        _table("What trains", ("group", "pattern", "tensors", "parameters", "learning rate"), groups),
        _table("The run", (), _pairs(report)),
        _table("Sources", ("source", "rows", "weight"), sources),
        _table("Tokens per clip", (), _pairs(tokens)),
        _table(
            "Memory estimate of a process, for batches of the longest clip", ("part", "GiB"), _gib(memory)
        ),
        _table("Versions", (), _pairs(versions)),
    ]
    settings = _table("Settings", (), _pairs(dict(run.settings)))
    return [
        tag("h3", "Command"),
        tag("p", tag("code", command)),
        *tables[:1],
        tag("div", tag("div", settings), tag("div", *tables[1:]), class_="columns"),
    ]


def _table(title: str, head: Sequence[str], rows: Any) -> Html:
    if not isinstance(rows, list) or not rows:
        return tag("div", tag("h3", title), tag("p", "not known" if rows is None else rows))
    cells = [row if isinstance(row, list | tuple) else (row,) for row in rows]
    told = table(head, cells, class_=None if head else "pairs")
    return tag("div", tag("h3", title), told)


def _pairs(values: Any) -> Any:
    return list(values.items()) if isinstance(values, dict) else values


def _gib(memory: Any) -> Any:
    if not isinstance(memory, dict):
        return memory
    return [(name.replace("_", " "), f"{as_number(value) / GIB:.3f}") for name, value in memory.items()]


def _rejected(run: Run) -> list[Html]:
    """Counts of each kind, and the first rows with their reasons."""
    total = len(run.rejected)
    if not total:
        return [tag("p", "No row was rejected, as far as the files tell.")]
    counts = Counter(str(row.get("kind")) for row in run.rejected)
    told = f"{count(total, 'row')}: " + ", ".join(f"{count:,} {kind}" for kind, count in counts.items()) + "."
    told += f" The first {MOST_ROWS} are shown." if total > MOST_ROWS else ""
    names = ("row_id", "source", "kind", "reason")
    rows = [
        [cut(str(row.get(key, "-")), MOST_CHARACTERS) for key in names] for row in run.rejected[:MOST_ROWS]
    ]
    return [tag("p", told), table(("row", "source", "kind", "reason"), rows)]
