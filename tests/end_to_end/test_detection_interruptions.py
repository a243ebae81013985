"""Owns: a detection run that is killed ends as one that never was; two processes train as one does.

Two processes see the same windows as one process at twice the batch, and their gradient is that of the same
sum with the same divisor. Without MOSS the two runs differ by the order of float32's sums and by drop-path,
which each process draws for itself: it is switched off here. MOSS has BatchNorm, which normalises each
process's windows by themselves; how far the runs part then was measured, and stands beside the tolerance.
"""

import json
import os
import shlex
import signal
import time
from functools import partial

import pytest
import torch
from detection_runs import WITHOUT_MOSS, flags, shrink_detector
from killing import (
    begin,
    begin_rank,
    check_equal,
    check_whole,
    finish,
    kill_once,
    kill_ten_times,
    record_rows,
    rows_of_both,
)
from launching import ROOT, free_port, logged
from safetensors.torch import load_file
from timm.layers import DropPath
from tiny_detector import write_encoder, write_videos

from moss_vllm.detection import checkpoint
from moss_vllm.detection.batches import DetectionTrainingSet
from moss_vllm.detection.schema import DETECTION_SCHEMA
from moss_vllm.runtime.line_store import AnswerFile, read_answers
from moss_vllm.training.run_folder import latest_checkpoint

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "recipes" / "detection.py"
STEPS = 75  # of two windows; an epoch is a step
EVERY = 3  # steps from test to test


def store_slowly():
    """Have a test take a second more for each video: it would be over before it is killed."""
    shrink_detector()
    add = AnswerFile.add

    def add_and_wait(self, line):
        add(self, line)
        time.sleep(1)

    AnswerFile.add = add_and_wait


def store_slowly_and_hear_ctrl_c():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    store_slowly()


def without_drop_path():
    shrink_detector()
    DropPath.forward = lambda self, x: x


def record(file):
    without_drop_path()
    record_rows(DetectionTrainingSet, ("clips", "mask"), file)


@pytest.fixture(scope="module")
def argv(tmp_path_factory):
    """A function that makes the recipe's flags."""
    folder = tmp_path_factory.mktemp("data")
    root, encoder = folder / "thumos-14", write_encoder(folder / "videomae")
    write_videos(root)

    def make(out, **settings):
        given = {"steps": STEPS, "eval_from": 1, "eval_every": EVERY, "resume": "auto", "log_every": 5}
        return flags(root, encoder, out, **{**given, "ema_decay": 0.9, "lr": 1e-3, **settings})

    return make


