"""The results of experiments/ablate.py's finished runs, as tables in the paper's columns and as json."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablation_plan import FREE, PlannedRow, Run, TablePlan, choose_task
from ablation_tasks import Task
from paper_tables import UNITS

from moss_vllm.runtime.files import read_json
from moss_vllm.runtime.tables import Cell, Table, mean_and_spread
from moss_vllm.training.run_folder import SETTINGS_FILE

WHOLE_MOSS, FIRST_ORDER = dict[str, Any](), {"temporal": "stss1"}


Numbers = dict[Run, dict[str, Any]]


def measure(run: Run, groups: Mapping[str, str]) -> dict[str, Any]:
    """The numbers of a finished run.

    Raises:
        ValueError: the last test is not of the last step.
    """
    record = read_json(run.folder / SETTINGS_FILE, f"remove {run.folder}")
    last = read_log(run.folder / "evals.jsonl")[-1]
    if last["step"] != record["steps"]:
        raise ValueError(
            f"{run.folder}: the last test is of step {last['step']} of {record['steps']}; remove the folder"
        )
    accuracy = {"all": last["score"]}
    if groups:
        accuracy |= run.task.by_group(run.folder, last["step"], groups)
    best = read_json(run.folder / "test" / "result.json", f"remove {run.folder}")
    seconds = {line["step"]: line["seconds"] for line in read_log(run.folder / "train.jsonl")}
    return {
        "seed": run.seed,
        "folder": str(run.folder),
        "accuracy": accuracy,
        "best": run.task.best(best, run.settings["data"]),
        "best_step": best["step"],
        "steps": record["steps"],
        "clips": last[run.task.tested],
        "failed_clips": last.get("failed", 0),  # a detector's test names them in its own notes
        "trainable": sum(count for *_, count, rate in record["parameters"] if rate != "frozen"),
        "seconds_a_step": statistics.median(seconds.values()),
        "data_lines": record["data_lines"],
    }


def all_runs(plan: TablePlan) -> list[Run]:
    """The runs of all rows; runs that rows share appear once."""
    return list(dict.fromkeys(run for rows in plan.values() for planned in rows for run in planned.runs))


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of one of the recipe's logs."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def refuse_other_data(numbers: Numbers) -> None:
    """ValueError if two runs saw different data."""
    for run, results in numbers.items():
        first = next(iter(numbers))
        if results["data_lines"] != numbers[first]["data_lines"]:
            both = f"{first.folder} saw {numbers[first]['data_lines']}, {run.folder} {results['data_lines']}"
            raise ValueError(f"{both}: their numbers cannot stand in one table; remove one")


def make_tables(plan: TablePlan, numbers: Numbers, data: str) -> list[Table]:
    """The results so far, in the columns of the paper's tables."""
    task = choose_task(plan)
    groups = list(dict.fromkeys(name for results in numbers.values() for name in results["accuracy"]))
    columns = {
        "paper": [*(UNITS if task.has_costs else ()), *task.paper.values()],
        f"{data}, last step": groups or ["all"],
        "best": ["all"],
        "run": ["trained (k)", "ms a step"],
    }
    shown = []
    for name, rows in plan.items():
        cells = {planned.row.name: row_cells(task, planned, numbers, list(columns)) for planned in rows}
        title = f"{name.capitalize().replace('Table', 'Table ')}: {task.score} on {data} (%)"
        title += " beside the paper's"
        shown.append(Table(title, columns, cells, table_notes(task, rows, numbers)))
    return shown


def tables_in_markdown(plan: TablePlan, numbers: Numbers, data: str) -> str:
    """The tables, and what order 2 adds."""
    tables = [table.markdown() for table in make_tables(plan, numbers, data)]
    return "\n".join([*tables, does_order_2_add(plan, numbers)]).rstrip() + "\n"


def does_order_2_add(plan: TablePlan, numbers: Numbers) -> str:
    """`paired` in words; empty if there is nothing to compare."""
    difference = paired(plan, numbers)
    if not difference:
        return ""
    lines = ["Does order 2 add? MOSS minus 1st STSS, percentage points, mean ± sample sd (seed by seed):"]
    for column, values in difference["per_seed"].items():
        spread = f" ± {difference['sd'][column]:.1f}" if difference["sd"] else ""
        seeds = " ".join(f"{value:+.1f}" for value in values)
        lines.append(f"- {column}: {difference['mean'][column]:+.1f}{spread} ({seeds})")
    return "\n".join([lines[0], "", *lines[1:]])


