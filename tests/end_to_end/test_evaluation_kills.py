"""Owns: an evaluation by two processes, killed at any moment, ends with the table of one that never was."""

import json
import random
import signal
import time

import pytest
from killing import begin, begin_rank, finish, outputs, run_two
from launching import ROOT

from moss_vllm.data.world.benchmarks import WorldSize, ensure_world

SCRIPT = ROOT / "eval" / "motionbench.py"
KILLS = {"moss": 4, "moss option_text": 2, "plain": 2}  # only with MOSS did a killed run ever fail to go on

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    size = WorldSize(train_clips=1, motionbench_questions=80, withheld_questions=5, favor_questions=5)
    return ensure_world(tmp_path_factory.mktemp("many") / "world", size)


@pytest.fixture(scope="module", params=KILLS)
def argv(request, checkpoints, questions):
    checkpoint, _, protocol = request.param.partition(" ")
    small = ["--device", "cpu", "--short-side-px", "84", "--batch-size", "2"]  # few answers at a time
    small += ["--protocol", protocol or "letter"]
    return ["--ckpt", str(checkpoints[checkpoint]), "--data", str(questions), *small]


@pytest.fixture(scope="module")
def whole(argv, tmp_path_factory):
    """The folder of an evaluation whose processes worked one after the other, undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    argv = [*argv, "--out", str(folder / "out")]
    finish(begin_rank(SCRIPT, argv, folder, 1), folder=folder)
    assert "questions are not answered yet" in (folder / "output-1.txt").read_text()
    assert not (folder / "out" / "table.md").exists()
    finish(begin_rank(SCRIPT, argv, folder, 0), folder=folder)
    return folder / "out"


def stored(out):
    """Whole lines of all files."""
    files = sorted((out / "answers").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_bytes().split(b"\n")[:-1]]


def answered(out):
    return [answer["uid"] for row in stored(out) for answer in row.get("answers", [])]


def test_kills_end_in_the_table_of_a_run_without_any(argv, whole, request, tmp_path):
    wanted = KILLS[request.node.callspec.params["argv"]]
    rng, out = random.Random(0), tmp_path / "killed"
    assert len(stored(whole)) - 2 >= 3 * wanted  # videos: every life gets to some
    kills = 0
    while kills < wanted:
        ranks = {
            rank: begin_rank(SCRIPT, [*argv, "--out", str(out)], tmp_path, rank)
            for rank in rng.sample(range(2), 2)  # whoever starts later is the slower one
        }
        aim = len(answered(out)) + rng.randint(1, 4)
        while len(answered(out)) < aim and all(process.is_alive() for process in ranks.values()):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        for rank in rng.sample(range(2), 2):  # one dies first, the other goes on for a moment
            ranks[rank].kill()
            ranks[rank].join()
            status = ranks[rank].exitcode  # 0: its share was done before
            assert status in (0, -signal.SIGKILL), outputs(tmp_path)
            kills += status == -signal.SIGKILL
            time.sleep(rng.choice([0, 0.1]))
        assert 0 < len(answered(out)) < len(answered(whole)), f"answered all between {kills} kills"
    run_two(SCRIPT, [*argv, "--out", str(out)], tmp_path)
    assert sorted(answered(out)) == sorted(answered(whole))  # each once, none missing
    for name in ("table.md", "table.tex"):
        assert (out / name).read_text() == (whole / name).read_text()
    texts = [
        {a["uid"]: a["output"] for row in stored(o) for a in row.get("answers", [])} for o in (out, whole)
    ]
    assert texts[0] == texts[1] and not list(out.rglob("*.part*"))


def test_the_death_of_one_process_costs_nothing_and_merging_says_what_is_left(argv, whole, tmp_path):
    table = (whole / "table.md").read_bytes()
    data = argv[argv.index("--data") :][:2]
    finish(begin(SCRIPT, ["--merge", "--out", str(whole), *data], tmp_path), folder=tmp_path)
    assert (whole / "table.md").read_bytes() == table
