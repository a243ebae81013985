"""Owns: the miniature in the package is a real, small, plain-file VideoLLaMA3 that reads appearance."""

import copy
import functools
import json
import queue
from pathlib import Path

import make_miniature
import miniature_families
import miniature_sights
import miniature_stages
import numpy as np
import pytest
import torch
from transformers import VideoLlama3ForConditionalGeneration, VideoLlama3Processor

from moss_vllm.data.world import appearance
from moss_vllm.vlm.checkpoint import load
from moss_vllm.vlm.places import MINIATURE

FAMILIES = miniature_families.FAMILIES
RECORD = json.loads((MINIATURE / "miniature.json").read_text())


@pytest.fixture(scope="module")
def miniature():
    return load("miniature")


def test_it_is_of_the_real_classes_and_small(miniature):
    assert type(miniature.model) is VideoLlama3ForConditionalGeneration
    assert type(miniature.processor) is VideoLlama3Processor
    files = {path.name: path.stat().st_size for path in MINIATURE.iterdir()}
    assert sum(files.values()) < 8 * 2**20
    assert {Path(name).suffix for name in files} <= {".json", ".jsonl", ".jinja", ".safetensors"}


@pytest.mark.slow
def test_appearance_accuracy_is_what_the_record_says(miniature):
    """On fewer and other sights than the record's: within four standard errors, and far above guessing."""
    recorded = RECORD["appearance_accuracy_percent"]
    family = FAMILIES["video_llama_3"]
    found = make_miniature.measure(miniature.model, miniature.processor, family, sights=40, seed=123)
    error = 100 * np.sqrt(0.25 / (40 * 3))
    assert abs(found["all"] - recorded["all"]) < 4 * error
    assert recorded["all"] > 50  # guessing gives 20 to 33


def test_labels_of_pre_training_do_not_depend_on_motion():
    """Sights drawn from one seed say the same, however fast time runs in them."""
    for seed in range(20):
        slow, fast = (appearance.draw_sight(np.random.default_rng(seed), frames=8, fps=fps) for fps in (2, 8))
        assert slow.caption == fast.caption and slow.choices == fast.choices
        assert not np.array_equal(slow.frames, fast.frames) or np.array_equal(slow.frames[0], slow.frames[-1])


@functools.cache
def begun(family):
    return FAMILIES[family].begin(0)


def stage(folder, family, name):
    """A stage of four steps from the weights it begins with, saved after every second one."""
    folder.mkdir(exist_ok=True)
    (folder / "unfinished").mkdir(exist_ok=True)
    parser, (model, processor) = make_miniature.options(), begun(family)
    flags = ["--out", str(folder), "--family", family, "--save-every", "2", f"--{name}", "4"]
    args = make_miniature.complete(parser, parser.parse_args(flags))
    return miniature_stages.Stage(name, copy.deepcopy(model), processor, args)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for family, entry in FAMILIES.items() for name in entry.trains],
)
def test_an_interrupted_stage_ends_as_one_that_was_not(tmp_path, monkeypatch, family, name):
    drawn = {}

    def batches(self, first):
        make = {
            "seeing": miniature_sights.Pictures(self.family, self.processor, 2),
            "matching": miniature_sights.Matches(self.family, FAMILIES["video_llama_3"], self.processor, 2),
        }.get(name, miniature_sights.Conversations(self.family, self.processor, name == "reading", 2))
        for number in range(first, drawn["end"]):
            yield make(np.random.default_rng(number))

    monkeypatch.setattr(miniature_stages.Stage, "batches", batches)
    whole, halves = (stage(tmp_path / part, family, name) for part in ("whole", "halves"))
    drawn["end"] = 4
    miniature_stages.train(whole, 1, queue.Queue())
    drawn["end"] = 3
    with pytest.raises(StopIteration):
        miniature_stages.train(halves, 1, queue.Queue())
    drawn["end"] = 4
    again = stage(tmp_path / "halves", family, name)
    reports = queue.Queue()
    miniature_stages.train(again, 1, reports)
    assert reports.get()["step"] == 4
    expected, found = whole.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    fresh = stage(tmp_path / "fresh", family, name).model.state_dict()
    moved = {key for key in expected if not torch.equal(expected[key], fresh[key])}
    assert moved and moved <= {*whole.trained(), "lm_head.weight"}


@pytest.mark.parametrize("flag", ["--seeing", "--save-every", "--measured"])
def test_counts_below_one_are_refused_before_the_work(tmp_path, capsys, flag):
    with pytest.raises(SystemExit) as stopped:
        make_miniature.main(["--out", str(tmp_path / "out"), flag, "0"])
    assert stopped.value.code == 2 and f"{flag} is 0; it must be at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("family", "flag"), [("qwen2_5_vl", "--seeing"), ("video_llama_3", "--matching")])
def test_a_stage_that_the_family_does_not_have_is_refused(tmp_path, capsys, family, flag):
    with pytest.raises(SystemExit) as stopped:
        make_miniature.main(["--out", str(tmp_path / "out"), "--family", family, flag, "4"])
    message = f"{flag} has no effect with --family {family}; leave it out"
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unfinished_work_of_other_settings_is_refused(tmp_path):
    make_miniature.claim(tmp_path / "unfinished", {"seed": 0, "seeing": 4})
    make_miniature.claim(tmp_path / "unfinished", {"seed": 0, "seeing": 4})
    with pytest.raises(SystemExit, match="was begun with .*'seeing': 4.*; remove it or name another --out"):
        make_miniature.claim(tmp_path / "unfinished", {"seed": 0, "seeing": 5})


def test_answer_weights_give_every_answer_the_same_share():
    labels = torch.tensor(
        [[-100, 5, 6, -100, 7, 8, 9, 9, -100], [-100, -100, 3, -100, -100, -100, -100, -100, 4]]
    )
    weights = miniature_stages.answer_weights(labels)
    third = torch.tensor([[0, 0.5, 0.5, 0, 0.25, 0.25, 0.25, 0.25, 0], [0, 0, 1, 0, 0, 0, 0, 0, 1]])
    torch.testing.assert_close(weights, third)
