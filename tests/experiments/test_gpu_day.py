"""Owns: a GPU day's jobs end under their limits, its json is always whole, and a second start goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu_day
import gpu_jobs
import pytest
from command_lines import parser_of
from gpu_jobs import JSON, Job
from launching import ROOT

# What a job may do; its pid and that of its child go to the notes.
STAND_IN = """
import json, os, subprocess, sys, time
what, file, notes = sys.argv[1:]
with open(notes, "a") as lines:
    lines.write(f"{what} {os.getpid()}\\n")
if what == "bad":
    print("before")
    sys.exit("the reason")
with open(file, "w") as result:
    result.write("{" if what == "broken" else json.dumps({"number": 7}))
if what == "loud":
    os.write(1, b"x" * 9000 + b"\\xff\\x1b[31m end")
if what == "hang":
    child = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    started = subprocess.Popen([sys.executable, "-I", "-S", "-c", child], stdout=subprocess.PIPE)
    started.stdout.readline()
    with open(notes, "a") as lines:
        lines.write(f"child {started.pid}\\n")
    time.sleep(600)
"""
DAY = """
import sys
import gpu_day
from gpu_jobs import Job

words = {words!r}
gpu_day.JOBS = tuple(Job(name, text, text, 100, lambda result: iter(())) for name, text in words.items())
gpu_day.describe_machine = lambda: {{"card": "CARD"}}
gpu_day.code_version = lambda: "1"
sys.exit(gpu_day.main(sys.argv[1:]))
"""


class Day:
    """A day of stand-ins in a folder."""

    def __init__(self, folder, monkeypatch):
        self.file, self.notes = folder / "day.json", folder / "notes"
        self.script = folder / "job.py"
        self.script.write_text(STAND_IN)
        self.patch = monkeypatch
        monkeypatch.setattr(gpu_day, "describe_machine", lambda: {"card": "CARD", "cores": 1})
        monkeypatch.setattr(gpu_day, "code_version", lambda: "1")
        monkeypatch.setattr(gpu_day, "TOLD_EVERY_S", 0.5)
        monkeypatch.setattr(gpu_day, "ENDING_S", 0.2)

    def words(self, what):
        return f"-I -S {self.script} {what} {JSON} {self.notes}"

    def run(self, limits, *flags):
        """The status of a day with these jobs, and its record."""

        def numbers(result):
            yield f"number {result['number']}"

        jobs = [Job(name, self.words(name), None, limit, numbers) for name, limit in limits.items()]
        self.patch.setattr(gpu_day, "JOBS", tuple(jobs))
        return gpu_day.main(["--json", str(self.file), *flags]), self.record()

    def record(self):
        return json.loads(self.file.read_text())

    def ran(self):
        """What ran, in its order, with pids."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        return [(line.split()[0], int(line.split()[1])) for line in lines]


@pytest.fixture
def day(tmp_path, monkeypatch):
    return Day(tmp_path, monkeypatch)


def is_alive(pid):
    """Whether a process runs; a zombie that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for(condition):
    """Wait until it holds; one who was sent SIGKILL is gone only when the kernel next runs it."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("it did not happen in a minute")


@pytest.mark.slow
def test_a_job_that_hangs_is_ended_with_its_children_and_the_day_goes_on(day, capsys):
    status, record = day.run({"hang": 5, "bad": 100, "good": 100})
    assert status == 1 and {name: one["state"] for name, one in record["jobs"].items()} == {
        "hang": "timed out",
        "bad": "failed",
        "good": "done",
    }
    pids = dict(day.ran())
    assert list(pids) == ["hang", "child", "bad", "good"]
    wait_for(lambda: not any(map(is_alive, pids.values())))
    hang, bad, good = record["jobs"].values()
    assert hang["seconds"] >= 5 and hang["status"] is None and hang["result"] == {"number": 7}
    assert bad["status"] == 1 and bad["output"] == "before\nthe reason\n" and bad["result"] is None
    assert good["result"] == {"number": 7} and good["code"] == record["code"] == "1"
    assert record["card"] == "CARD" and record["machine"]["cores"] == 1
    told = capsys.readouterr().out
    assert "hang: 0 of at most 5 s" in told or "hang: 1 of at most 5 s" in told
    assert "status 1: the reason" in told and "number 7" in told


