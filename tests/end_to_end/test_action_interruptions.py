"""Owns: an action run that is killed or stopped ends as one that never was; two processes train as one does.

Two processes see the same clips in the same views as one process at twice the batch, and their gradient is
that of the mean over all of them: with a host that has no BatchNorm (`full`, no temporal module) the two runs
agree to the order of float32's sums. BatchNorm, in the ladder and in MOSS, normalises each process's clips by
themselves, as in the authors' code, so there the runs part from the first step on; how far was measured, and
stands beside the tolerance.
"""

import hashlib
import json
import os
import signal
from functools import partial

import pytest
from killing import (
    begin,
    begin_rank,
    check_equal,
    check_whole,
    finish,
    kill_once,
    kill_ten_times,
    run_two,
    wait_for_steps,
)
from launching import ROOT, free_port, logged
from safetensors.torch import load_file

from moss_vllm.data.actions.datasets import read_action
from moss_vllm.data.world.actions import MiniSize, ensure_mini_actions
from moss_vllm.recognition import checkpoint
from moss_vllm.recognition.batches import ActionTrainingSet
from moss_vllm.recognition.schema import CLIP_SCHEMA
from moss_vllm.recognition.scores import collect_clips
from moss_vllm.recognition.testing import score_clips
from moss_vllm.recognition.views import ViewSettings
from moss_vllm.runtime.line_store import read_answers
from moss_vllm.training.run_folder import latest_checkpoint

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "recipes" / "action_recog.py"
WEIGHTS = checkpoint.WEIGHTS_FILE
STEPS = 75  # of 8 clips; an epoch has 3, and after each the model is tested and saved


def record_rows(file):
    """Have a process write down what it trains on."""
    ActionTrainingSet.collate = recorded(ActionTrainingSet.collate, file)


def recorded(collate, file):
    """Writes down each clip that is trained on, with a digest of its views and labels."""

    def collate_and_write(self, rows):
        batch = collate(self, rows)
        views, labels = (batch[name].unflatten(0, (len(rows), -1)).numpy() for name in ("video", "labels"))
        digests = [
            hashlib.sha256(v.tobytes() + y.tobytes()).hexdigest() for v, y in zip(views, labels, strict=True)
        ]
        with open(file, "a") as written:
            written.write(json.dumps(list(zip(batch["row_ids"], digests, strict=True))) + "\n")
        return batch

    return collate_and_write


@pytest.fixture(scope="module")
def actions(tmp_path_factory):
    """24 clips to train on and 12 to test on, of 12 motions."""
    return ensure_mini_actions(tmp_path_factory.mktemp("mini") / "actions", MiniSize(2, 1))


@pytest.fixture(scope="module")
def argv(actions):
    """A function that makes the recipe's flags."""

    def make(out, **settings):
        given = {"data": "list", "root": actions, "out": out, "variant": "mini", "size_px": 28, "frames": 3}
        given |= {"steps": STEPS, "clips_a_step": 8, "batch_size": 8, "eval_every": 1, "eval_batch_size": 2}
        given |= {"repeats": 2, "randaugment": "rand-m7-n2-mstd0.5-inc1", "workers": 0, "tracker": "none"}
        given |= {"resume": "auto", "log_every": 5, **settings}
        return [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]

    return make


