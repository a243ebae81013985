"""The paper's ablations, Tables 4 and 8 to 10, trained and tested: its columns beside what is measured here.

    python experiments/ablate.py table10c table4a table4b --data mini --seeds 3 --jobs 2
    python experiments/ablate.py table4a --data ssv1 --root DATA/ssv1 -- --precision bf16 --cache DATA/cache
    python experiments/ablate.py table10c --rows MOSS baseline --dry-run          # the commands, nothing more
    python experiments/ablate.py detection --data mini --seeds 3          # Table 8, and one-frame control
    python experiments/ablate.py boundaries --data mini --seeds 3         # Table 9, the same

Every row of recipes/configs/paper_tables.yaml is a few settings of recipes/action_recog.py, those of the
tables "detection" and "boundaries" of the recipes of these names; flags after `--` go to the recipe in every
run. A run is one process with the folder OUT/NAME-DIGEST/seed-N. DIGEST is computed from the settings, so
rows of several tables with equal settings share their runs. After a kill the same command continues and
repeats no finished run. A run in OUT with other settings, because the recipe's defaults have changed, is an
error. If a run fails, the end of its log is printed, the other runs continue, and the exit status is 1. The
commands that --dry-run prints may also run elsewhere, on several GPUs: finished runs in OUT are used.

Compare the numbers under "last step": the model after the last step, of classifiers with one view per clip.
"best" is the recipe's own test of the best checkpoint, which was chosen on the same clips or videos and
therefore flatters; rows whose score varies more from test to test gain more by it.

With `--data mini`, the miniature stands for MOSS-S, AdaTAD-B or BasicGEBD and random weights for theirs, and
the table also has the score of each group of classes (moss_vllm/data/world/: actions.py, untrimmed.py); of
boundaries it has the average F1 instead. Notes name the rows that have no counterpart there. The table is
printed, and written to OUT/TABLE.md after each run.
"""

import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.files import refuse_unwritable, whole_file
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.locks import Lock
from moss_vllm.runtime.screen import Screen, say


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument(
        "tables",
        nargs="+",
        metavar="TABLE",
        help="table4a to table4d, table10a to table10e; or detection; or boundaries",
    )
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="some rows of the tables, by their names")
    parser.add_argument("--data", default="mini", help="data set, as in the recipe")
    parser.add_argument("--root", help="folder of the videos, as in the recipe")
    parser.add_argument("--seeds", type=int, default=1, help="runs per row, from seed 0 (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/ablate"), help="folder of all runs")
    parser.add_argument(
        "--jobs", type=int, default=1, help="parallel runs, which share the cores (default: 1)"
    )
    parser.add_argument("--json", type=Path, help="file to write every seed's numbers to")
    parser.add_argument("--dry-run", action="store_true", help="print the commands of the remaining runs")
    return parser


if __name__ == "__main__":
    answer_help(options)

import torch
from ablation_plan import NAMES, Run, choose_rows, choose_task, plan_runs, refuse_other_settings
from ablation_results import (
    Numbers,
    all_runs,
    as_json,
    does_order_2_add,
    make_tables,
    measure,
    paired,
    refuse_other_data,
    tables_in_markdown,
)

from moss_vllm.recognition.settings import MINI_DATA
from moss_vllm.runtime.versions import versions

