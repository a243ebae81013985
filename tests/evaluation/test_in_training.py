"""Owns: questions asked while a model trains - the same each time, of the live model, changing nothing."""

import json

import pytest
import torch
from launching import as_flags, logged
from safetensors.torch import load_file

from moss_vllm.data.rows import BadRow
from moss_vllm.evaluation.in_training import Checkup, open_benchmark
from moss_vllm.training import engines
from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.adapter import ADAPTER_FILE

pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def start(recipe, tiny_base, world, tmp_path):
    """A function that trains four steps into the test's own folder."""

    def run(out, *more):
        given = {"model": tiny_base, "data": world / "FAVOR", "out": tmp_path / out, "steps": 4}
        given |= {"batch_size": 2, "workers": 0, "lora_rank": 4, "lora_dropout": 0.3, "save_every": 2}
        return recipe.main([*as_flags({**given, "tracker": "none"}), *more])

    return run


@pytest.mark.slow
def test_evaluating_changes_nothing_of_the_training(start, world, tmp_path):
    start("plain")
    asked = ["--eval-data", str(world / "MotionBench"), "--eval-every", "2", "--eval-questions", "6"]
    start("asked", *asked)
    assert [x["loss"] for x in logged(tmp_path / "asked")] == [x["loss"] for x in logged(tmp_path / "plain")]
    adapter = f"step-000004/{ADAPTER_FILE}"
    one, other = (load_file(tmp_path / out / adapter) for out in ("plain", "asked"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    lines = [json.loads(line) for line in (tmp_path / "asked" / "evals.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert [line["counts"]["total"]["all"] for line in lines] == [6, 6]
    first, second = ([sample["question"] for sample in line["samples"]] for line in lines)
    assert first == second and 0 < len(first) <= 8
    # The live model's own answers: those of the checkpoint of the same step.
    loaded = checkpoint.load(tmp_path / "asked" / "step-000004")
    clips = loaded.run["protocol"]
    again = Checkup(engines.start(), loaded.model, loaded.processor, clips, world / "MotionBench", tmp_path)
    again.choose(6)
    again(4)
    (line,) = [json.loads(text) for text in (tmp_path / "evals.jsonl").read_text().splitlines()]
    assert line["samples"] == lines[1]["samples"] and line["accuracy"] == lines[1]["accuracy"]


@pytest.mark.slow
def test_a_resumed_run_has_each_evaluation_once(start, world, tmp_path):
    asked = ["--eval-data", str(world / "FAVOR"), "--eval-every", "2", "--eval-questions", "1"]
    start("run", *asked)
    start("run", *asked, "--resume", str(tmp_path / "run" / "step-000002"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "evals.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4] and lines[0]["benchmark"] == "FAVOR-Bench"


def test_questions_are_chosen_evenly(world, processor, tmp_path):
    checkup = Checkup(engines.start(), None, processor, {}, world / "MotionBench", tmp_path)
    every = [question.uid for video in checkup.videos for question in video.questions]
    checkup.choose(5)
    kept = [question.uid for video in checkup.videos for question in video.questions]
    assert kept == [every[number * len(every) // 5] for number in range(5)]
    checkup.choose(1000)
    assert [question.uid for video in checkup.videos for question in video.questions] == kept


def test_a_sharded_model_cannot_be_asked(world, tmp_path, monkeypatch):
    for engine in ("DeepSpeed ZeRO-3", "FSDP2"):
        monkeypatch.setattr(engines, "name", lambda accelerator, engine=engine: engine)
        with pytest.raises(ValueError, match=f"{engine} shards the model, .*drop --eval-data"):
            Checkup(None, None, None, {}, world / "MotionBench", tmp_path)


def test_a_folder_of_neither_benchmark_is_named(tmp_path):
    with pytest.raises(BadRow, match=r"folder: holds none of .*meta\.jsonl.*pass a MotionBench or FAVOR"):
        open_benchmark(tmp_path)
