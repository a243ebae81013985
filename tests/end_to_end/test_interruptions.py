"""Owns: nothing is lost - a run that is killed or stopped goes on to the very same weights.

Of a full disk see test_faults.py. And no run writes into another's folder, nor into one that was taken away.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from killing import (
    begin,
    begin_two,
    check_equal,
    check_whole,
    finish,
    kill_once,
    note_measuring,
    outputs,
    run_two,
    saved_steps,
    trained_steps,
    wait_for_steps,
)
from launching import ROOT, SCRIPT, environment, free_port, load_script, logged

from moss_vllm.training import engines
from moss_vllm.training.run_folder import hold, latest_checkpoint, step_of, tidy
from moss_vllm.vlm import checkpoint

KILLS = 11
STEPS = 40


@pytest.fixture
def argv(tiny_base, world, tmp_path):
    """A function that makes the recipe's flags for a run in the test's own folder."""

    def make(out, **settings):
        short = {"steps": STEPS, "save_every": 2, "batch_size": 2, "workers": 0, "lora_rank": 4}
        given = {"model": tiny_base, "data": world / "FAVOR", "out": tmp_path / out, "lora_dropout": 0.3}
        given |= {"tracker": "none", "log_every": 5, "resume": "auto", **short, **settings}
        return [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]

    return make


@pytest.mark.slow
def test_kills_end_in_the_weights_of_a_run_without_any(argv, tmp_path):
    rng, saving = random.Random(0), 0
    straight, out = tmp_path / "straight", tmp_path / "killed"
    finish(begin(SCRIPT, argv("straight"), tmp_path), folder=tmp_path)
    for number in range(KILLS):
        saved, latest = saved_steps(out), time.monotonic() + rng.uniform(0, 4)
        process = begin(SCRIPT, argv("killed"), tmp_path)

        def any_moment(latest=latest, saved=saved):  # reading, opening the model, between steps
            return time.monotonic() > latest or trained_steps(out) > saved + 2

        def is_saving(saved=saved):  # after it has come further than the life before
            return saved_steps(out) > saved and any(out.glob(".step-*.unfinished"))

        reached, wait_s = (any_moment, 0) if number % 2 else (is_saving, rng.uniform(0, 0.03))
        kill_once(reached, process, tmp_path, wait_s)
        saving += bool(list(out.glob(".step-*.unfinished")))
    assert saving >= KILLS // 4  # kills that left a checkpoint half-written
    assert saved_steps(out) < STEPS
    finish(begin(SCRIPT, argv("killed"), tmp_path), folder=tmp_path)
    check_equal(straight, out)
    check_whole(out)
    assert (out / "finished").read_text() == f"step-{STEPS:06d}\n"


@pytest.mark.slow
def test_a_kill_while_the_held_out_loss_is_measured_changes_nothing(argv, tmp_path):
    how = {"steps": 8, "save_every": 3, "held_out": 4, "eval_every": 4}
    out, marker = tmp_path / "killed", tmp_path / "measuring"
    finish(begin(SCRIPT, argv("straight", **how), tmp_path), folder=tmp_path)
    for _ in range(2):  # the second life goes on from step 3, and comes to step 4 again
        marker.unlink(missing_ok=True)
        process = begin(SCRIPT, argv("killed", **how), tmp_path, partial(note_measuring, marker))
        kill_once(marker.exists, process, tmp_path, 0.1)
        assert [line["step"] for line in logged(out)] == [1, 2, 3, 4] and saved_steps(out) == 3
    finish(begin(SCRIPT, argv("killed", **how), tmp_path), folder=tmp_path)
    check_equal(tmp_path / "straight", out)
    assert [line["step"] for line in logged(out) if "held_out_loss" in line] == [4, 8]
    check_whole(out)


@pytest.mark.slow
def test_a_stop_signal_does_not_wait_for_the_held_out_loss(argv, tmp_path):
    how, marker = {"steps": 8, "save_every": 100, "eval_every": 4}, tmp_path / "measuring"
    how |= {"held_out": 8, "batch_size": 1}
    process = begin(SCRIPT, argv("run", **how), tmp_path, partial(note_measuring, marker))
    while not marker.exists():
        assert process.is_alive(), outputs(tmp_path)
        time.sleep(0.01)
    process.terminate()
    finish(process, folder=tmp_path)
    assert latest_checkpoint(tmp_path / "run").name == "step-000005"
    assert [line for line in logged(tmp_path / "run") if "held_out_loss" in line] == []
    finish(begin(SCRIPT, argv("run", **how), tmp_path), folder=tmp_path)
    assert [line["step"] for line in logged(tmp_path / "run") if "held_out_loss" in line] == [8]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_stop_signal_saves_and_ends_with_status_0(argv, tmp_path, number):
    process = begin(SCRIPT, argv("run", save_every=1000, workers=1), tmp_path, os.setsid)
    wait_for_steps(tmp_path / "run", 3, process)
    os.killpg(process.pid, number)  # as schedulers do, the workers get it too
    finish(process, folder=tmp_path)
    last = latest_checkpoint(tmp_path / "run")
    told = (tmp_path / "output-0.txt").read_text()
    assert f"stopped by a signal after step {int(last.name[5:])} of {STEPS}; {last} is whole" in told
    assert 3 <= int(last.name[5:]) < STEPS and not (tmp_path / "run" / "finished").exists()
    checkpoint.load(last)
    check_whole(tmp_path / "run")


@pytest.mark.slow
def test_one_process_told_to_stop_stops_all_and_the_run_goes_on_exactly(argv, tmp_path):
    flags = {"steps": 30, "save_every": 1000, "batch_size": 1}
    run_two(SCRIPT, argv("straight", **flags), tmp_path)
    pair = begin_two(SCRIPT, argv("run", **flags), tmp_path)
    wait_for_steps(tmp_path / "run", 3, pair[0])
    pair[1].terminate()
    finish(*pair, folder=tmp_path)
    assert int(latest_checkpoint(tmp_path / "run").name[5:]) < 30
    assert "DDP x2 on cpu" in run_two(SCRIPT, argv("run", **flags), tmp_path)
    check_equal(tmp_path / "straight", tmp_path / "run")


@pytest.mark.slow
def test_the_slurm_file_starts_every_task_and_queues_an_unfinished_run_again(argv, tmp_path):
    """srun and scontrol are stand-ins that do on this machine what Slurm's do."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "srun").write_text(
        '#!/bin/bash\nshift\nfor id in 0 1; do SLURM_PROCID=$id SLURM_LOCALID=$id SLURM_NTASKS=2 "$@" & '
        'pids="$pids $!"; done\nfor pid in $pids; do wait "$pid" || exit 1; done\n'
    )
    (tools / "scontrol").write_text(
        f'#!/bin/bash\nif [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> {tmp_path}/requeued; fi\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    python = os.path.dirname(os.sys.executable)
    slurm = {"SLURM_JOB_NODELIST": "here", "SLURM_JOB_ID": str(free_port()), "OUT": str(tmp_path / "run")}
    variables = {**environment(), **slurm, "PATH": f"{tools}:{python}:{os.environ['PATH']}"}
    flags = [flag for flag in argv("run", steps=4) if not flag.startswith(("--out", "--resume"))]
    script = str(ROOT / "scripts" / "launch" / "slurm.sh")
    done = subprocess.run(
        [script, *flags], env=variables, cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "DDP x2 on cpu" in done.stdout and not (tmp_path / "requeued").exists()
    assert (tmp_path / "run" / "finished").read_text() == "step-000004\n"


@pytest.mark.slow
def test_the_run_saves_and_ends_when_its_launcher_is_ended(argv, tmp_path):
    out, output = tmp_path / "run", (tmp_path / "output.txt").open("w")
    command = f"{sys.executable} -m accelerate.commands.launch --num_processes 1 --num_machines 1"
    command = f"{command} --mixed_precision no --dynamo_backend no".split()
    command += [str(SCRIPT), *argv("run", steps=10_000)]
    launcher = subprocess.Popen(command, env=environment(), cwd=tmp_path, stdout=output, stderr=output)
    wait_for(lambda: trained_steps(out) > 3)
    launcher.terminate()  # as a scheduler does that knows no other process
    launcher.wait(timeout=60)
    wait_for(lambda: "stopped by a signal after step" in (tmp_path / "output.txt").read_text())
    last = latest_checkpoint(out)
    wait_for(lambda: logged(out)[-1]["step"] == step_of(last))
    checkpoint.load(last)


def wait_for(condition, seconds=90):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


@pytest.mark.slow
def test_two_machines_train_save_at_a_signal_and_finish(argv, tmp_path):
    flags = [flag for flag in argv("run", steps=40) if not flag.startswith("--resume")]
    script = str(ROOT / "scripts" / "launch" / "nodes.sh")

    def start_both():
        port, machines = free_port(), []
        for number in range(2):
            place = {"MACHINES": "2", "MACHINE": str(number), "GPUS": "1", "PORT": str(port)}
            bin_first = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            output = (tmp_path / f"machine-{number}.txt").open("a")
            variables = {**environment(), **place, "MAIN": "127.0.0.1", "PATH": bin_first}
            machines.append(
                subprocess.Popen([script, *flags], env=variables, cwd=ROOT, stdout=output, stderr=output)
            )
        return machines

    machines = start_both()
    wait_for(lambda: trained_steps(tmp_path / "run") > 3)
    machines[1].terminate()
    for machine in machines:
        assert machine.wait(timeout=90) == 0, (tmp_path / "machine-0.txt").read_text()[-3000:]
    assert 3 < step_of(latest_checkpoint(tmp_path / "run")) < 40
    for machine in start_both():
        assert machine.wait(timeout=200) == 0, (tmp_path / "machine-0.txt").read_text()[-3000:]
    assert (tmp_path / "run" / "finished").is_file() and len(logged(tmp_path / "run")) == 40
    assert "DDP x2 on cpu" in (tmp_path / "machine-0.txt").read_text()


def test_tidying_drops_unfinished_checkpoints_and_later_or_torn_lines(tmp_path):
    (tmp_path / ".step-000004.unfinished" / "state").mkdir(parents=True)
    (tmp_path / "step-000002").mkdir()
    (tmp_path / "finished").write_text("step-000002\n")
    lines = [json.dumps({"step": step}) + "\n" for step in (1, 2, 3)]
    (tmp_path / "train.jsonl").write_text("".join(lines) + '{"step": 4, "lo')
    tidy(tmp_path, 2)
    assert (tmp_path / "train.jsonl").read_text() == "".join(lines[:2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "train.jsonl"]


# ---- one folder, one run


def test_a_folder_is_held_by_one_run_however_it_is_spelled(tmp_path, one_process, monkeypatch):
    accelerator, out = engines.start(), tmp_path / "below" / "run"
    (tmp_path / "link").symlink_to(tmp_path / "below")
    monkeypatch.chdir(tmp_path)
    spellings = (out, Path("below/run"), tmp_path / "link" / "run", out / ".." / "run")
    with hold(out, accelerator):
        for spelled in spellings:
            with pytest.raises(BlockingIOError, match="run: another training run writes to it; wait for it"):
                with hold(spelled, accelerator):
                    pass
    assert not out.exists()  # nothing was written
    for spelled in spellings:
        with hold(spelled, accelerator):
            (out / "train.jsonl").touch()
    assert [path.name for path in out.iterdir()] == ["train.jsonl"]


def test_a_run_leaves_the_lock_of_one_that_took_its_place(tmp_path, one_process):
    accelerator, out = engines.start(), tmp_path / "run"
    with hold(out, accelerator):
        shutil.rmtree(out)
        later = hold(out, accelerator)
        later.__enter__()
    with pytest.raises(BlockingIOError):
        hold(out, accelerator).__enter__()
    later.__exit__(None, None, None)


@pytest.mark.parametrize("name", ["favor_lora", "action_recog"])
def test_a_second_run_is_refused_before_it_reads_a_row(tmp_path, one_process, name):
    main = load_script(f"recipes/{name}.py").main
    with hold(tmp_path, engines.start()):
        for more in ([], ["--resume", "auto"]):
            with pytest.raises(BlockingIOError, match="another training run writes to it"):
                main(["--out", str(tmp_path), "--data", "list" if name == "action_recog" else "gone", *more])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_launches_at_once_and_one_after_a_kill(argv, tmp_path):
    def pair(output, **settings):
        folder = tmp_path / output
        folder.mkdir()
        return begin_two(SCRIPT, argv("run", save_every=10, batch_size=1, workers=1, **settings), folder)

    first = pair("first", steps=10_000)
    wait_for_steps(tmp_path / "run", 3, first[0])
    began = time.monotonic()
    second = pair("second", steps=10_000, lora_rank=2)
    for process in second:
        process.join(timeout=120)
    assert [process.exitcode for process in second] == [1, 1], outputs(tmp_path / "second")
    assert time.monotonic() - began < 90 and first[0].is_alive()
    for rank in range(2):
        told = (tmp_path / "second" / f"output-{rank}.txt").read_text()
        assert f"error: {tmp_path}/run: another training run writes to it" in told and "Trace" not in told
    for process in first:
        process.kill()
        process.join()
    steps = 4 + saved_steps(tmp_path / "run")
    third = pair("third", steps=steps)  # at once, though workers of the killed may live for seconds
    finish(*third, folder=tmp_path / "third")
    assert len(logged(tmp_path / "run")) == steps


@pytest.mark.slow
def test_a_run_ends_when_its_folder_is_taken_away(argv, tmp_path):
    out = tmp_path / "run"
    process = begin(SCRIPT, argv("run", steps=10_000, save_every=10_000), tmp_path)
    wait_for_steps(out, 3, process)
    shutil.rmtree(out)
    process.join(timeout=60)
    assert process.exitcode == 1, outputs(tmp_path)
    told = (tmp_path / "output-0.txt").read_text()
    assert f"error: {out} was removed, moved or replaced while the run wrote to it" in told
    assert not out.exists() and "Traceback" not in told