def row_cells(
    task: Task, planned: PlannedRow, numbers: Numbers, columns: Sequence[str]
) -> dict[str, dict[str, Cell]]:
    """A row of `make_tables`."""
    row, results = planned.row, [numbers[run] for run in planned.runs if run in numbers]
    paper = {unit: float(text) for unit, text in row.paper.items() if text != "-"}
    scores = {name: getattr(row, field) for field, name in task.paper.items()}
    paper |= {name: value for name, value in scores.items() if value is not None}
    cells: dict[str, dict[str, Cell]] = {columns[0]: dict(paper)}
    if results:
        cells[columns[1]] = mean_and_spread([seed["accuracy"] for seed in results])
        cells[columns[2]] = mean_and_spread([{"all": seed["best"]} for seed in results])
        milliseconds = 1000 * statistics.mean(seed["seconds_a_step"] for seed in results)
        cells[columns[3]] = {
            "trained (k)": round(results[0]["trainable"] / 1000),
            "ms a step": round(milliseconds),
        }
    return cells


def table_notes(task: Task, rows: Sequence[PlannedRow], numbers: Numbers) -> list[str]:
    """A table's notes: the number of seeds behind each row, and rows with other settings than the paper's."""
    results = [numbers[run] for planned in rows for run in planned.runs if run in numbers]
    notes = list(task.notes)
    if results:
        steps, clips = (sorted({seed[name] for seed in results}) for name in ("steps", "clips"))
        notes.append(
            f"tested on {either(clips)} {task.tested} after {either(steps)} steps; "
            "± is the sample sd over seeds"
        )
    if failed := sum(seed["failed_clips"] for seed in results):
        notes.append(f"{task.tested} that could not be read, over all runs: {failed}; they are not counted")
    for planned in rows:
        name, done = planned.row.name, [run for run in planned.runs if run in numbers]
        if planned.refused:
            notes.append(f"{name}: not run, {planned.refused}")
        elif planned.changes != planned.row.set:
            notes.append(f"{name}: here {settings_in_words(planned.changes)}")
        if len(done) < len(planned.runs):
            notes.append(f"{name}: {len(done)} of {len(planned.runs)} seeds")
        if planned.row.added:
            notes.append(f"{name}: a row that this table of the paper does not have")
    return notes


def either(numbers: Iterable[int]) -> str:
    """`600`, or `500 or 600`."""
    return " or ".join(f"{number:,}" for number in numbers)


def settings_in_words(changes: Mapping[str, Any]) -> str:
    """`temporal_layers 2,4`."""
    return ", ".join(f"{name} {value}" for name, value in changes.items()) or "the miniature as it is"


def paired(plan: TablePlan, numbers: Numbers) -> dict[str, Any]:
    """MOSS minus its first order alone, seed by seed; empty unless both were run."""
    by_seed: dict[str, dict[int, dict[str, float]]] = {}
    for planned in (planned for rows in plan.values() for planned in rows if not planned.refused):
        for name, changes in (("moss", WHOLE_MOSS), ("first", FIRST_ORDER)):
            if planned.changes == changes:
                by_seed[name] = {run.seed: numbers[run]["accuracy"] for run in planned.runs if run in numbers}
    moss, first = by_seed.get("moss", {}), by_seed.get("first", {})
    seeds = [seed for seed in moss if seed in first]
    if not seeds:
        return {}
    values = {
        column: [moss[seed][column] - first[seed][column] for seed in seeds] for column in moss[seeds[0]]
    }
    return {
        "seeds": seeds,
        "per_seed": values,
        "mean": {column: statistics.mean(points) for column, points in values.items()},
        "sd": {column: statistics.stdev(points) for column, points in values.items()}
        if len(seeds) > 1
        else {},
    }


def as_json(task: Task, planned: PlannedRow, numbers: Numbers) -> dict[str, Any]:
    """A row with every seed's numbers."""
    row, results = planned.row, [numbers[run] for run in planned.runs if run in numbers]
    paper = {**row.paper, **{field: getattr(row, field) for field in task.paper}}
    written: dict[str, Any] = {"name": row.name, "paper": paper, "set": dict(planned.changes)}
    if planned.refused:
        return {**written, "refused": planned.refused}
    settings = {name: v for name, v in planned.runs[0].settings.items() if name not in FREE | {"seed"}}
    seeds = [{name: value for name, value in seed.items() if name != "data_lines"} for seed in results]
    means = mean_and_spread([seed["accuracy"] for seed in results]) if results else {}
    return {**written, "settings": settings, "accuracy": means, "seeds": seeds}


if __name__ == "__main__":
    raise SystemExit("experiments/ablation_results.py is a part of ablate.py, not a command")
