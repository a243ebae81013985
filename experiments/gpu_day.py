"""Everything that needs a GPU, in one command: each job in a process under its own time limit, one json.

    python experiments/gpu_day.py --list                   # the jobs, most worth first, and their limits
    python experiments/gpu_day.py --minutes 25             # on a machine with a GPU
    python experiments/gpu_day.py --minutes 9 --json FILE  # again and again, where FILE is carried along
    python experiments/gpu_day.py --toy                    # the same commands on a CPU, at toy sizes

A job starts if its limit fits into the minutes that are left. One that runs into its limit is ended with all
its processes, one that fails is noted with the end of its output, and the day goes on. The json is written
whole after every job: a second start skips what is done with this code and tries the rest, what was never
tried first. It has the card's name, the machine, every job's command, seconds and results, also those that a
job left before it was ended. The status is 0 when every chosen job is done.
"""

import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gpu_jobs import JOBS, ROOT, Job
from rich.table import Table

from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.files import read_json, refuse_unwritable, write_whole
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.screen import Screen, say

RESULTS = ROOT / "benchmarks" / "results"
TOY_CARD = "no GPU, toy sizes"
KEPT_OF_OUTPUT = 3000  # bytes
TOLD_EVERY_S, ENDING_S = 30.0, 5.0  # seconds between two lines of progress, and from SIGTERM to SIGKILL
CODE = ("moss_vllm", "experiments", "tests")  # what the jobs run
DESCRIBE = """
import json, os, torch
from measuring import cpu_name
from moss_vllm.runtime.versions import versions
found = {"cpu": cpu_name(), "cores": os.cpu_count(), "versions": versions(), "cuda": torch.version.cuda}
if torch.cuda.is_available():
    card = torch.cuda.get_device_properties(0)
    found |= {"card": card.name, "memory_gib": card.total_memory / 2**30}
print(json.dumps(found))
"""


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=25, help="for everything (default: %(default)s)")
    add("--only", metavar="NAME,...", help="run these jobs alone")
    add("--again", metavar="NAME,...", help="run these though they are done")
    add("--json", type=Path, help="results (default: benchmarks/results/gpu-day-CARD.json, runs/ for --toy)")
    add("--toy", action="store_true", help="toy sizes on the CPU")
    add("--list", action="store_true", help="show the jobs and end")
    return parser


if __name__ == "__main__":
    answer_help(options)


def main(argv: list[str] | None = None) -> int:
    """Run the day; returns its status."""
    parser = options()
    args = parser.parse_args(argv)
    known = [job.name for job in JOBS]
    only, again = (text.split(",") if text else [] for text in (args.only, args.again))
    for flag, names in (("--only", only), ("--again", again)):
        if unknown := [name for name in names if name not in known]:
            parser.error(f"{flag}: no job {', '.join(map(repr, unknown))}; the jobs are {', '.join(known)}")
    if not 0 < args.minutes < 60 * 24:
        parser.error(f"--minutes is {args.minutes:g}; it takes more than 0 and less than a day")
    default = [job.name for job in JOBS if job.toy or not args.toy]
    chosen = [job for job in JOBS if job.name in [*(only or default), *again]]
    if args.toy and (without := [job.name for job in chosen if job.toy is None]):
        parser.error(f"{', '.join(without)}: no toy, another job's runs the same code; leave it out")
    if args.list:
        show_jobs(chosen, toy=args.toy)
        return 0
    ends = time.monotonic() + 60 * args.minutes
    with errors_in_one_line("the same command goes on with the jobs that are not done"), _ended_by_sigterm():
        machine = describe_machine()
        card = TOY_CARD if args.toy else machine.get("card")
        if card is None:
            raise ValueError("torch finds no CUDA device; --toy runs the same commands on the CPU")
        file = args.json or (ROOT / "runs" if args.toy else RESULTS) / f"gpu-day-{in_a_name(card)}.json"
        record = open_record(file, card)
        record["machine"] = machine
        run_jobs(chosen, record, file, ends=ends, again=again, toy=args.toy)
    show_day(chosen, record, file)
    return 0 if all(is_done(record, job.name) for job in chosen) else 1


