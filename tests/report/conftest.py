"""Folders to make pages of."""

import json

import pytest
from answer_folders import LETTER, ask, in_turn
from run_folders import eval_line, jsonl, settings, step_line

from moss_vllm.data.favor import read_favor_bench
from moss_vllm.data.motionbench import read_motionbench
from moss_vllm.evaluation.protocols import MOTIONBENCH


@pytest.fixture
def folder(tmp_path):
    """A finished run of ten steps, with two evaluations and a rejected row."""
    run = tmp_path / "favor_lora"
    (run / "step-000010").mkdir(parents=True)
    (run / "settings.json").write_text(json.dumps(settings()))
    (run / "train.jsonl").write_text(jsonl(step_line(step) for step in range(1, 11)))
    asked = {
        5: [("A", False), ("B", True), ("A", False)],
        10: [("B", True), ("B", True), ("it moves", False)],
    }
    (run / "evals.jsonl").write_text(jsonl(eval_line(*one) for one in asked.items()))
    row = {"row_id": "row 5", "source": "FAVOR", "kind": "missing", "reason": "video 'a.mp4' is nowhere"}
    (run / "rejected.jsonl").write_text(jsonl([row]))
    (run / "finished").write_text("step-000010\n")
    return run


@pytest.fixture(scope="session")
def motion(world):
    return read_motionbench(world / "MotionBench", world / "MotionBench", split="all", allow_missing=True)


@pytest.fixture(scope="session")
def favor(world):
    return read_favor_bench(world / "FAVOR", world / "FAVOR")


@pytest.fixture
def small(motion, tmp_path):
    """The answers of twelve videos, one of them failed."""
    out = tmp_path / "small"
    failed = {motion[2].video_id: "its header is lost"}
    ask(out, motion[:12], MOTIONBENCH, LETTER, in_turn("A", "B", "(C) it moves", "hm"), failed=failed)
    return out
