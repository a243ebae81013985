"""Owns: the parts of a step add up to the loop's seconds, marks go away, and the runs are the demo's."""

import io
import itertools
import json
from argparse import Namespace
from functools import partial
from pathlib import Path

import benchmark_training as benchmark
import cache_frames
import demo
import pytest
import step_parts
import torch
from rich.console import Console

from moss_vllm.training import engines, run_state
from moss_vllm.video import cache
from moss_vllm.video.clip import read_clip

SAMPLING = {"model": "miniature", "sample_fps": 2.0, "short_side_px": 84, "max_frames": 180}
READING = Namespace(compress_tokens=False, max_tokens=4096, **SAMPLING)
PATCHED = [(engines, name) for name in ("wrap", "backward", "step")] + [(run_state, "undisturbed")]
ENGINE = [getattr(module, name) for module, name in PATCHED]


@pytest.fixture
def flags(tiny_base, world, tmp_path):
    """Flags of the recipe for a few quick steps."""
    settings = {"model": tiny_base, "data": world / "FAVOR", "out": tmp_path / "run", "lora_rank": 4}
    settings |= {"steps": 3, "batch_size": 2, "workers": 0, "tracker": "none", "short_side_px": 56}
    return [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", str(value))]


@pytest.fixture
def one_by_one(monkeypatch):
    """Clips are cached in this process; starting others takes seconds."""

    def run(work, todo, **limits):
        yield from ((part, work(part)) for part in todo)

    monkeypatch.setattr(cache_frames, "run_isolated", run)


def step(**seconds):
    return {part: seconds.get(part.replace(" ", "_"), 0.0) for part in step_parts.PARTS}


def test_shares_are_of_the_time_of_all_steps():
    found = step_parts.shares([step(backward=3.0, other=1.0), step(backward=1.0, waiting_for_data=3.0)])
    assert found == step(backward=0.5, other=0.125, waiting_for_data=0.375)


def test_other_is_what_no_mark_saw_and_no_step_is_lost():
    parts = step_parts.StepParts()
    parts.steps = [{"backward": 2.0, "MOSS": 0.5}]
    joined = parts.join([{"seconds": 4.0, "waited_s": 1.0}])
    assert joined == [{"waiting for data": 1.0, "backward": 2.0, "MOSS": 0.5, "other": 0.5}]
    with pytest.raises(ValueError):
        parts.join([])


@pytest.mark.usefixtures("one_process")
def test_each_micro_batch_is_marked_once_and_checks_between_steps_never(recipe, flags, monkeypatch):
    ticks = itertools.count()  # so that a mark lasts 1, and 1 more for each start and stop within it
    monkeypatch.setattr(step_parts, "time", Namespace(perf_counter=ticks.__next__))
    with step_parts.StepParts() as parts:  # a checkpoint's check between steps asks the model
        recipe.main([*flags, "--accumulate", "2", "--save-every", "1"])
    moss = parts.steps[0]["MOSS"]
    assert moss >= 2  # once for each size of clip in a batch
    expected = {"vision encoder": 2 + moss, "MOSS": moss, "projector": 2, "language model": 4}
    assert parts.steps == [{**expected, "backward": 2, "optimizer": 1}] * 3


@pytest.mark.usefixtures("one_process")
def test_parts_of_a_process_add_up_to_the_seconds_of_the_loop(flags, tmp_path):
    step_parts.main([str(tmp_path / "steps.json"), demo.RECIPE, *flags, "--no-use-moss"])
    found = json.loads((tmp_path / "steps.json").read_text())
    assert [line["step"] for line in found["lines"]] == [1, 2, 3] and found["threads"] == 1
    for line, parts in zip(found["lines"], found["steps"], strict=True):
        assert tuple(parts) == step_parts.PARTS
        assert sum(parts.values()) == pytest.approx(line["seconds"])
        assert parts["waiting for data"] == line["waited_s"]
        assert parts.pop("MOSS") == 0 and min(parts.values()) > 0


@pytest.mark.usefixtures("one_process")
def test_hooks_and_patches_go_also_when_a_step_fails(tmp_path):
    accelerator, model, groups = step_parts.build("miniature", "cpu", moss=True, recomputed=True)
    clips = step_parts.RandomClips(model.get_base_model().config, 2, 56, 56)

    def count():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    before = count()
    clips.example["labels"].fill_(-1)  # no word: the loss fails, after the marks were set
    with pytest.raises(IndexError), step_parts.StepParts() as parts:
        step_parts.run_loop(accelerator, model, groups, clips, 1)
    assert parts.steps == [] and count() == before
    assert [getattr(module, name) for module, name in PATCHED] == ENGINE


def test_random_clips_have_the_tokens_of_the_shape():
    config = step_parts.load_base("miniature").config
    example = step_parts.RandomClips(config, 4, 84, 56).example
    tokens = 4 * (84 // 28) * (56 // 28) + 4 * step_parts.TIME_TOKENS + step_parts.TEXT_TOKENS
    assert example["input_ids"].shape == example["labels"].shape == (tokens,)
    assert (example["input_ids"] == config.video_token_id).sum() == 4 * 3 * 2
    assert (example["labels"] != step_parts.IGNORED).sum() == step_parts.TEXT_TOKENS


@pytest.mark.usefixtures("one_process")
def test_a_shape_through_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step_parts, "MARKED_STEPS", 1)
    file = tmp_path / "new" / "shape.json"
    benchmark.main(["--shape", "miniature", "--clip-s", "1.5", "--steps", "1", "--json", str(file)])
    record = json.loads(file.read_text())
    cases = [(case["moss"], case["recomputed"]) for case in record["results"]]
    assert cases == [(False, False), (False, True), (True, False), (True, True)]
    for case in record["results"]:
        assert case["frames"] == 3 and case["peak_gib"] is None and case["estimated_gib"] > 0
        assert case["hours"] == pytest.approx(1000 * 15 * case["step_s"] / 3600)
        assert case["tokens_per_s"] == pytest.approx(case["tokens"] * case["clips_per_s"])
        assert sum(case["shares"].values()) == pytest.approx(1)
        assert (case["shares"]["MOSS"] > 0) == case["moss"] and case["shares"]["other"] > 0
    assert record["command"].startswith("python experiments/benchmark_training.py --shape miniature")
    assert record["gpu"] == "not run on a GPU" and record["paper_gpu_hours"] == 8
    assert "paper: 8 GPU-h" in " ".join(capsys.readouterr().out.split())


def test_full_memory_is_a_result_and_not_the_end(monkeypatch):
    def build(*args, **how):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(step_parts, "build", build)
    found = step_parts.run_shape("2b", "cuda", 1, clip_s=10, moss=True, recomputed=False)
    assert found == {"frames": 20, "failed": "out of memory"}
    console = Console(file=io.StringIO(), width=150)
    benchmark.print_shapes(console, "2b", [{"clip_s": 10, "moss": True, "recomputed": False, **found}])
    assert "out of memory" in console.file.getvalue()


def test_the_demo_trains_both_arms_alike_and_from_a_cache():
    arms = demo.training_flags(Path("out"), Path("world"), 7, None, cache=Path("frames"))
    common = ["--data", "world/FAVOR", "--seed", "7", "--resume", "auto", "--cache", "frames"]
    assert arms["plain"] == [*common, "--out", "out/plain", "--no-use-moss"]
    assert arms["moss"] == [*common, "--out", "out/moss", "--use-moss"]
    assert "--cache" not in demo.training_flags(Path("out"), Path("world"), 7, 5, cache=None)["moss"]


@pytest.mark.usefixtures("one_process", "one_by_one")
def test_the_demos_runs_through_the_command(tiny_base, world, tmp_path, monkeypatch, capsys):
    ran = {}

    def run(commands):
        for name, command in commands.items():
            ran.setdefault(name, []).append(command[3:])
            step_parts.main([*command[1:], "--model", str(tiny_base), "--batch-size", "2"])

    monkeypatch.setattr(demo, "run", run)
    monkeypatch.setattr(benchmark, "ensure_world", lambda root: root)  # which is smaller than the demo's
    monkeypatch.setattr(benchmark, "WAYS", [benchmark.Way(False, 0), benchmark.Way(True, 1)])
    file = tmp_path / "demo.json"
    flags = ["--world", str(world), "--steps", "1", "--repeats", "1", "--json", str(file)]
    record = benchmark.main(flags)
    assert record == json.loads(file.read_text())
    assert [(arm["cached"], arm["workers"], arm["moss"]) for arm in record["arms"]] == [
        (False, 0, False), (False, 0, True), (True, 1, False), (True, 1, True)
    ]  # fmt: skip
    for arm in record["arms"]:
        assert sum(part["median"] for part in arm["shares"].values()) == pytest.approx(1)
        assert (arm["shares"]["MOSS"]["median"] > 0) == arm["moss"]
    largest = max(arm["waited_of_run"]["max"] for arm in record["arms"][2:])
    assert record["claim"]["largest_share"] == largest
    assert record["claim"]["holds"] == (largest < 0.05)
    videos, cached = ran["moss"]
    assert videos[-2:] == ["--workers", "0"] and cached[-2:] == ["--workers", "1"]
    assert "--cache" not in videos and "--cache" in cached
    said = capsys.readouterr().out
    assert "frame cache, 1 worker" in said and f"at most {largest:.2%}" in said


@pytest.mark.usefixtures("one_by_one")
def test_a_filled_cache_is_all_that_the_cached_runs_read(world, tmp_path, monkeypatch):
    benchmark.fill_cache(READING, world / "FAVOR", tmp_path / "frames")
    decoded = []

    def decode(path, **how):
        decoded.append(path)
        return read_clip(path, **how)

    monkeypatch.setattr(cache, "read_clip", decode)
    monkeypatch.setattr(benchmark, "READ_CLIPS", 5)
    found = benchmark.measure_reading(READING, world / "FAVOR", tmp_path / "frames", 2)
    assert found["clips"] == 5 and set(found) == {"clips", "videos", "frame cache"}
    assert found["videos"]["rows_per_s"]["min"] <= found["videos"]["rows_per_s"]["median"]
    assert len(decoded) == 5 * 2 * 2  # each clip, and each row, of the videos alone, twice


def test_waiting_for_the_first_batch_counts_once_in_the_whole_run():
    lines = [{"seconds": 9.0, "waited_s": 6.0, "clips": 4}] + [
        {"seconds": seconds, "waited_s": 0.5, "clips": 4} for seconds in (100.0, 1.5, 2.5)
    ]
    steps = [step(), step()] + [step(waiting_for_data=0.5, backward=1.0)] * 2
    found = benchmark.summarise(lines, steps, 11)
    assert found["step_s"] == 2 and found["clips_per_s"] == 2 and found["first_waited_s"] == 6
    assert found["waited_of_run"] == (6 + 10 * 0.5) / (6 + 10 * 0.5 + 11 * 1.5)
    assert found["shares"]["waiting for data"] == pytest.approx(1 / 3)


def test_spreads_have_the_median_and_the_extremes():
    runs = [{"step_s": s, "shares": step(backward=s)} for s in (3.0, 1.0, 7.0)]
    found = benchmark.summary(runs)
    assert found["step_s"] == found["shares"]["backward"] == {"median": 3.0, "min": 1.0, "max": 7.0}
    assert benchmark.show(found["step_s"]) == "3.00 (1.00-7.00)"
    assert benchmark.show({"median": 0.0123, "min": 0.01, "max": 0.02}, 100) == "1.23 (1.00-2.00)"


def test_what_a_failed_run_said_is_shown_and_nothing_else(capsys):
    with benchmark.quietly():
        print("chatter")
    assert capsys.readouterr() == ("", "")
    with pytest.raises(SystemExit), benchmark.quietly():
        print("the reason")
        raise SystemExit("plain failed")
    assert "the reason" in capsys.readouterr().err


def test_jobs_run_in_their_order_with_the_time_left(capsys):
    order = []
    jobs = [
        (name, partial(lambda name: order.append(name) or {"failed": "out of memory"}, name)) for name in "ab"
    ]
    found = benchmark.run_all(jobs)
    assert order == ["a", "b"] and all(run["failed"] == "out of memory" for run in found)
    told = capsys.readouterr().err
    assert "1 of 2, a: out of memory" in told and "2 of 2, b: out of memory; about 0.0 min left" in told


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--steps", "0"], "take 1 or more"),
        (["--repeats", "0"], "take 1 or more"),
        (["--shape", "miniature", "--clip-s", "10", "0.5"], "--clip-s 0.5 is one frame or none"),
        (["--json", "."], ". is a folder"),
        (["--shape", "2b"], "--shape 2b needs a GPU: add --device cuda"),
        (["--shape", "2b", "--device", "cuda"], "--shape miniature without --device runs the same code"),
        (["--shape", "3b"], "invalid choice: '3b'"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert message in capsys.readouterr().err
