"""Processes that run a script without a launcher, kills at some moment, and what must be true afterwards.

Lives are many, so a process starts with the imports done (multiprocessing's forkserver). What runs in it is
the script itself, as its own main program.
"""

import gc
import hashlib
import json
import multiprocessing
import os
import random
import resource
import runpy
import signal
import sys
import time

import torch
from launching import free_port, launched_environment, logged
from safetensors.torch import load_file

from moss_vllm.training import held_out
from moss_vllm.training.run_folder import latest_checkpoint

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "moss_vllm.vlm.start_report",
        "moss_vllm.recognition.build",
        "moss_vllm.detection.objective",
        "moss_vllm.boundaries.objective",
        "moss_vllm.evaluation.asking",
    ]
)
CLOCK = {"memory_gib", "seconds", "waited_s", "elapsed_s"}  # what a log's line has of the machine


def run_script(script, argv, variables, output, prepare):
    """What a process does."""
    multiprocessing.set_start_method(None, force=True)  # its workers start as a user's do, and end with it
    gc.freeze()  # what was imported is here to stay, and its pages are shared
    os.environ.clear()  # those of the fork server are as old as it is
    os.environ.update(variables)
    torch.set_num_threads(1)
    prepare and prepare()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout.reconfigure(line_buffering=True)  # in one file with stderr, and whole if it is killed
    sys.argv = [str(script), *argv]
    runpy.run_path(str(script), run_name="__main__")


def limit_files(kib, folder):
    """Let no file of this process grow beyond the limit, as on a full disk; it works in the folder."""
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib * 1024, resource.RLIM_INFINITY))


def begin(script, argv, folder, prepare=None, *, engine="DDP", output=None, **variables):
    """Start a process of a script.

    What it says is added to output-N.txt in the folder, where N is `output`, or its rank. `prepare` is called
    in the process before the script.
    """
    output = str(folder / f"output-{variables.get('RANK', 0) if output is None else output}.txt")
    given = (script, argv, {**launched_environment(engine), **variables}, output, prepare)
    process = PROCESSES.Process(target=run_script, args=given)
    process.start()
    return process


def begin_rank(script, argv, folder, rank, port=0, prepare=None, **how):
    """Start one of two processes of a run; `port` is 0 where they exchange nothing."""
    pair = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return begin(script, argv, folder, prepare, RANK=str(rank), LOCAL_RANK=str(rank), **pair, **how)


def begin_two(script, argv, folder, **how):
    """Start the two processes of a run."""
    port = free_port()
    return [begin_rank(script, argv, folder, rank, port, **how) for rank in range(2)]


def run_two(script, argv, folder, **how):
    """Run the two processes of a run to their good end; returns what the first has said."""
    finish(*begin_two(script, argv, folder, **how), folder=folder)
    return (folder / "output-0.txt").read_text()


def finish(*processes, folder):
    """Wait for processes that should end well."""
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0] * len(processes), outputs(folder)


def record_rows(dataset, seen, file):
    """Have a process write down each row that it trains on, with a digest of what is seen of it.

    Args:
        dataset: the class that makes batches.
        seen: names of the batch's tensors.
    """
    collate = dataset.collate

    def collate_and_write(self, rows):
        batch = collate(self, rows)
        parts = zip(*(batch[name] for name in seen), strict=True)
        digests = [
            hashlib.sha256(b"".join(one.numpy().tobytes() for one in row)).hexdigest() for row in parts
        ]
        with open(file, "a") as written:
            written.write(json.dumps(list(zip(batch["row_ids"], digests, strict=True))) + "\n")
        return batch

    dataset.collate = collate_and_write


def rows_of_both(folder):
    """What one process and two have written; those of the two are joined step by step."""
    one, first, second = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("rows", "rows-0", "rows-1")
    )
    return one, [[*a, *b] for a, b in zip(first, second, strict=True)]


def outputs(folder):
    return "\n----\n".join(file.read_text()[-3000:] for file in sorted(folder.glob("output-*.txt")))