def test_a_second_start_skips_what_is_done_and_tries_first_what_never_ran(day, capsys):
    jobs = {"bad": 100, "good": 100, "broken": 100}
    assert day.run(jobs, "--only", "bad,good")[0] == 1
    capsys.readouterr()
    status, record = day.run(jobs)
    assert [what for what, _ in day.ran()] == ["bad", "good", "broken", "bad"]
    told = capsys.readouterr().out
    assert "good: done before with this code, skipped; --again good repeats it" in told
    broken = record["jobs"]["broken"]  # it ended well, so it is done, but what it wrote is no json
    assert status == 1 and broken["state"] == "done" and broken["result"] is None and broken["unread"]
    assert day.run(jobs, "--only", "good")[0] == 0
    assert day.run(jobs, "--only", "good", "--again", "good")[0] == 0
    assert [what for what, _ in day.ran()][4:] == ["good"]
    day.patch.setattr(gpu_day, "code_version", lambda: "2")
    assert day.run(jobs, "--only", "good")[0] == 0
    assert [what for what, _ in day.ran()][5:] == ["good"]
    assert {name: one["code"] for name, one in day.record()["jobs"].items()} == {
        "bad": "1",
        "good": "2",
        "broken": "1",
    }


def test_a_job_starts_only_if_its_limit_fits_into_the_minutes_left(day, capsys):
    status, record = day.run({"bad": 61, "good": 50}, "--minutes", "1")
    assert status == 1 and list(record["jobs"]) == ["good"]
    told = capsys.readouterr().out
    assert "bad: not started, " in told and "it may take 61" in told and "not run" in told


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_day_that_is_ended_leaves_whole_results_and_goes_on(day, number, tmp_path):
    script = tmp_path / "day.py"
    script.write_text(DAY.format(words={name: day.words(name) for name in ("good", "hang")}))
    paths = os.pathsep.join([str(ROOT), str(ROOT / "experiments")])
    command = [sys.executable, str(script), "--json", str(day.file)]
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: "child" in dict(day.ran()))
        process.send_signal(number)
        assert process.wait(60) == (-9 if number == signal.SIGKILL else 128 + 15)
        pids = dict(day.ran())
        if number == signal.SIGTERM:
            wait_for(lambda: not is_alive(pids["hang"]) and not is_alive(pids["child"]))
    finally:
        process.kill()
        for name, pid in day.ran():
            if name != "good" and is_alive(pid):
                os.kill(pid, signal.SIGKILL)
    record = day.record()
    assert list(record["jobs"]) == ["good"] and record["jobs"]["good"]["result"] == {"number": 7}
    assert [path.name for path in tmp_path.glob(".*")] == []  # no half of a file
    status, _ = day.run({"good": 100, "loud": 100})
    assert status == 0 and [what for what, _ in day.ran() if what != "child"] == ["good", "hang", "loud"]


