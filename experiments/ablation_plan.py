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
from measuring import load_recipe
from paper_tables import FILE, TABLES, Row

from moss_vllm.recognition.build import build_classifier
from moss_vllm.recognition.settings import MINI
from moss_vllm.runtime.files import read_json
from moss_vllm.training.run_folder import FINISHED_FILE
from moss_vllm.training.settings import parse
from moss_vllm.vlm.start_report import SETTINGS_FILE

RECIPE = Path(__file__).parents[1] / "recipes" / "action_recog.py"
NAMES = {f"table{name}": rows for name, rows in TABLES.items() if name[:-1] in ("4", "10")}
OWN = ("data", "root", "out", "resume", "seed")  # given by this script
# What a run may differ in and still be the same experiment.
FREE = {"out", "resume", "tracker", "workers", "cache", "cache_gib", "log_every", "eval_batch_size"}


@dataclass(frozen=True)
class Run:
    """One process of the recipe; `settings` are all of them, as the recipe fills them in."""

    folder: Path
    seed: int
    flags: tuple[str, ...]
    settings: Mapping[str, Any] = dataclasses.field(hash=False, compare=False)

    @property
    def name(self) -> str:
        """As it is called in messages."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def is_finished(self) -> bool:
        """Trained and tested."""
        return (self.folder / FINISHED_FILE).is_file() and (self.folder / "test" / "result.json").is_file()


@dataclass(frozen=True)
class PlannedRow:
    """A row with its run of each seed; none, and why, where `refused`."""

    row: Row
    asked: Mapping[str, Any]
    runs: Sequence[Run]
    refused: str = ""


TablePlan = dict[str, list[PlannedRow]]


def choose_rows(tables: Iterable[str], names: Sequence[str] | None) -> dict[str, list[Row]]:
    """The tables' rows, those of `names` alone if they are given.

    Raises:
        ValueError: a name that none of the tables has.
    """
    chosen = {table: NAMES[table] for table in tables}
    known = dict.fromkeys(row.name for rows in chosen.values() for row in rows)
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(
            f"no row is called {', '.join(unknown)}; {', '.join(chosen)} have {'; '.join(known)}"
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
    """Each row's runs, tried before any starts: the recipe takes the settings and the model can be built.

    Args:
        extra: more flags of the recipe.

    Raises:
        ValueError: flags of the recipe that are this script's, or a row whose settings do not work, by name.
    """
    recipe = load_recipe(RECIPE)
    given, others = parse(recipe.ActionRecog, extra, recipe.__doc__)
    refused = [name for name in OWN if getattr(given, name) != getattr(recipe.ActionRecog(), name)]
    if refused := [*refused, *(["dry_run"] if others.dry_run else [])]:
        raise ValueError(f"{', '.join(refused)} after '--': give it before '--', where this script has it")
    if data == MINI and given.variant not in (None, MINI):
        raise ValueError(f"variant is {given.variant!r}; rows on --data mini are laid out for the miniature")
    where = ["--data", data, *([] if root is None else ["--root", root])]
    plan: TablePlan = {}
    tried = set()
    for table, rows in tables.items():
        plan[table] = []
        for row in rows:
            asked = row.mini if data == MINI and row.mini is not None else row.set
            if isinstance(asked, str):
                plan[table].append(PlannedRow(row, {}, [], asked))
                continue
            try:
                runs = [plan_run(recipe, asked, seed, out, [*where, *extra]) for seed in range(seeds)]
                if runs[0] not in tried:
                    try_model(recipe, runs[0])
                tried.add(runs[0])
            except ValueError as error:
                raise ValueError(f"{FILE.name}, {table}, row {row.name}: {error}") from error
            plan[table].append(PlannedRow(row, asked, runs))
    return plan


def plan_run(recipe: ModuleType, asked: Mapping[str, Any], seed: int, out: Path, flags: Sequence[str]) -> Run:
    """One run; its folder is named after the settings that are not the recipe's defaults."""
    names = {item.name: item.default for item in dataclasses.fields(recipe.ActionRecog)}
    if unknown := [name for name in asked if name not in names]:
        raise ValueError(f"{', '.join(unknown)}: the recipe has no such setting")
    flags = [*flags, *(text for name, value in asked.items() for text in (flag(name), str(value)))]
    flags += ["--seed", str(seed), "--resume", "auto"]
    given, _ = parse(recipe.ActionRecog, flags, recipe.__doc__)
    recipe.refuse_ignored(given)
    settings = recipe.fill_in(given)
    recipe.check(settings)
    changed = {
        name: value
        for name, value in dataclasses.asdict(given).items()
        if value != names[name] and name not in FREE | {"seed"}
    }
    digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:6]
    folder = out / f"{folder_name(asked)}-{digest}" / f"seed-{seed}"
    return Run(folder, seed, (*flags, "--out", str(folder)), dataclasses.asdict(settings))


def flag(name: str) -> str:
    """`--temporal-layers` of `temporal_layers`."""
    return f"--{name.replace('_', '-')}"


def folder_name(asked: Mapping[str, Any]) -> str:
    """`stss1`, `moss-orders-1-3`, `none-full`: what a row sets, as a folder's name."""
    shown = {"temporal": "moss", **asked}
    layers = shown.pop("temporal_layers", None)
    text = " ".join([*map(str, shown.values()), *([] if layers is None else [f"layers {layers}"])])
    return re.sub(r"\W+", "-", text).strip("-")


def try_model(recipe: ModuleType, run: Run) -> None:
    """Build the model of a run without memory or weights."""
    how = recipe.model_arguments(recipe.ActionRecog(**run.settings), classes=2)
    with torch.device("meta"):
        build_classifier(**{**how, "weights": "random"})


def refuse_other_settings(runs: Iterable[Run]) -> None:
    """ValueError where a run in OUT, finished or begun, was made with other settings than now."""
    wrong = []
    for run in runs:
        file = run.folder / SETTINGS_FILE
        if not file.is_file():
            continue
        was = read_json(file, f"remove {run.folder}").get("settings", {})
        told = [
            f"{name} was {was.get(name)!r}, is {value!r}"
            for name, value in run.settings.items()
            if name not in FREE and was.get(name) != value
        ]
        wrong += [f"{run.folder} ({', '.join(told)})"] if told else []
    if wrong:
        remedy = "set it as it was, remove these folders to train them again, or name another --out"
        raise ValueError(f"made with other settings than now: {'; '.join(wrong)}; {remedy}")