@pytest.fixture(scope="module")
def straight(argv, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    finish(begin(SCRIPT, argv(folder / "run"), folder, shrink_detector), folder=folder)
    assert [line["step"] for line in evals(folder / "run")] == list(range(EVERY, STEPS + 1, EVERY))
    return folder / "run"


def evals(out):
    return [json.loads(line) for line in (out / "evals.jsonl").read_text().splitlines()]


def test_eleven_kills_end_as_a_run_without_any(argv, straight, tmp_path):
    out = tmp_path / "run"
    left = kill_ten_times(SCRIPT, argv(out), out, tmp_path, of_a_test=4, prepare=shrink_detector)
    assert left >= 2  # kills that left a folder half-written
    assert 0 < int(latest_checkpoint(out).name[5:]) < STEPS and not (out / "finished").exists()
    # And one in the last test, of which some videos are done.
    process = begin(SCRIPT, argv(out), tmp_path, store_slowly)
    file = out / "test" / "answers" / "00-of-01.jsonl"
    kill_once(lambda: file.exists() and file.read_bytes().count(b"\n") >= 2, process, tmp_path)
    before = file.read_bytes()
    before = before[: before.rfind(b"\n") + 1]
    assert before.count(b"\n") < 4 and not (out / "test" / "result.json").exists()
    finish(begin(SCRIPT, argv(out), tmp_path, shrink_detector), folder=tmp_path)
    assert file.read_bytes().startswith(before)  # nothing twice
    check_equal(straight, out)
    assert len(logged(out)) == STEPS
    check_whole(out)
    results = [json.loads((run / "test" / "result.json").read_text()) for run in (straight, out)]
    assert results[0] == {**results[1], "checkpoint": results[0]["checkpoint"]}
    for name in ("evals.jsonl", "finished", "test/per_class.csv", "test/predictions.json"):
        assert (out / name).read_bytes() == (straight / name).read_bytes(), name
    for name in (checkpoint.WEIGHTS_FILE, checkpoint.AVERAGE_FILE):
        assert (out / "best" / name).read_bytes() == (straight / "best" / name).read_bytes(), name
    for step in range(EVERY, STEPS + 1, EVERY):
        folder = f"evals/step-{step:06d}/answers"
        found = [read_answers(run / folder, DETECTION_SCHEMA).answers for run in (straight, out)]
        assert found[0] == found[1] and len(found[0]) == 3


def test_ctrl_c_in_the_last_test_names_the_command_that_goes_on(argv, tmp_path):
    out, words = tmp_path / "run", argv(tmp_path / "run", steps=3, workers=1)
    process = begin(SCRIPT, words, tmp_path, store_slowly_and_hear_ctrl_c)
    file = out / "test" / "answers" / "00-of-01.jsonl"
    while process.is_alive() and not (file.exists() and file.read_bytes().count(b"\n") >= 2):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    told = (tmp_path / "output-0.txt").read_text()
    assert process.exitcode == 130 and "Traceback" not in told
    assert told.splitlines()[-1] == f"stopped; to go on: {shlex.join(['python', str(SCRIPT), *words])}"
    assert not (out / "finished").exists()
    finish(begin(SCRIPT, words, tmp_path, shrink_detector), folder=tmp_path)
    assert (out / "finished").is_file() and (out / "test" / "result.json").is_file()


# ---- two processes


def differences(one, other):
    """Of the losses, relative and by step; of weights and of averages, relative to their size."""
    losses = [[line["loss"] for line in logged(out)] for out in (one, other)]
    assert [line["clips"] for line in logged(one)] == [line["clips"] for line in logged(other)] == [2] * 6
    by_step = [abs(b / a - 1) for a, b in zip(*losses, strict=True)]
    apart = []
    for file in (checkpoint.WEIGHTS_FILE, checkpoint.AVERAGE_FILE):
        first, second = (load_file(latest_checkpoint(out) / file) for out in (one, other))
        assert torch.equal(first["loss.normaliser"], second.pop("loss.normaliser"))  # of all positives
        real = [name for name in second if second[name].is_floating_point()]
        between = sum(float((first[name] - second[name]).square().sum()) for name in real) ** 0.5
        apart.append(between / sum(float(first[name].square().sum()) for name in real) ** 0.5)
    return by_step, apart


def run_both(argv, tmp_path, **settings):
    """One process at a batch of two, and two processes at one each."""
    how, port = {"steps": 6, "eval_every": 6, "log_every": 1, **settings}, free_port()
    rows = partial(record, tmp_path / "rows")
    finish(begin(SCRIPT, argv(tmp_path / "one", **how), tmp_path, rows), folder=tmp_path)
    words = argv(tmp_path / "two", batch_size=1, **how)
    ranks = (
        begin_rank(SCRIPT, words, tmp_path, rank, port, partial(record, tmp_path / f"rows-{rank}"))
        for rank in range(2)
    )
    finish(*ranks, folder=tmp_path)
    assert checkpoint.read_run(tmp_path / "two" / "best")["processes"] == 2
    one, two = rows_of_both(tmp_path)
    assert len(one) == 6 and one == two  # bit for bit
    return differences(tmp_path / "one", tmp_path / "two")


def test_two_processes_without_moss_equal_one_at_twice_the_batch(argv, tmp_path):
    losses, apart = run_both(argv, tmp_path, **WITHOUT_MOSS)
    assert max(losses) < 1e-6 and max(apart) < 1e-6  # measured: 9e-8, and 2e-8 of the weights


def test_two_processes_in_float16_are_near_one(argv, tmp_path):
    losses, apart = run_both(argv, tmp_path, precision="fp16", **WITHOUT_MOSS)
    scales = [[line["loss_scale"] for line in logged(tmp_path / name)] for name in ("one", "two")]
    assert scales[0] == scales[1] == [65536.0] * 6
    assert max(losses) < 1e-3 and max(apart) < 2e-3  # measured: 1e-4, and 2e-4 of the weights


def test_two_processes_with_moss_train_and_share_the_tests(argv, tmp_path):
    losses, apart = run_both(argv, tmp_path)
    assert max(losses) < 1e-3 and max(apart) < 1e-2  # measured: 8e-6, and 1e-3 of the weights
    files = sorted((tmp_path / "two" / "test" / "answers").glob("*.jsonl"))
    assert [file.name for file in files] == ["00-of-02.jsonl", "01-of-02.jsonl"]
    assert [file.read_bytes().count(b"\n") for file in files] == [3, 2]  # a header, and two videos and one