def test_the_end_of_any_output_is_kept_and_shown_harmless(day, capsys):
    def numbers(result):
        yield "\x1b[2Jnumber"
        raise KeyError("gone")

    day.patch.setattr(gpu_day, "JOBS", (Job("loud", day.words("loud"), None, 100, numbers),))
    assert gpu_day.main(["--json", str(day.file)]) == 0
    output = day.record()["jobs"]["loud"]["output"]
    assert output == "x" * (gpu_day.KEPT_OF_OUTPUT - 10) + "\ufffd\x1b[31m end"
    told = capsys.readouterr().out
    assert "\x1b[2J" not in told and "\\x1b[2Jnumber" in told and "cannot be shown" in told


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "day.json: cannot be read as JSON (it holds a list"),
        ("{", "day.json: cannot be read as JSON"),
        ('{"card": "CARD"}', "holds no jobs of a GPU day"),
        ('{"card": "CARD", "jobs": ["good"]}', "holds no jobs of a GPU day"),
        ('{"card": "CARD", "jobs": {"good": {"state": "done", "code": "1"}}}', "holds no jobs"),
        ('{"card": "\\u001b[2Jother", "jobs": {}}', "is of \\x1b[2Jother, this is CARD"),
    ],
)
def test_a_file_of_something_else_is_refused_and_stays(day, content, message):
    day.file.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        day.run({"good": 100})
    assert message in str(stopped.value) and "\x1b" not in str(stopped.value)
    assert "name another" in str(stopped.value) and day.file.read_text() == content and day.ran() == []


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--only", "../good,\x1b[2J"], "--only: no job '../good', '\\x1b[2J'; the jobs are gpu-tests"),
        (["--again", "stss"], "--again: no job 'stss'"),
        (["--toy", "--only", "train-7b-10s"], "train-7b-10s: no toy"),
        (["--minutes", "0"], "--minutes is 0"),
        (["--minutes", "nan"], "--minutes is nan"),
    ],
)
def test_bad_arguments_are_named(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu_day.main(flags)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_places_that_cannot_be_written_and_a_machine_without_a_card_are_told(day, tmp_path):
    (tmp_path / "file").touch()
    for place, message in ((tmp_path, "is a folder"), (tmp_path / "file" / "a.json", "its folder")):
        with pytest.raises(SystemExit, match=message):
            gpu_day.main(["--json", str(place)])
    day.patch.setattr(gpu_day, "describe_machine", lambda: {"cores": 1})
    with pytest.raises(SystemExit, match="no CUDA device; --toy runs the same commands on the CPU"):
        gpu_day.main([])


def test_a_python_that_cannot_run_the_jobs_is_told_before_them(monkeypatch):
    monkeypatch.setattr(gpu_day, "DESCRIBE", "import not_there")
    with pytest.raises(SystemExit, match="No module named 'not_there'.*install what is missing"):
        gpu_day.main([])


def test_a_card_of_any_name_makes_a_file_name():
    names = ("NVIDIA H200", "../../etc/\x1b[31m", "", "x" * 500)
    assert [gpu_day.in_a_name(name) for name in names] == ["nvidia-h200", "etc-31m", "unnamed", "x" * 60]


def test_every_command_is_one_that_its_script_takes(capsys):
    assert len({job.name for job in gpu_jobs.JOBS}) == len(gpu_jobs.JOBS)
    assert gpu_day.main(["--list"]) == 0
    told = capsys.readouterr().out
    assert all(job.name in told for job in gpu_jobs.JOBS)
    for job in gpu_jobs.JOBS:
        for toy in (False, True) if job.toy else (False,):
            script, *words = job.words(Path("FILE"), toy=toy)
            if script == "-m":
                assert {"tests/core/test_stss_triton.py", "tests/experiments/test_efficiency.py"} <= set(
                    words
                )
                continue
            args = parser_of(script).parse_args(words)
            assert args.json == Path("FILE") and args.device == ("cpu" if toy else "cuda")


def test_numbers_of_a_gpu_stand_beside_bounds_estimates_and_the_papers():
    stss = {"ours": {"step_ms": 2.0}, "plain": {"step_ms": 4.0}, "textbook": {"step_ms": 9.0}}
    stss |= {"part": "stss+linear", "shape": "a", "share_of_bound": {"step": 0.25}}
    stss |= {"bounds_ms": {"step": {"arithmetic": 0.5, "bandwidth": 0.1}}}
    assert list(gpu_jobs._stss({"shapes": {"a": []}, "results": [stss]})) == [
        "a, stss+linear: 2 / 4 / 9 ms (ours, plain, textbook), 25% of the bound by arithmetic"
    ]
    step = {"clip_s": 10, "moss": True, "recomputed": False}
    done = {"step_s": 0.5, "peak_gib": 12.0, "estimated_gib": 11.5, "hours": 2.08}
    steps = {"paper_gpu_hours": 8, "results": [step | done, step | {"failed": "out of memory"}]}
    assert list(gpu_jobs._training(steps)) == [
        "10 s, with MOSS: 0.5 s a step, peak 12.0 GiB, estimated 11.5; 2.08 h, the paper 8 GPU-h",
        "10 s, with MOSS: out of memory",
    ]
    row = {"table": "3", "name": "MOSS-S", "clips": 32, "paper_gb": "9.9"}
    measured = row | {"step_s": {"median": 0.25}, "allocated_gb": 8.7}
    assert list(gpu_jobs._tables({"rows": [measured, row | {"failed": "out of memory"}]})) == [
        "Table 3, MOSS-S, 32 clips: 0.25 s a step, peak 8.7 GB, the paper 9.9",
        "Table 3, MOSS-S, 32 clips: out of memory",
    ]


# `--toy` has four more, whose code other tests run: gpu-tests, stss-bf16, train-2b-10s, eval-2b.
TOYS = ("stss-fp16", "tables-fp32", "detection", "boundaries")


@pytest.mark.slow
def test_the_jobs_run_as_toys_on_a_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = tmp_path / "toy.json"
    status = gpu_day.main(["--toy", "--only", ",".join(TOYS), "--minutes", "100", "--json", str(file)])
    record = json.loads(file.read_text())
    assert {name: one["state"] for name, one in record["jobs"].items()} == dict.fromkeys(TOYS, "done"), record
    assert status == 0 and record["card"] == "no GPU, toy sizes" and record["machine"]["versions"]["torch"]
    told = " ".join(capsys.readouterr().out.split())
    assert "cannot be shown" not in told
    for job in (job for job in gpu_jobs.JOBS if job.name in TOYS):
        assert list(job.numbers(record["jobs"][job.name]["result"])), job.name
