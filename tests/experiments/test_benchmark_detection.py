"""Owns: the ways of a detector's step are one function, and the numbers printed are those measured."""

import json
from functools import partial

import benchmark_detection as benchmark
import detection_steps as steps
import pytest
import torch
from transformers import VideoMAEConfig

from moss_vllm.detection.build import build_adatad
from moss_vllm.video.packets import index_frames
from moss_vllm.video.write import write_clip

SMALL = ["--frames", "16", "--size-px", "32", "--repeats", "1"]


@pytest.fixture(autouse=True)
def small_model(tmp_path, monkeypatch):
    """AdaTAD on a VideoMAE of two layers in place of S."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    VideoMAEConfig(**sizes).save_pretrained(tmp_path / "videomae")
    detector = {"dim": 32, "embed": 1, "stem": 1}
    build = partial(
        build_adatad, encoder=tmp_path / "videomae", temporal_layers=(1,), detector_options=detector
    )
    monkeypatch.setattr(steps, "build_adatad", build)


def run(tmp_path, *flags):
    file = tmp_path / "new" / "found.json"
    record = benchmark.main([*SMALL, *flags, "--json", str(file)])
    assert json.loads(file.read_text()) == json.loads(json.dumps(record))
    assert record["command"].startswith("python experiments/benchmark_detection.py --frames 16")
    return record


def test_the_ways_give_the_same_loss_and_gradients():
    setting = steps.Setting("s", 16, 32, "fp32", "cpu")
    model, clips = setting.build(), setting.clips()
    gradients = {}
    for way in steps.WAYS:
        model.zero_grad(set_to_none=True)
        steps.Step(model, way, setting)(clips).backward()
        gradients[way] = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.temporal_names = {1: "moss"}
    ours, without = gradients["ours"], gradients["without MOSS"]
    assert ours.keys() == gradients["all kept"].keys() > without.keys()
    for name, value in ours.items():
        torch.testing.assert_close(gradients["all kept"][name], value)
        if name in without:
            torch.testing.assert_close(without[name], value)
    assert {name.split(".")[0] for name in ours.keys() - without.keys()} == {"moss"}


def test_a_step_and_its_parts(tmp_path, capsys):
    found = run(tmp_path, "--parts", "step")["step"]
    ways = found["ways"]
    assert list(ways) == list(steps.WAYS) and len({one["loss"] for one in ways.values()}) == 1
    assert ways["ours"]["ratio"]["step_s"] == ways["ours"]["ratio"]["kept_mib"] == 1
    assert ways["all kept"]["ratio"]["kept_mib"] > 1.05
    assert ways["without MOSS"]["ratio"]["kept_mib"] == 1  # MOSS is computed again with its layer
    parts = found["parts"]
    assert tuple(parts["seconds"]) == steps.STEP_PARTS and sum(parts["shares"].values()) == pytest.approx(1)
    assert all(one["min"] > 0 for one in parts["seconds"].values())
    shown = capsys.readouterr().out
    assert "without MOSS, layers computed again" in shown and "clip and AdamW" in shown


@pytest.mark.slow
def test_true_steps_learn_and_begin_as_without_moss(tmp_path, capsys):
    found = run(tmp_path, "--parts", "true", "--steps", "3")["true"]
    assert found["equal_without_moss"] and len(found["steps"]) == 3
    losses = [step["classes"] + step["segments"] for step in found["steps"]]
    assert losses[2] < losses[0] and all(step["positives"] > 0 for step in found["steps"])
    assert found["peak_gib"] == pytest.approx(found["estimated_gib"], rel=0.15)
    assert "outputs equal those without MOSS" in capsys.readouterr().out


def test_a_window_is_read_from_the_file_and_from_the_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(steps, "FPS", 4)  # a shorter video
    found = run(tmp_path, "--parts", "reading")["reading"]
    assert (found["frames"], found["video_frames"]) == (16, 16 * 4 + 8 * 4)
    assert found["cache_mib"] * 2**20 == pytest.approx(
        96 * 182 * 323 * 3, rel=0.02
    )  # a short video's every frame
    assert found["cache_s"]["median"] < found["file_s"]["median"]
    assert "not measured" in capsys.readouterr().out


def test_the_drawn_video_moves_and_has_every_frame(tmp_path):
    frames = steps.draw_video(12)
    assert frames.shape == (12, 180, 320, 3) and (frames[0, :, :-1] == frames[1, :, 1:]).all()
    write_clip(frames, tmp_path / "a.mp4", fps=30)
    assert len(index_frames(str(tmp_path / "a.mp4")).frame_times_s) == 12


def test_a_test_counts_windows(tmp_path):
    found = run(tmp_path, "--parts", "test")["test"]
    assert list(found["seconds"]) == ["forward", "decoding", "soft-NMS"]
    whole = sum(one["median"] for one in found["seconds"].values())
    assert found["windows_per_s"] == pytest.approx(1 / whole)
    assert found["detections"] == min(2000, 20 * sum(16 // 2**level or 1 for level in range(6)))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--frames", "20"], "multiples of 16"),
        (["--size-px", "100"], "multiples of 16"),
        (["--steps", "0"], "--steps is 0; it must be at least 1"),
    ],
)
def test_sizes_that_no_window_has_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(flags)
    assert message in capsys.readouterr().err
