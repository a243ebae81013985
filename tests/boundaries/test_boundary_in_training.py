"""Owns: a boundary model in training is tested as eval/ tests it, and the best by F1@0.05 is kept."""

import pytest
import torch
from test_boundary_checkpoint import equal, keeper_of
from tiny_boundaries import CLIPS, WITHOUT, gebd, write_moving

from moss_vllm.boundaries import checkpoint
from moss_vllm.boundaries.in_training import PeriodicTest
from moss_vllm.boundaries.schema import BOUNDARY_SCHEMA
from moss_vllm.data.boundaries.datasets import read_boundaries
from moss_vllm.runtime.line_store import read_answers
from moss_vllm.training import engines
from moss_vllm.training.best import BEST


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    root = tmp_path_factory.mktemp("kinetics")
    write_moving(root)
    return read_boundaries("kinetics_gebd", root, "test")


@pytest.fixture
def tester(split, tmp_path, one_process):
    model = gebd(**WITHOUT)
    how = {"keeper": keeper_of(model, **WITHOUT), "threshold": 0.5, "test": {"workers": 0}}
    return PeriodicTest(engines.start(), model, split, CLIPS, tmp_path, **how)


def test_scores_are_logged_and_the_best_is_kept(tester, split, tmp_path, capsys):
    tester.model.train()
    tester(5)
    (line,) = tester.best.lines()
    assert line["step"] == 5 and line["score"] == line["F1@0.05"] and line["clips"] == 2  # of 3 one is odd
    stored = read_answers(tmp_path / "evals" / "step-000005" / "answers", BOUNDARY_SCHEMA)
    assert list(stored.answers) == [video.video_id for video in split.videos]
    assert equal(checkpoint.load(tmp_path / BEST).model.state_dict(), tester.model.state_dict())
    told = f"; last {line['score']:.2f} (step 5), best {line['score']:.2f} (step 5), of 1 tests"
    assert told in capsys.readouterr().out


def test_another_test_replaces_the_best_where_it_is_better_alone(tester, tmp_path):
    tester(5)
    (line,) = tester.best.lines()
    with torch.no_grad():
        tester.model.head.classifier.out.bias -= 50  # finds nothing
    tester(6)
    assert tester.best.best_step() == 5 and tester.best.lines()[1]["score"] <= line["score"]
    tester(6)  # lines of a run that was killed in it are overwritten
    stored = read_answers(tmp_path / "evals" / "step-000006" / "answers", BOUNDARY_SCHEMA)
    assert len(stored.answers) == 3
