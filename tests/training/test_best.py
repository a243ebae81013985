"""Owns: the tests of a run in training - a line each, and the best checkpoint so far."""

import json

import pytest

from moss_vllm.training.best import BEST, BestSoFar
from moss_vllm.training.run_folder import tidy


class Keeper:
    """Writes checkpoints that hold their step alone."""

    def state(self):
        return {}

    def save(self, folder, state, step):
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"step": step}))


@pytest.fixture
def best(tmp_path):
    return BestSoFar(tmp_path, Keeper())


def kept(out):
    return json.loads((out / BEST / "run.json").read_text())["step"]


def test_the_best_is_kept_and_of_two_as_good_the_first(best, tmp_path):
    assert (best.best_step(), best.last_step(), best.lines()) == (0, 0, [])
    wanted = []
    for step, score in enumerate((25.0, 75.0, 50.0, 75.0, 100.0), start=1):
        best.add(step, score, {"videos": 3})
        wanted.append(kept(tmp_path))
    assert wanted == [1, 2, 2, 2, 5] == [*wanted[:-1], best.best_step()]
    assert best.lines()[1] == {"step": 2, "score": 75.0, "videos": 3} and best.last_step() == 5
    assert not list(tmp_path.glob(".*"))


def test_a_best_that_is_gone_or_of_steps_the_run_has_left_is_replaced(best, tmp_path):
    best.add(1, 10.0, {})
    best.add(2, 90.0, {})
    tidy(tmp_path, 1)  # goes on from step 1
    assert [line["step"] for line in best.lines()] == [1] and kept(tmp_path) == 2
    best.add(3, 10.0, {})
    assert kept(tmp_path) == 3
    (tmp_path / BEST).rename(tmp_path / f".{BEST}.old.unfinished")  # killed between two renamings
    tidy(tmp_path, 3)
    best.add(4, 10.0, {})
    assert kept(tmp_path) == 4 and not list(tmp_path.glob(".*"))


def test_the_report_has_the_last_and_the_best(best):
    best.add(1000, 71.5, {})
    best.add(2000, 70.25, {})
    assert best.report() == "last 70.25 (step 2,000), best 71.50 (step 1,000), of 2 tests"
