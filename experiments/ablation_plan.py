"""The runs that `experiments/ablate.py` starts for rows of the paper's tables, tried before any starts."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

if __name__ == "__main__":
    raise SystemExit("experiments/ablation_plan.py is a part of ablate.py, not a command")

import torch
from ablation_tasks import BOUNDARIES, DETECTION, RECOGNITION, Task
from measuring import load_recipe
from paper_tables import BOUNDARY_ROWS, DETECTION_ROWS, FILE, TABLES, Row

from moss_vllm.recognition.settings import MINI_DATA
from moss_vllm.runtime.files import read_json
from moss_vllm.training.run_folder import FINISHED_FILE, SETTINGS_FILE
from moss_vllm.training.settings import parse

TASKS = {f"table{name}": RECOGNITION for name in TABLES if name[:-1] in ("4", "10")}
NAMES = {name: TABLES[name.removeprefix("table")] for name in TASKS}
TASKS |= {"detection": DETECTION, "boundaries": BOUNDARIES}
NAMES |= {"detection": DETECTION_ROWS, "boundaries": BOUNDARY_ROWS}
OWN = ("data", "root", "out", "resume", "seed")  # settings that ablate.py has flags for
# Settings that do not change the experiment.
FREE = {"out", "resume", "tracker", "workers", "cache", "cache_gib", "log_every", "eval_batch_size"}


@dataclass(frozen=True)
class Run:
    """One process of the recipe; `settings` are those that the recipe fills in."""

    task: Task
    folder: Path
    seed: int
    flags: tuple[str, ...]
    settings: Mapping[str, Any] = dataclasses.field(hash=False, compare=False)

    @property
    def name(self) -> str:
        """The run's name in messages."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def is_finished(self) -> bool:
        """Whether the run has been trained and tested."""
        return (self.folder / FINISHED_FILE).is_file() and (self.folder / "test" / "result.json").is_file()


@dataclass(frozen=True)
class PlannedRow:
    """A row with its run of each seed; `refused` says why it has none."""

    row: Row
    changes: Mapping[str, Any]
    runs: Sequence[Run]
    refused: str = ""


TablePlan = dict[str, list[PlannedRow]]


def choose_task(tables: Iterable[str]) -> Task:
    """The task of these tables.

    Raises:
        ValueError: they are of two tasks.
    """
    task, *others = {TASKS[table] for table in tables}
    if others:
        raise ValueError(f"{', '.join(tables)} are tables of two recipes; run those of each by themselves")
    return task


def choose_rows(tables: Iterable[str], names: Sequence[str] | None) -> dict[str, list[Row]]:
    """The tables' rows; with `names`, only the rows of these names.

    Raises:
        ValueError: no table has a row of that name.
    """
    chosen = {table: NAMES[table] for table in tables}
    row_names = dict.fromkeys(row.name for rows in chosen.values() for row in rows)
    if unknown := [name for name in names or () if name not in row_names]:
        raise ValueError(
            f"no row is called {', '.join(unknown)}; {', '.join(chosen)} have {'; '.join(row_names)}"
        )
    kept = {
        table: [row for row in rows if names is None or row.name in names] for table, rows in chosen.items()
    }
    return {table: rows for table, rows in kept.items() if rows}


