"""Owns: the parts of a step add up to the loop's seconds, marks go away, and the runs are the demo's."""

import json
from functools import partial
from pathlib import Path

import benchmark_training as benchmark
import demo
import measuring
import pytest
import step_parts
from launching import ROOT, as_flags

from moss_vllm.commands.recipes.favor_lora import FavorLora
from moss_vllm.training import engines, run_state

SAMPLING = {"model": "miniature", "sample_fps": 2.0, "short_side_px": 84, "max_frames": 180}
READING = FavorLora(compress_tokens=False, max_tokens=4096, **SAMPLING)
PATCHED = [(engines, name) for name in ("wrap", "backward", "step")] + [(run_state, "undisturbed")]
ENGINE = [getattr(module, name) for module, name in PATCHED]


@pytest.fixture
def flags(tiny_base, world, tmp_path):
    """Flags of the recipe for a few quick steps."""
    settings = {"model": tiny_base, "data": world / "FAVOR", "out": tmp_path / "run", "lora_rank": 4}
    settings |= {"steps": 3, "batch_size": 2, "workers": 0, "tracker": "none", "short_side_px": 56}
    return as_flags(settings)


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
    accelerator, model, groups = step_parts.build_training("miniature", "cpu", moss=True, recomputed=True)
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


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_a_shape_through_the_command(tmp_path, monkeypatch, capsys):
    for name, value in (("MARKED_STEPS", 1), ("WARM_UP", 1), ("TEXT_TOKENS", 20)):
        monkeypatch.setattr(step_parts, name, value)
    monkeypatch.setitem(step_parts.FRAMES_PX, "miniature", (56, 56))
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


def test_the_demo_trains_both_arms_alike_and_from_a_cache():
    arms = demo.training_flags(Path("out"), Path("world"), 7, None, cache=Path("frames"))
    common = ["--data", "world/FAVOR", "--seed", "7", "--resume", "auto", "--cache", "frames"]
    assert arms["plain"] == [*common, "--out", "out/plain", "--no-use-moss"]
    assert arms["moss"] == [*common, "--out", "out/moss", "--use-moss"]
    assert "--cache" not in demo.training_flags(Path("out"), Path("world"), 7, 5, cache=None)["moss"]


def test_reading_is_measured_from_videos_and_from_a_filled_cache(world, tmp_path):
    benchmark.fill_cache(READING, world / "FAVOR", tmp_path / "frames")
    measured = benchmark.measure_row_reading(READING, world / "FAVOR", tmp_path / "frames", 2)
    assert measured["clips"] == 12 and set(measured) == {"clips", "videos", "frame cache"}
    assert 0 < measured["videos"]["rows_per_s"]["min"] <= measured["videos"]["rows_per_s"]["median"]


@pytest.mark.slow
def test_the_demos_pair_of_runs_is_taken_apart(world, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    pair = benchmark.run_pair(benchmark.Way(False, 0), world, tmp_path / "frames", tmp_path / "out", 1, 10)
    assert pair["plain"]["shares"]["MOSS"] == 0 < pair["moss"]["shares"]["MOSS"]
    for run in (pair["plain"], pair["moss"]):
        assert sum(run["shares"].values()) == pytest.approx(1) and 0 < run["waited_of_run"] < 1


def test_waiting_for_the_first_batch_counts_once_in_the_whole_run():
    lines = [{"seconds": 9.0, "waited_s": 6.0, "clips": 4}] + [
        {"seconds": seconds, "waited_s": 0.5, "clips": 4} for seconds in (100.0, 1.5, 2.5)
    ]
    steps = [step(), step()] + [step(waiting_for_data=0.5, backward=1.0)] * 2
    found = benchmark.summarise_run(lines, steps, 11)
    assert found["step_s"] == 2 and found["clips_per_s"] == 2 and found["first_waited_s"] == 6
    assert found["waited_of_run"] == (6 + 10 * 0.5) / (6 + 10 * 0.5 + 11 * 1.5)
    assert found["shares"]["waiting for data"] == pytest.approx(1 / 3)


def test_spreads_have_the_median_and_the_extremes():
    runs = [{"step_s": s, "shares": step(backward=s)} for s in (3.0, 1.0, 7.0)]
    found = benchmark.summary(runs)
    assert found["step_s"] == found["shares"]["backward"] == {"median": 3.0, "min": 1.0, "max": 7.0}
    assert measuring.show_spread(found["step_s"]) == "3.00 (1.00-7.00)"
    assert measuring.show_spread({"median": 0.0123, "min": 0.01, "max": 0.02}, 100) == "1.23 (1.00-2.00)"


def test_what_a_failed_run_said_is_shown_and_nothing_else(capsys):
    with measuring.quietly():
        print("chatter")
    assert capsys.readouterr() == ("", "")
    with pytest.raises(SystemExit), measuring.quietly():
        print("the reason")
        raise SystemExit("plain failed")
    assert "the reason" in capsys.readouterr().err


def test_jobs_run_in_their_order_with_the_time_left(capsys):
    order = []
    jobs = [
        (name, partial(lambda name: order.append(name) or {"failed": "out of memory"}, name)) for name in "ab"
    ]
    found = measuring.run_jobs(jobs)
    assert order == ["a", "b"] and all(run["failed"] == "out of memory" for run in found)
    told = capsys.readouterr().err
    assert "1 of 2, a: out of memory" in told and "2 of 2, b: out of memory; about 0.0 min left" in told