def describe_machine() -> dict[str, Any]:
    """Processor, card and versions, asked of another process: this one takes no memory of the card.

    Raises: ValueError with that process's last line if something that every job needs cannot be imported.
    """
    command = [sys.executable, "-c", DESCRIBE]
    asked = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True)
    if asked.returncode:
        said = asked.stderr.strip().splitlines() or [f"status {asked.returncode}"]
        raise ValueError(f"{sys.executable} cannot run the jobs ({said[-1]}); install what is missing")
    found: dict[str, Any] = json.loads(asked.stdout.splitlines()[-1])
    return found


def in_a_name(card: str) -> str:
    """The card's name as a part of a file's."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")[:60] or "unnamed"


def code_version() -> str:
    """A digest of the code that the jobs run, which a copy without git has too; uncommitted changes count."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def open_record(file: Path, card: str) -> dict[str, Any]:
    """What the file holds of this card's day so far, for this code.

    Raises: ValueError for a file that holds something else, or a place that cannot be written to.
    """
    if file.is_dir():
        raise ValueError(f"--json {file} is a folder; name a file")
    refuse_unwritable(file.parent, f"--json {file}: its folder")
    record: dict[str, Any] = {"card": card, "jobs": {}}
    if file.exists():
        record = read_json(file, "move it away, or name another file with --json")
        jobs = record.get("jobs")
        if not isinstance(jobs, dict) or not all(map(_is_noted, jobs.values())):
            raise ValueError(f"{file} holds no jobs of a GPU day; name another file with --json")
        if record.get("card") != card:
            raise ValueError(f"{file} is of {record.get('card')}, this is {card}; name another with --json")
    return record | {"code": code_version()}


def _is_noted(one: Any) -> bool:
    """Whether this is what `run_job` returns, as far as it is read again."""
    wanted = {"state": str, "seconds": (int, float), "output": str}
    return isinstance(one, dict) and all(isinstance(one.get(name), kind) for name, kind in wanted.items())


def is_done(record: dict[str, Any], name: str) -> bool:
    """Whether the job ran to its end with this code."""
    job = record["jobs"].get(name, {})
    return job.get("state") == "done" and job.get("code") == record["code"]


def run_jobs(
    jobs: Sequence[Job], record: dict[str, Any], file: Path, *, ends: float, again: Sequence[str], toy: bool
) -> None:
    """Run what is not done or is in `again`, until `ends` of time.monotonic; write `file` after each."""
    write_record(file, record)
    for job in jobs:
        if is_done(record, job.name) and job.name not in again:
            say(f"{job.name}: done before with this code, skipped; --again {job.name} repeats it")
    # What failed before may fail again: it waits for what was never tried with this code.
    tried = {name for name, one in record["jobs"].items() if one.get("code") == record["code"]}
    todo = [job for job in jobs if job.name in again or not is_done(record, job.name)]
    todo.sort(key=lambda job: job.name in tried)
    for number, job in enumerate(todo, start=1):
        left = ends - time.monotonic()
        if left < job.limit_s:
            say(f"{job.name}: not started, {max(0, left):.0f} s are left and it may take {job.limit_s}")
            continue
        limit = f"limit {job.limit_s} s, {left / 60:.1f} min left"
        say(f"{number} of {len(todo)}, {job.name}: {limit}", flush=True)
        record["jobs"][job.name] = found = run_job(job, ends, toy=toy) | {"code": record["code"]}
        write_record(file, record)
        say(f"{job.name}: {found['state']} after {found['seconds']:.0f} s", flush=True)