@pytest.fixture(scope="module")
def straight(argv, tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    finish(begin(SCRIPT, argv(folder / "run"), folder), folder=folder)
    assert [line["step"] for line in evals(folder / "run")] == list(range(3, STEPS + 1, 3))
    return folder / "run"


def evals(out):
    return lines(out / "evals.jsonl")


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


# ---- kills


def test_eleven_kills_end_as_a_run_without_any(argv, straight, tmp_path):
    out = tmp_path / "run"
    left = kill_ten_times(SCRIPT, argv(out), out, tmp_path, of_a_test=13)
    assert left >= 2  # kills that left a folder half-written
    assert 0 < int(latest_checkpoint(out).name[5:]) < STEPS and not (out / "finished").exists()
    process = begin(SCRIPT, argv(out), tmp_path)  # and one in the last test, of which some clips are done
    file = out / "test" / "answers" / "00-of-01.jsonl"
    kill_once(lambda: file.exists() and file.read_bytes().count(b"\n") >= 4, process, tmp_path)
    before = file.read_bytes()
    before = before[: before.rfind(b"\n") + 1]
    assert before.count(b"\n") < 13 and not (out / "test" / "result.json").exists()
    finish(begin(SCRIPT, argv(out), tmp_path), folder=tmp_path)
    assert file.read_bytes().startswith(before)  # nothing twice
    check_equal(straight, out)
    assert len(logged(out)) == STEPS
    check_whole(out)
    for name in ("evals.jsonl", "finished", "test/result.json", "test/per_class.csv", f"best/{WEIGHTS}"):
        assert (out / name).read_bytes() == (straight / name).read_bytes(), name
    for folder in ("test", *(f"evals/step-{step:06d}" for step in range(3, STEPS + 1, 3))):
        found = [read_answers(run / folder / "answers", CLIP_SCHEMA).answers for run in (straight, out)]
        assert found[0] == found[1] and len(found[0]) == 12
    kept = checkpoint.load(out / "best")
    scores = {line["step"]: line["score"] for line in evals(out)}
    assert kept.run["step"] == max(scores, key=scores.get)


def test_a_stop_signal_saves_and_ends_with_status_0(argv, straight, tmp_path):
    out = tmp_path / "run"
    process = begin(SCRIPT, argv(out, workers=1), tmp_path, os.setsid)
    wait_for_steps(out, 4, process)
    os.killpg(process.pid, signal.SIGTERM)  # as schedulers do, the workers get it too
    finish(process, folder=tmp_path)
    last = latest_checkpoint(out)
    told = (tmp_path / "output-0.txt").read_text()
    assert f"stopped by a signal after step {int(last.name[5:])} of {STEPS}; {last} is whole" in told
    assert 4 <= int(last.name[5:]) < STEPS and not (out / "finished").exists() and not (out / "test").exists()
    assert checkpoint.load(last).run["step"] == int(last.name[5:])
    check_whole(out)
    finish(begin(SCRIPT, argv(out), tmp_path), folder=tmp_path)
    check_equal(straight, out)
    assert len(logged(out)) == STEPS


# ---- two processes


def differences(one, other):
    """Of the losses, relative and by step; of the weights, relative to how far they have moved."""
    losses = [[line["loss"] for line in logged(out)] for out in (one, other)]
    assert [line["clips"] for line in logged(one)] == [line["clips"] for line in logged(other)]
    by_step = [abs(b / a - 1) for a, b in zip(*losses, strict=True)]
    first, second = (load_file(latest_checkpoint(out) / WEIGHTS) for out in (one, other))
    trained = [name for name in first if first[name].is_floating_point()]
    apart = sum(float((first[n] - second[n]).square().sum()) for n in trained) ** 0.5
    return by_step, apart / sum(float(first[n].square().sum()) for n in trained) ** 0.5


def test_two_processes_without_batch_norm_equal_one_at_twice_the_batch(argv, tmp_path):
    how = {"host": "full", "temporal": "none", "steps": 6, "lr": 1e-3}

    def run(place, *, rank=None, **more):
        rows = partial(record_rows, tmp_path / ("rows" if rank is None else f"rows-{rank}"))
        flags = argv(tmp_path / place, **how, **more)
        if rank is None:
            return begin(SCRIPT, flags, tmp_path, rows)
        return begin_rank(SCRIPT, flags, tmp_path, rank, port, rows)

    port = free_port()
    finish(run("one"), folder=tmp_path)
    finish(*(run("two", rank=rank, batch_size=4) for rank in range(2)), folder=tmp_path)
    assert checkpoint.load(tmp_path / "two" / "best").run["processes"] == 2
    one, first, second = (lines(tmp_path / name) for name in ("rows", "rows-0", "rows-1"))
    assert len(one) == 6 and len({name for step in one[:3] for name, _ in step}) == 24  # an epoch has all
    assert one == [[*a, *b] for a, b in zip(first, second, strict=True)]  # the same clips, bit for bit
    losses, apart = differences(tmp_path / "one", tmp_path / "two")
    # Measured: 2e-7 and 1.3e-6. AdamW divides by the gradient's size: rounding shows where that is near 0.
    assert max(losses) < 1e-5 and apart < 1e-4


def test_two_processes_train_the_ladder_and_share_its_tests(argv, actions, tmp_path):
    finish(begin(SCRIPT, argv(tmp_path / "one", steps=6), tmp_path), folder=tmp_path)
    folder = tmp_path / "processes"
    folder.mkdir()
    printed = run_two(SCRIPT, argv(tmp_path / "two", steps=6, batch_size=4), folder)
    assert "DDP x2, precision fp32: 6 steps of 8 clips x 2 views" in printed
    losses, apart = differences(tmp_path / "one", tmp_path / "two")
    # Measured: 0.04 to 6 % of a step's loss, 2 % of the first, and 5 % of the weights' norm after 6 steps.
    assert max(losses) < 0.2 and apart < 0.15
    # The processes shared the clips of each test, and the scores are of all of them.
    split, two = read_action("list", actions, "test"), tmp_path / "two"
    for folder in ("test", "evals/step-000003", "evals/step-000006"):
        files = sorted((two / folder / "answers").glob("*.jsonl"))
        assert [file.name for file in files] == ["00-of-02.jsonl", "01-of-02.jsonl"]
        assert [len(file.read_text().splitlines()) for file in files] == [7, 7]
    result = json.loads((two / "test" / "result.json").read_text())
    assert (result["clips"], result["pending"]) == (12, 0)
    assert result["top1"] == collect_clips(two / "test", split).top1
    # Both tested what was saved: BatchNorm's statistics are the main process's.
    loaded = checkpoint.load(latest_checkpoint(two))
    shown = loaded.run["views"]
    views = ViewSettings(**{**shown, "clips": 1, "crops": 1, "test_scale": shown["train_scale"]})
    how = {"header": {"checkpoint": "again"}, "workers": 0, "batch_size": 2}
    again = score_clips(loaded.model, split, views, tmp_path / "again", **how)
    for row, other in zip(again.rows, collect_clips(two / "evals" / "step-000006", split).rows, strict=True):
        assert row["uid"] == other["uid"] and dict(row["top5"]) == pytest.approx(
            dict(other["top5"]), abs=1e-5
        )
