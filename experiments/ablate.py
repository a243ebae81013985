"""The paper's ablations, Tables 4 and 10, trained and tested: its columns beside the accuracy measured here.

    python experiments/ablate.py table10c table4a table4b --data mini --seeds 3 --jobs 2
    python experiments/ablate.py table4a --data ssv1 --root DATA/ssv1 -- --precision bf16 --cache DATA/cache
    python experiments/ablate.py table10c --rows MOSS baseline --dry-run          # the commands, nothing more

Every row of recipes/configs/paper_tables.yaml is a few settings of recipes/action_recog.py; what follows `--`
goes to the recipe in every run. A run is a process of its own, in OUT/NAME-DIGEST/seed-N, where DIGEST is of
its settings: rows of several tables that mean the same share it. The same command goes on after a kill and
repeats no finished run; a run made with other settings than now (the recipe's defaults have changed) is an
error. A run that fails is reported with the end of its log, the others go on, and the exit status is 1. The
commands of --dry-run may as well be run elsewhere, on several GPUs: what they leave in OUT is found.

The number to compare is "last step": the model after the last step, one view a clip. "best" is the recipe's
own test of the best checkpoint, which was chosen on these same clips and so flatters; rows that swing more
from test to test gain more by it.

On `--data mini` the miniature stands for MOSS-S and random weights for CLIP's, and accuracy is also told by
group of classes (moss_vllm/data/world/actions.py). Rows that have no counterpart there say so. The table is
printed, and written to OUT/TABLE.md after each run.
"""

import dataclasses
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.files import read_json, refuse_unwritable, whole_file
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.screen import Screen, say
from moss_vllm.training.settings import parse


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("tables", nargs="+", metavar="TABLE", help="table4a to table4d, table10a to table10e")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="some rows of the tables, by their names")
    parser.add_argument("--data", default="mini", help="data set, as of the recipe")
    parser.add_argument("--root", help="folder of the videos, as of the recipe")
    parser.add_argument("--seeds", type=int, default=1, help="runs of a row, from seed 0 on (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/ablate"), help="folder of all runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; they share the cores (default: 1)")
    parser.add_argument("--json", type=Path, help="file to write every seed's numbers to")
    parser.add_argument("--dry-run", action="store_true", help="print the commands of the runs that are left")
    return parser


if __name__ == "__main__":
    answer_help(options)

import torch
from ablation_results import (
    FREE,
    Numbers,
    Plan,
    PlannedRow,
    Run,
    all_runs,
    as_json,
    class_groups,
    does_order_2_add,
    make_tables,
    markdown,
    measure,
    paired,
    refuse_other_data,
)
from paper_tables import FILE, TABLES, Row

from moss_vllm.recognition.build import build_classifier
from moss_vllm.recognition.settings import MINI
from moss_vllm.runtime.provenance import versions
from moss_vllm.training.run_folder import SETTINGS_FILE