LOG, LOG_LINES = "log.txt", 15


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Start the runs that are not finished; returns what `--json` writes, and the failed runs."""
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
    runs = sorted(all_runs(plan), key=lambda run: run.seed)  # the first seed of all rows, then the second
    if not runs:
        reasons = {planned.refused for rows in plan.values() for planned in rows}
        raise ValueError(f"no row of {', '.join(plan)} runs on --data {args.data}: {'; '.join(reasons)}")
    refuse_other_settings(runs)
    remaining = [run for run in runs if not run.is_finished]
    say(f"{len(runs)} runs, {len(runs) - len(remaining)} of them finished before", flush=True)
    if args.dry_run:
        say(*(shlex.join(["python", str(run.task.recipe), *run.flags]) for run in remaining), sep="\n")
        return {"left": [list(run.flags) for run in remaining]}
    task = choose_task(plan)
    groups = task.draw_groups(args.root) if args.data == MINI_DATA else {}
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    with alone_in(args.out):
        numbers: Numbers = {run: measure(run, groups) for run in runs if run.is_finished}
        refuse_other_data(numbers)

        def keep(run: Run) -> str:
            numbers[run] = measure(run, groups)
            with whole_file(args.out / "TABLE.md") as part:
                part.write_text(tables_in_markdown(plan, numbers, args.data))
            return f"{run.task.score} {numbers[run]['accuracy']['all']:.2f} % after the last step"

        failed = run_remaining(remaining, args.jobs, threads, keep)
        refuse_other_data(numbers)
        with whole_file(args.out / "TABLE.md") as part:
            part.write_text(tables_in_markdown(plan, numbers, args.data))
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
        "data_lines": next((result["data_lines"] for result in numbers.values()), []),
        "tables": {
            name: [as_json(task, planned, numbers) for planned in rows] for name, rows in plan.items()
        },
        "moss_minus_first_order": paired(plan, numbers),
        "failed": [run.name for run in failed],
    }
    if args.json is not None:
        with whole_file(args.json) as part:
            part.write_text(json.dumps(written, indent=2) + "\n")
        say(f"written to {args.json}")
    return written


# ---- running


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """ValueError if another process of this script works in the same folder."""
    out.mkdir(parents=True, exist_ok=True)
    lock = Lock(out / ".lock")
    if not lock.take():
        raise ValueError(f"{out}: another experiments/ablate.py runs there; wait, or name another --out")
    try:
        yield
    finally:
        lock.drop()


def run_remaining(remaining: Sequence[Run], jobs: int, threads: int, keep: Callable[[Run], str]) -> list[Run]:
    """Start the remaining runs, `jobs` at a time; returns the runs that failed.

    Args:
        threads: CPU threads of each run.
        keep: called with each finished run; returns the line to print about it.
    """
    waiting, running = list(remaining), dict[subprocess.Popen[bytes], tuple[Run, float]]()
    failed: list[Run] = []
    spent_s: list[float] = []
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped; the same command continues"))
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[start_run(run, environment)] = run, time.monotonic()
                say(f"start {run.name}, log in {run.folder / LOG}", flush=True)
            time.sleep(0.2)
            for process in [process for process in running if process.poll() is not None]:
                run, begun = running.pop(process)
                spent_s.append(time.monotonic() - begun)
                minutes = statistics.mean(spent_s) * (len(waiting) + len(running) / 2) / jobs / 60
                place = f"[{len(spent_s)}/{len(remaining)}] {run.name}"
                if process.returncode == 0 and run.is_finished:
                    message = f"{place}: {keep(run)}; {spent_s[-1]:.0f} s"
                else:
                    failed.append(run)
                    message = f"{place}: {last_words(run, process.returncode)}"
                rest = f"; about {minutes:.0f} min left" if waiting or running else ""
                say(*f"{message}{rest}".split("\n"), sep="\n", flush=True)
    finally:
        for process in running:
            process.terminate()  # the recipe writes a checkpoint then
        for process in running:
            process.wait()
        signal.signal(signal.SIGTERM, before)
    return failed


def start_run(run: Run, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the recipe in a process that appends its output to the run's log."""
    run.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(run.task.recipe), *run.flags]
    with (run.folder / LOG).open("a") as log:
        log.write(f"$ {shlex.join(command)}\n")
        log.flush()
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def last_words(run: Run, status: int) -> str:
    """The message about a failed run, with the end of its log."""
    lines = (run.folder / LOG).read_text(errors="replace").splitlines()[-LOG_LINES:]
    return "\n  | ".join([f"FAILED with status {status}; the end of {run.folder / LOG}:", *lines])


if __name__ == "__main__":
    with errors_in_one_line("the same command continues, and repeats no finished run"):
        raise SystemExit(1 if main().get("failed") else 0)
