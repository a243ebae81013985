"""Owns: a detector in training is tested with its averaged weights, and the best checkpoint is kept."""

import json

import numpy as np
import pytest
import torch
from tiny_detector import PIXELS, WINDOWS, WITHOUT, arguments, detector

from moss_vllm.detection import checkpoint, testing
from moss_vllm.detection.in_training import PeriodicTest
from moss_vllm.detection.predictions import Detections
from moss_vllm.detection.schema import collect_detections
from moss_vllm.detection.scores import score_detections
from moss_vllm.training import engines
from moss_vllm.training.average import WeightAverage
from moss_vllm.training.best import BEST


@pytest.fixture
def trained(encoder):
    """A detector whose average is not what it holds."""
    model = detector(encoder, **WITHOUT)
    average = WeightAverage(model.trained_state)
    with torch.no_grad():
        model.detector.head.cls_out.weight *= -1
    return model, average


@pytest.fixture
def tester(trained, encoder, split, tmp_path, one_process):
    model, average = trained
    run = {"model": arguments(encoder, **WITHOUT), "classes": [], "windows": {}, "pixels": {}, "data": "x"}
    how = {"keeper": checkpoint.Keeper(model, run, average), "averaged": average.in_model}
    how["test"] = {"workers": 0}
    return PeriodicTest(engines.start(), model, split, WINDOWS, PIXELS, tmp_path, **how)


def test_the_average_is_tested_and_both_are_kept(tester, trained, split, encoder, tmp_path, capsys):
    model, average = trained
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    tester(5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    averaged, last = (checkpoint.load(tmp_path / BEST, average=one).model for one in (True, False))
    assert torch.equal(averaged.detector.head.cls_out.weight, -last.detector.head.cls_out.weight)
    (line,) = tester.best.lines()
    for tested, is_it in ((averaged, True), (last, False)):
        folder = tmp_path / str(is_it)
        given = {"header": {"checkpoint": "again"}, "workers": 0, "quiet": True}
        testing.detect_videos(tested, split, WINDOWS, PIXELS, folder, **given)
        expected = score_detections(split, collect_detections(folder, split))
        assert (line == {"step": 5, "score": expected.mean["avg"], **expected.summary()}) == is_it
    assert f"; last {line['score']:.2f} (step 5), best {line['score']:.2f} (step 5), of 1 tests" in (
        capsys.readouterr().out
    )


def test_lines_that_a_killed_run_left_are_dropped(tester, tmp_path):
    tester(5)
    (file,) = (tmp_path / "evals" / "step-000005" / "answers").glob("*.jsonl")
    whole = file.read_text()
    file.write_text(whole.replace("0.9", "0.1")[:-50])
    tester(5)
    assert file.read_text() == whole


def test_the_best_by_average_map_is_kept(tester, split, tmp_path):
    kept = []
    for step, right in enumerate((1, 3, 2, 3), start=1):
        tester.keep(step, score_detections(split, first_actions(split, right), draws=5))
        kept.append(json.loads((tmp_path / BEST / "run.json").read_text())["step"])
    assert kept == [1, 2, 2, 2] and tester.best.last_step() == 4
    scores = [line["score"] for line in tester.best.lines()]
    assert scores[1] == scores[3] > scores[2] > scores[0] > 0
    told = f"last {scores[3]:.2f} (step 4), best {scores[1]:.2f} (step 2), of 4 tests"
    assert tester.best.report() == told


def first_actions(split, count):
    """The first actions of the split, found."""
    found, left = {}, count
    for video in split.videos:
        some = video.actions[:left]
        left -= len(some)
        found[video.video_id] = Detections(
            np.array([(one.start_s, one.end_s) for one in some]).reshape(-1, 2),
            np.full(len(some), 0.9),
            np.array([one.label for one in some], np.int64),
        )
    return found
