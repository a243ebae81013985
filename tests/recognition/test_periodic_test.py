"""Owns: a classifier in training is tested with one view per clip; what decides which is best."""

import json
from types import SimpleNamespace

import pytest

from moss_vllm.data.actions.datasets import ActionSplit
from moss_vllm.recognition import checkpoint
from moss_vllm.recognition.in_training import PeriodicTest
from moss_vllm.recognition.scores import Accuracy, collect_clips
from moss_vllm.recognition.settings import choose_views
from moss_vllm.recognition.testing import score_clips
from moss_vllm.recognition.views import CLIP_MEAN, CLIP_STD, ViewSettings
from moss_vllm.training import engines
from moss_vllm.training.best import BEST


def row(label, correct):
    return {"uid": "x", "label": label, "answer": "a", "correct": correct, "in_top5": True}


@pytest.fixture
def tester(split, classifier, tmp_path, one_process):
    run = {"model": {}, "classes": [], "views": {}, "data": "list"}
    settings = ViewSettings(frames=2, size_px=14, train_scale=24, test_scale=24)
    given = {"keeper": checkpoint.Keeper(classifier, run), "test": {"workers": 0, "batch_size": 4}}
    return PeriodicTest(engines.start(), classifier, split, settings, tmp_path, **given)


def kept(out):
    return json.loads((out / BEST / "run.json").read_text())["step"]


def test_one_view_is_scaled_as_in_the_authors_code(split, tmp_path):
    """`get_augmentation(False)` and, of Diving48, their test with one crop: to 256, of which 224 are cut."""
    encoder = SimpleNamespace(frames_per_encoded=1, mean=CLIP_MEAN, std=CLIP_STD, patch_size=16)
    for data, scale, one_crop in (
        ("k400", 256, 224),
        ("diving48", 256, 256),
        ("ssv2", (256, 320), (256, 320)),
    ):
        views = choose_views(data, "paper", "b", {}, encoder)
        shown = PeriodicTest(None, None, split, views, tmp_path, keeper=None, test={}).views
        assert (shown.test_scale, shown.size_px, shown.clips, shown.crops) == (scale, 224, 1, 1)
        assert choose_views(data, "paper", "b", {"crops": 1}, encoder).test_scale == one_crop
    halved = choose_views("diving48", "paper", "b", {"crops": 1, "size_px": 112}, encoder)
    assert (halved.test_scale, halved.size_px) == (128, 112)


def test_for_finegym_the_mean_over_classes_decides(tester, split, tmp_path):
    even = Accuracy([row(0, True), row(0, False), row(0, False), row(1, True)])  # 50 %, mean 66.7
    uneven = Accuracy([row(0, True), row(0, True), row(0, True), row(1, False)])  # 75 %, mean 50
    for data, best in (("list", 2), ("gym99", 1)):
        tester.split = ActionSplit(data, "test", split.classes, split.clips, (), None, "")
        (tmp_path / "evals.jsonl").unlink(missing_ok=True)
        tester.keep(1, even)
        tester.keep(2, uneven)
        assert kept(tmp_path) == best


def test_a_periodic_test_shows_one_view_and_drops_what_a_killed_run_left(tester, split, classifier, tmp_path):
    classifier.train()
    tester(5)
    assert not classifier.training
    (line,) = tester.best.lines()
    one_view = ViewSettings(frames=2, size_px=14, train_scale=24, test_scale=24, clips=1, crops=1)
    how = {"header": {"checkpoint": "again"}, "workers": 0, "batch_size": 4}
    expected = score_clips(classifier, split, one_view, tmp_path / "again", **how)
    folder = tmp_path / "evals" / "step-000005"
    assert collect_clips(folder, split).rows == expected.rows
    assert line == {"step": 5, "score": expected.top1, **expected.summary()} and line["clips"] == 7
    file = folder / "answers" / "00-of-01.jsonl"
    whole = file.read_text()
    file.write_text(whole.replace('"correct": false', '"correct": true')[:-50])  # of other weights, cut short
    tester(5)
    assert file.read_text() == whole and tester.best.lines() == [line, line]
