"""Owns: an evaluation by two processes, killed at any moment, ends with the table of one that never was."""

import json
import random
import signal
import time

import pytest
from launching import ROOT, launch, start

from moss_vllm.data.world.benchmarks import WorldSize, ensure_world

SCRIPT = ROOT / "eval" / "motionbench.py"
KILLS = {"moss": 12, "plain": 4}  # only with MOSS did a run that was killed ever fail to go on

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    size = WorldSize(train_clips=1, motionbench_questions=400, withheld_questions=5, favor_questions=5)
    return ensure_world(tmp_path_factory.mktemp("many") / "world", size)


@pytest.fixture(params=["moss", "plain"])
def argv(request, checkpoints, questions):
    small = ["--device", "cpu", "--short-side-px", "84", "--batch-size", "2"]  # few answers at a time
    return ["--ckpt", str(checkpoints[request.param]), "--data", str(questions), *small]


def stored(out):
    """Whole lines of all files."""
    files = sorted((out / "answers").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_bytes().split(b"\n")[:-1]]


def answered(out):
    return [answer["uid"] for row in stored(out) for answer in row.get("answers", [])]


def test_kills_end_in_the_table_of_a_run_without_any(argv, request, tmp_path):
    wanted = KILLS[request.node.callspec.params["argv"]]
    rng = random.Random(0)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    launch("DDP", [*argv, "--out", str(whole)], tmp_path, SCRIPT)
    assert len(stored(whole)) - 2 >= 3 * wanted  # videos: every life gets to some
    kills = 0
    while kills < wanted:
        ranks = {
            rank: start([*argv, "--out", str(out)], tmp_path, rank=rank, processes=2, script=SCRIPT)
            for rank in rng.sample(range(2), 2)  # whoever starts later is the slower one
        }
        aim = len(answered(out)) + rng.randint(1, 4)
        while len(answered(out)) < aim and all(process.poll() is None for process in ranks.values()):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        for rank in rng.sample(range(2), 2):  # one dies first, the other goes on for a moment
            ranks[rank].kill()
            status = ranks[rank].wait()  # 0: its share was done before
            assert status in (0, -signal.SIGKILL), (tmp_path / f"output-{rank}.txt").read_text()[-3000:]
            kills += status == -signal.SIGKILL
            time.sleep(rng.choice([0, 0.1]))
        assert 0 < len(answered(out)) < len(answered(whole)), f"answered all between {kills} kills"
    launch("DDP", [*argv, "--out", str(out)], tmp_path, SCRIPT)
    assert sorted(answered(out)) == sorted(answered(whole))  # each once, none missing
    for name in ("table.md", "table.tex"):
        assert (out / name).read_text() == (whole / name).read_text()
    texts = [
        {a["uid"]: a["output"] for row in stored(o) for a in row.get("answers", [])} for o in (out, whole)
    ]
    assert texts[0] == texts[1] and not list(out.rglob("*.part*"))


def test_the_death_of_one_process_costs_nothing_and_merging_says_what_is_left(argv, tmp_path):
    out = tmp_path / "out"
    one = start([*argv, "--out", str(out)], tmp_path, rank=1, processes=2, script=SCRIPT)
    assert one.wait(timeout=300) == 0, (tmp_path / "output-1.txt").read_text()[-3000:]
    told = (tmp_path / "output-1.txt").read_text()
    assert "questions are not answered yet" in told and not (out / "table.md").exists()
    other = start([*argv, "--out", str(out)], tmp_path, rank=0, processes=2, script=SCRIPT)
    assert other.wait(timeout=300) == 0
    table = (out / "table.md").read_bytes()
    merging = start(["--merge", *argv, "--out", str(out)], tmp_path, rank=2, script=SCRIPT)
    assert merging.wait(timeout=300) == 0 and (out / "table.md").read_bytes() == table