RECIPE = Path(__file__).parents[1] / "recipes" / "action_recog.py"
NAMES = {f"table{name}": rows for name, rows in TABLES.items() if name[:-1] in ("4", "10")}
OWN = ("data", "root", "out", "resume", "seed")  # given by this script
LOG, LOG_LINES = "log.txt", 15


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is left of the tables; returns what `--json` writes, and the failed runs."""
    command = list(sys.argv[1:] if argv is None else argv)
    cut = command.index("--") if "--" in command else len(command)
    parser = options()
    args = parser.parse_args(command[:cut])
    if unknown := [table for table in args.tables if table not in NAMES]:
        parser.error(f"argument TABLE: invalid choice: {unknown[0]!r} (choose from {', '.join(NAMES)})")
    for name in ("seeds", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; it must be at least 1")
    refuse_unwritable(args.out, "out")
    if args.json is not None:
        refuse_unwritable(args.json.parent, "the folder of --json")

    tables = choose_rows(args.tables, args.rows)
    plan = plan_runs(tables, args.data, args.root, args.seeds, args.out, command[cut + 1 :])
    runs = sorted(all_runs(plan), key=lambda run: run.seed)  # all rows' first seed, then the second
    if not runs:
        reasons = {planned.refused for rows in plan.values() for planned in rows}
        raise ValueError(f"no row of {', '.join(plan)} runs on --data {args.data}: {'; '.join(reasons)}")
    refuse_other_settings(runs)
    left = [run for run in runs if not run.is_finished]
    say(f"{len(runs)} runs, {len(runs) - len(left)} of them finished before", flush=True)
    if args.dry_run:
        say(*(shlex.join(["python", str(RECIPE), *run.flags]) for run in left), sep="\n")
        return {"left": [list(run.flags) for run in left]}
    groups = class_groups(args.root) if args.data == MINI else {}
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with alone_in(args.out):
        numbers: Numbers = {run: measure(run, groups) for run in runs if run.is_finished}
        refuse_other_data(numbers)

        def keep(run: Run) -> str:
            numbers[run] = measure(run, groups)
            with whole_file(args.out / "TABLE.md") as part:
                part.write_text(markdown(plan, numbers, args.data))
            return f"{numbers[run]['accuracy']['all']:.2f} % after the last step"

        failed = run_all(left, args.jobs, threads, keep)
        refuse_other_data(numbers)
        with whole_file(args.out / "TABLE.md") as part:
            part.write_text(markdown(plan, numbers, args.data))
    console = Screen(width=170 if groups else 120)
    for table in make_tables(plan, numbers, args.data):
        console.print(table)
    console.print(*does_order_2_add(plan, numbers).split("\n"), sep="\n")
    say(f"written to {args.out / 'TABLE.md'}")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = f"{os.cpu_count()} cores, {args.jobs} runs at once of {threads} threads"
    written = {
        "command": shlex.join(["python", "experiments/ablate.py", *command]),
        "machine": f"{platform.machine()}, {cores}, {gpu}",
        "versions": versions(),
        "data": args.data,
        "data_lines": next((found["data_lines"] for found in numbers.values()), []),
        "tables": {name: [as_json(planned, numbers) for planned in rows] for name, rows in plan.items()},
        "moss_minus_first_order": paired(plan, numbers),
        "failed": [run.name for run in failed],
    }
    if args.json is not None:
        with whole_file(args.json) as part:
            part.write_text(json.dumps(written, indent=2) + "\n")
        say(f"written to {args.json}")
    return written


# ---- what is run


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
) -> Plan:
    """Each row's runs, tried before any starts: the recipe takes the settings and the model can be built.

    Args:
        extra: more flags of the recipe.

    Raises:
        ValueError: flags of the recipe that are this script's, or a row whose settings do not work, by name.
    """
    recipe = load_recipe()
    given, others = parse(recipe.ActionRecog, extra, recipe.__doc__)
    refused = [name for name in OWN if getattr(given, name) != getattr(recipe.ActionRecog(), name)]
    if refused := [*refused, *(["dry_run"] if others.dry_run else [])]:
        raise ValueError(f"{', '.join(refused)} after '--': give it before '--', where this script has it")
    if data == MINI and given.variant not in (None, MINI):
        raise ValueError(f"variant is {given.variant!r}; rows on --data mini are laid out for the miniature")
    where = ["--data", data, *([] if root is None else ["--root", root])]
    plan: Plan = {}
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
    folder = out / f"{readable(asked)}-{digest}" / f"seed-{seed}"
    return Run(folder, seed, (*flags, "--out", str(folder)), dataclasses.asdict(settings))


def flag(name: str) -> str:
    """`--temporal-layers` of `temporal_layers`."""
    return f"--{name.replace('_', '-')}"


def readable(asked: Mapping[str, Any]) -> str:
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


def load_recipe() -> ModuleType:
    """The module recipes/action_recog.py."""
    name = "ablate_action_recog"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, RECIPE)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)  # its dataclass looks annotations up there
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


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


# ---- running


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """ValueError where another process of this script works in the same folder."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{out}: another experiments/ablate.py runs there; wait, or name another --out"
            ) from None
        yield


def run_all(left: Sequence[Run], jobs: int, threads: int, keep: Callable[[Run], str]) -> list[Run]:
    """Run what is left, `jobs` at once; returns the runs that failed.

    Args:
        threads: of each run.
        keep: called with each finished run; returns what to say of it.
    """
    waiting, running = list(left), dict[subprocess.Popen[bytes], tuple[Run, float]]()
    failed: list[Run] = []
    spent_s: list[float] = []
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the same command goes on"))
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[start(run, environment)] = run, time.monotonic()
                say(f"start {run.name}, log in {run.folder / LOG}", flush=True)
            time.sleep(0.2)
            for process in [process for process in running if process.poll() is not None]:
                run, begun = running.pop(process)
                spent_s.append(time.monotonic() - begun)
                minutes = statistics.mean(spent_s) * (len(waiting) + len(running) / 2) / jobs / 60
                place = f"[{len(spent_s)}/{len(left)}] {run.name}"
                if process.returncode == 0 and run.is_finished:
                    told = f"{place}: {keep(run)}; {spent_s[-1]:.0f} s"
                else:
                    failed.append(run)
                    told = f"{place}: {last_words(run, process.returncode)}"
                rest = f"; about {minutes:.0f} min left" if waiting or running else ""
                say(*f"{told}{rest}".split("\n"), sep="\n", flush=True)
    finally:
        for process in running:
            process.terminate()  # the recipe writes a checkpoint then
        for process in running:
            process.wait()
        signal.signal(signal.SIGTERM, before)
    return failed


def start(run: Run, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """The recipe in a process; its output is added to the log."""
    run.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(RECIPE), *run.flags]
    with (run.folder / LOG).open("a") as log:
        log.write(f"$ {shlex.join(command)}\n")
        log.flush()
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def last_words(run: Run, status: int) -> str:
    """What is said of a run that failed."""
    lines = (run.folder / LOG).read_text(errors="replace").splitlines()[-LOG_LINES:]
    return "\n  | ".join([f"FAILED with status {status}; the end of {run.folder / LOG}:", *lines])


if __name__ == "__main__":
    with errors_in_one_line("the same command goes on, and repeats no finished run"):
        raise SystemExit(1 if main().get("failed") else 0)