def wait_for_steps(out, steps, process):
    """Until a run has trained so many; the process may not end before."""
    while trained_steps(out) < steps:
        assert process.is_alive(), outputs(out.parent)
        time.sleep(0.02)


def note_measuring(marker):
    """Have a process make a file when it measures the held-out loss, and take its time for it."""

    class Slow(held_out.Batches):
        def __next__(self):
            marker.touch()
            time.sleep(0.3)
            return super().__next__()

    held_out.Batches = Slow


def kill_once(reached, process, folder, wait_s=0.0):
    """Kill a process some time after `reached()` is true."""
    while process.is_alive() and not reached():
        time.sleep(0.001)
    time.sleep(wait_s)
    assert process.is_alive(), outputs(folder)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def is_saving(out, first, steps, of_a_test):
    """A checkpoint is being written, after one that this life has written whole."""
    return latest_checkpoint(out) != first and any(out.glob(".step-*.unfinished"))


def is_keeping_the_best(out, first, steps, of_a_test):
    return any(out.glob(".best.unfinished")) or latest_checkpoint(out) != first


def is_testing(out, first, steps, of_a_test):
    """The model in training has been tested on a part of the rows."""
    tested = sorted(out.glob("evals/step-*/answers/*.jsonl"))
    news = tested and int(tested[-1].parts[-3][5:]) > steps
    return bool(news) and 2 <= tested[-1].read_bytes().count(b"\n") < of_a_test


def is_training(out, first, steps, of_a_test):
    return trained_steps(out) > steps + 1


def is_far(out, steps):
    """So much is done in this life that others would find nothing left."""
    return trained_steps(out) > steps + 6


MOMENTS = (is_saving, is_keeping_the_best, is_testing, is_training)


def kill_ten_times(script, argv, out, folder, *, of_a_test, prepare=None):
    """Kill a run at moments of all kinds; each life goes on from the one before.

    Args:
        of_a_test: lines that a whole test in training has on disk.

    Returns: how many kills left a folder half-written.
    """
    rng, left = random.Random(0), 0
    for number in range(10):
        first, steps = latest_checkpoint(out), saved_steps(out)
        process = begin(script, argv, folder, prepare)
        latest = time.monotonic() + rng.uniform(0, 3)  # every fifth time any moment

        def reached(kind=number % 5, first=first, steps=steps, latest=latest):
            at = time.monotonic() > latest if kind == 4 else MOMENTS[kind](out, first, steps, of_a_test)
            return at or is_far(out, steps)

        kill_once(reached, process, folder, rng.uniform(0, 0.01))
        left += bool(list(out.glob(".*.unfinished")))
    return left


def saved_steps(out):
    last = latest_checkpoint(out)
    return int(last.name[5:]) if last else 0


def trained_steps(out):
    """Whole lines of train.jsonl."""
    return (out / "train.jsonl").read_bytes().count(b"\n") if (out / "train.jsonl").exists() else 0


def weights(out):
    """Everything of the last checkpoint that must not depend on what happened before it."""
    last = latest_checkpoint(out)
    files = {path.stem: path for path in last.glob("*.safetensors")}
    files |= {name: last / "state" / f"{name}.safetensors" for name in ("optimizer", "random-0")}
    return {f"{part} {k}": v for part, file in files.items() for k, v in load_file(file).items()}


def check_equal(one, other):
    """Two runs have the same last checkpoint, bit for bit, and the same log but for the clock."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    lines = [
        [{k: v for k, v in line.items() if k not in CLOCK} for line in logged(out)] for out in (one, other)
    ]
    assert lines[0] == lines[1]


def check_whole(out):
    """No file of the run is half-written."""
    assert not list(out.rglob("*unfinished*")) and not list(out.rglob("*.part*"))
    for path in [*out.rglob("*.json"), *out.rglob("*.jsonl")]:
        for text in [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines():
            json.loads(text)
    for path in out.rglob("*.safetensors"):
        load_file(path)