def run_job(job: Job, ends: float, *, toy: bool) -> dict[str, Any]:
    """Run one job; what is known of it, whatever became of it."""
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "output", "w+b") as output:
        file = Path(folder) / "result.json"
        words, began, cpu_s = job.words(file, toy=toy), time.monotonic(), _cpu_of_children()
        piped: Any = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        # A group of its own, but no session: who ends everything in this session ends the job too.
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=_environment(), preexec_fn=os.setpgrp, **piped
        )
        try:
            status = _wait(process, job, began, ends)
        finally:
            _end_group(process)
        result, unread = _read_result(file)
        state = "timed out" if status is None else "failed" if status else "done"
        output.seek(max(0, output.seek(0, os.SEEK_END) - KEPT_OF_OUTPUT))
        return {
            "state": state,
            "seconds": round(time.monotonic() - began, 1),
            "cpu_s": round(_cpu_of_children() - cpu_s, 1),
            "limit_s": job.limit_s,
            "status": status,
            "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": ["python", *job.words(Path("FILE"), toy=toy)],
            "result": result,
            **({"unread": unread} if unread else {}),
            "output": output.read().decode(errors="replace"),
        }


def _wait(process: subprocess.Popen[bytes], job: Job, began: float, ends: float) -> int | None:
    """The status of the job, None after its limit; says every now and then that it runs."""
    while (ran := time.monotonic() - began) < job.limit_s:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(min(TOLD_EVERY_S, job.limit_s - ran))
        ran, left = time.monotonic() - began, (ends - time.monotonic()) / 60
        say(f"{job.name}: {ran:.0f} of at most {job.limit_s} s, {left:.1f} min left", flush=True)
    return None


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the job, and what it started and left behind."""
    with suppress(ProcessLookupError, PermissionError):  # macOS has the second for a group that has ended
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(ENDING_S)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _cpu_of_children() -> float:
    """CPU seconds of all jobs that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _read_result(file: Path) -> tuple[Any, str | None]:
    """What the job wrote, and why it cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8")), None
    except FileNotFoundError:
        return None, None
    except (ValueError, RecursionError, OSError) as error:
        return None, str(error)


def write_record(file: Path, record: dict[str, Any]) -> None:
    """Write the file whole."""
    write_whole(file, json.dumps(record, indent=1) + "\n")


def show_jobs(jobs: Sequence[Job], *, toy: bool) -> None:
    """A row for each job."""
    table = Table("job", "limit, s", "python ...", title="jobs, most worth first")
    for job in jobs:
        table.add_row(job.name, str(job.limit_s), " ".join(job.words(Path("FILE"), toy=toy)))
    Screen().print(table)


def show_day(jobs: Sequence[Job], record: dict[str, Any], file: Path) -> None:
    """A row for each job, with its numbers."""
    console = Screen()
    table = Table("job", "state", "s", "numbers", title=f"a GPU day on {record['card']}")
    for job in jobs:
        one = record["jobs"].get(job.name)
        if one is None:
            table.add_row(job.name, "not run", "", "")
            continue
        older = "" if one.get("code") == record["code"] else ", older code"
        first, *rest = list(numbers_of(job, one)) or [""]
        table.add_row(job.name, f"{one['state']}{older}", f"{one['seconds']:.0f}", first)
        for line in rest:
            table.add_row("", "", "", line)
    console.print(table, f"written: {file}")


def numbers_of(job: Job, found: dict[str, Any]) -> Iterator[str]:
    """The job's numbers, of a job that was ended those that it left; then the last line of its output."""
    try:
        if found.get("result") is not None:
            yield from job.numbers(found["result"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        yield f"its results cannot be shown ({type(error).__name__}: {error}); they are in the json"
    said = [line for line in found.get("output", "").splitlines() if line.strip()]
    if said and (found["state"] != "done" or found.get("result") is None):
        yield f"status {found.get('status')}: {said[-1].strip()}" if found["state"] == "failed" else said[-1]
    elif found["state"] == "failed":
        yield f"status {found.get('status')}, no output"  # negative: the signal that ended it


def _environment() -> dict[str, str]:
    """This environment, where jobs find the package and show their output at once."""
    paths = [str(ROOT), str(ROOT / "experiments"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM unwinds, so that the job that runs ends too; its results of before stay in the json."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