def plan_runs(
    tables: Mapping[str, Sequence[Row]],
    data: str,
    root: str | None,
    seeds: int,
    out: Path,
    extra: Sequence[str],
) -> TablePlan:
    """Each row's runs, after trying that the recipe accepts the settings and the model can be built.

    Args:
        extra: more flags of the recipe.

    Raises:
        ValueError: flags of the recipe that ablate.py has itself, or the name of a row that cannot run.
    """
    task = choose_task(tables)
    recipe = load_recipe(task.recipe)
    kind = getattr(recipe, task.settings)
    settings, others = parse(kind, extra, recipe.__doc__)
    refused = [name for name in OWN if getattr(settings, name) != getattr(kind(), name)]
    if refused := [*refused, *(["dry_run"] if others.dry_run else [])]:
        raise ValueError(f"{', '.join(refused)} after '--': give it before '--', where this script has it")
    if data == MINI_DATA and settings.variant not in (None, MINI_DATA):
        raise ValueError(
            f"variant is {settings.variant!r}; rows on --data mini are laid out for the miniature"
        )
    where = ["--data", data, *([] if root is None else ["--root", root])]
    plan: TablePlan = {}
    tried = set()
    for table, rows in tables.items():
        plan[table] = []
        for row in rows:
            changes = row.mini if data == MINI_DATA and row.mini is not None else row.set
            if isinstance(changes, str):
                plan[table].append(PlannedRow(row, {}, [], changes))
                continue
            try:
                runs = [plan_run(task, recipe, changes, seed, out, [*where, *extra]) for seed in range(seeds)]
                if runs[0] not in tried:
                    try_model(recipe, runs[0])
                tried.add(runs[0])
            except ValueError as error:
                raise ValueError(f"{FILE.name}, {table}, row {row.name}: {error}") from error
            plan[table].append(PlannedRow(row, changes, runs))
    return plan


def plan_run(
    task: Task,
    recipe: ModuleType,
    changes: Mapping[str, Any],
    seed: int,
    out: Path,
    flags: Sequence[str],
) -> Run:
    """One run; its folder's name comes from the settings that differ from the recipe's defaults."""
    kind = getattr(recipe, task.settings)
    names = {item.name: item.default for item in dataclasses.fields(kind)}
    if unknown := [name for name in changes if name not in names]:
        raise ValueError(f"{', '.join(unknown)}: the recipe has no such setting")
    for name, value in changes.items():
        flags = [*flags, flag(name), *([] if value is True else [str(value)])]
    flags += ["--seed", str(seed), "--resume", "auto"]
    parsed, _ = parse(kind, flags, recipe.__doc__)
    settings = recipe.fill_in(parsed)
    recipe.check_settings(settings)
    changed = {
        name: value
        for name, value in dataclasses.asdict(parsed).items()
        if value != names[name] and name not in FREE | {"seed"}
    }
    digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:6]
    folder = out / f"{task.prefix}{folder_name(changes)}-{digest}" / f"seed-{seed}"
    return Run(task, folder, seed, (*flags, "--out", str(folder)), dataclasses.asdict(settings))


def flag(name: str) -> str:
    """`--temporal-layers` for `temporal_layers`."""
    return f"--{name.replace('_', '-')}"


def folder_name(changes: Mapping[str, Any]) -> str:
    """A row's settings as a folder's name: `stss1`, `moss-orders-1-3`, `none-full`, `moss-one_frame`."""
    shown = {"temporal": "moss"} | {name: name if v is True else v for name, v in changes.items()}
    layers = shown.pop("temporal_layers", None)
    text = " ".join([*map(str, shown.values()), *([] if layers is None else [f"layers {layers}"])])
    return re.sub(r"\W+", "-", text).strip("-")


def try_model(recipe: ModuleType, run: Run) -> None:
    """Build a run's model on the meta device, without memory or weights."""
    settings = getattr(recipe, run.task.settings)(**run.settings)
    arguments = recipe.model_arguments(settings, **run.task.known)
    with torch.device("meta"):
        run.task.build(**{**arguments, "weights": "random"})


def refuse_other_settings(runs: Iterable[Run]) -> None:
    """ValueError if a run in OUT, finished or begun, has other settings than planned now."""
    wrong = []
    for run in runs:
        file = run.folder / SETTINGS_FILE
        if not file.is_file():
            continue
        was = read_json(file, f"remove {run.folder}").get("settings", {})
        differences = [
            f"{name} was {was.get(name)!r}, is {value!r}"
            for name, value in run.settings.items()
            if name not in FREE and was.get(name) != value
        ]
        wrong += [f"{run.folder} ({', '.join(differences)})"] if differences else []
    if wrong:
        remedy = "set it as it was, remove these folders to train them again, or name another --out"
        raise ValueError(f"made with other settings than now: {'; '.join(wrong)}; {remedy}")
