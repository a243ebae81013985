"""Owns: the ways of a step are one function, what is kept is what they say, and numbers are the log's own."""

import io
import json
from pathlib import Path

import av
import benchmark_action as benchmark
import clip_reading
import ladder_parts
import measuring
import pytest
import torch
from rich.console import Console

from moss_vllm.recognition.batches import ActionTrainingSet
from moss_vllm.recognition.build import build_classifier
from moss_vllm.recognition.dataset_views import DATASET_VIEWS
from moss_vllm.video.clip import read_frames


@pytest.fixture
def steps():
    """The ways of a step on one small ladder, the clip, and the classifier."""
    torch.manual_seed(0)
    model = build_classifier(variant="mini", weights="random", classes=5, frames=3, image_size=56).train()
    video, labels = torch.randn(2, 3, 3, 56, 56), torch.tensor([1, 4])
    return {way: benchmark.Step(model, way, labels, torch.float32) for way in benchmark.WAYS}, video, model


def test_the_ways_give_the_same_loss_and_the_same_gradients_of_the_ladder(steps):
    ways, video, model = steps
    losses, gradients = {}, {}
    for way, step in ways.items():
        model.zero_grad(set_to_none=True)
        losses[way] = step(video)
        losses[way].backward()
        gradients[way] = {name: p.grad.clone() for name, p in model.ladder.named_parameters()}
        reached = {name for name, p in model.encoder.named_parameters() if p.grad is not None}
        assert bool(reached) == (way == "graph")
    assert len(reached) == sum(1 for _ in model.encoder.parameters())  # also the patch embedding's
    for way in ("stacked", "graph"):
        torch.testing.assert_close(losses[way], losses["ours"])
        for name, gradient in gradients["ours"].items():
            torch.testing.assert_close(gradients[way][name], gradient, rtol=1e-3, atol=1e-6)


def test_stacked_layers_are_what_the_encoder_hands_over(steps):
    _, video, model = steps
    frames = video.flatten(0, 1)
    taps, stacked = model.encoder(frames), benchmark.stack_layers(model.encoder, frames, graph=False)
    assert len(taps) == len(stacked) == 2
    for tap, layer in zip(taps, stacked, strict=True):
        torch.testing.assert_close(tap, layer)
        assert layer.untyped_storage().nbytes() == 4 * tap.nbytes  # all layers of the miniature's encoder


def test_what_is_kept_is_the_taps_or_every_layer_or_the_graph(steps):
    ways, video, model = steps
    kept = {way: benchmark.kept_by_step_mib(step, video) * 2**20 for way, step in ways.items()}
    layer = model.encoder(video.flatten(0, 1))[0].nbytes
    assert kept["stacked"] - kept["ours"] == pytest.approx((4 - 2) * layer)
    assert kept["graph"] - kept["stacked"] > 4 * 4 * layer  # queries, keys, values and more, in four layers


def test_a_step_through_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # which the command sets: gone after the test
    file = tmp_path / "new" / "step.json"
    flags = ["--parts", "step", "--variant", "mini", "--batch", "1", "--repeats", "1", "--json", str(file)]
    record = benchmark.main(flags)
    assert json.loads(file.read_text()) == json.loads(json.dumps(record))
    found = record["step"]
    assert found["layers"] == {"encoder": 4, "tapped": 2} and list(found["ways"]) == list(benchmark.WAYS)
    ours, graph = found["ways"]["ours"], found["ways"]["graph"]
    assert ours["ratio"]["kept_mib"] == ours["ratio"]["step_ms"] == 1
    assert graph["ratio"]["kept_mib"] == graph["kept_mib"] / ours["kept_mib"] > 1.5
    assert ours["clips_per_s"] == pytest.approx(1000 / ours["step_ms"]["median"])
    assert record["command"].startswith("python experiments/benchmark_action.py --parts step")
    assert "reading" not in record and "waiting" not in record
    assert "every layer stacked, in the graph" in capsys.readouterr().out


def test_the_parts_of_a_step_add_up_and_keep_less_than_the_layers(steps):
    ways, video, _ = steps
    found = ladder_parts.measure_parts(ways["ours"], video, measuring.Meter("cpu", threads=1), 1, 1e-4)
    for way, context in ladder_parts.WAYS.items():
        kept, ms = (found["ways"][way][what] for what in ("kept_mib", "ms"))
        assert set(kept) <= set(ms) and list(ms)[-1] == "all"
        parts = [part for part in kept if part in ladder_parts.PARTS]
        assert sum(kept[part] for part in parts) == pytest.approx(kept["all"])
        with context(ways["ours"].model):
            assert kept["all"] == pytest.approx(benchmark.kept_by_step_mib(ways["ours"], video))
        assert sum(ms[part]["median"] for part in ladder_parts.PARTS) == pytest.approx(ms["all"]["median"])
        assert all(ms[part]["median"] > 0 for part in ladder_parts.PARTS if part != ladder_parts.TAPS)
    ours, again, layers = (way["kept_mib"] for way in found["ways"].values())
    assert ours[ladder_parts.TAPS] == layers[ladder_parts.TAPS] == 2 * 2 * 3 * 17 * 64 * 4 / 2**20
    assert again["all"] < ours["all"] and again[ladder_parts.TAPS] == ours[ladder_parts.TAPS]
    assert not any(part in again for part in ladder_parts.FUNCTIONS.values())
    for part in ladder_parts.FUNCTIONS.values():
        assert ours[part] < 0.9 * layers[part]
    console = Console(file=io.StringIO(), width=150)
    ladder_parts.print_parts(console, "a step", found)
    assert "convolutions in time" in console.file.getvalue()


@pytest.mark.slow
def test_memory_of_the_papers_models(monkeypatch):
    tables = {"3": ladder_parts.TABLES["3"][1:2], "10d": ladder_parts.TABLES["10d"][3:4]}
    monkeypatch.setattr(ladder_parts, "TABLES", tables)
    found = ladder_parts.measure_memory(2)
    ladder, aim = found["rows"]
    assert all(row["kept"]["blocks computed again"] < 0.8 * row["kept"]["ours"] for row in (ladder, aim))
    assert (ladder["name"], aim["name"]) == ("B/16 MOSS-S", "AIM + MOSS")
    assert ladder["paper"] == pytest.approx(9.9 / 16) and aim["paper"] == pytest.approx(40.9 / 16)
    assert ladder["kept"]["ours"] < 0.31 * 2**30 / 1e9 < 0.5 * ladder["kept"]["layers called"] * 1.3
    assert ladder["kept"]["layers called"] < aim["kept"]["ours"] < aim["kept"]["layers called"]


def test_a_peak_that_is_not_known_is_not_a_number():
    row = {"clips_per_s": 2.0, "forward_ms": {"median": 5.0}, "step_ms": {"median": 9.0}}
    row |= {"kept_mib": 3.0, "peak_mib": None, "ratio": {"step_ms": 1.0, "kept_mib": 2.5}}
    console = Console(file=io.StringIO(), width=150)
    asked = {"variant": "s", "batch": 2, "image_size": 224, "precision": "fp32"}
    benchmark.print_step(console, {**asked, "ways": {"graph": row}})
    assert "3 (2.50x)" in console.file.getvalue() and "not known here" in console.file.getvalue()


@pytest.mark.parametrize("suffix", clip_reading.CODECS)
def test_generated_clips_are_of_the_size_they_should_have(tmp_path, suffix):
    split, kilobytes = clip_reading.write_clips(tmp_path / "videos", suffix, 1)
    assert 50 < kilobytes < 150
    with av.open(split.clips[0].path) as file:
        stream = file.streams.video[0]
        assert (stream.height, stream.width, float(stream.average_rate)) == (240, 426, 12)
        assert sum(1 for _ in file.decode(stream)) == 45


def test_each_way_of_reading_is_measured():
    measured = clip_reading.measure_reading(".mp4", 1, 1)
    ways = [(way["cached"], way["randaugment"]) for way in measured["ways"]]
    assert ways == [(False, False), (True, False), (False, True), (True, True)]
    assert measured["views_a_clip"] == 2 and measured["clips"] == 1
    sizes = [way["cache_mib_a_clip"] for way in measured["ways"]]
    assert sizes[0] is sizes[2] is None
    # Every frame, scaled before, or as it is where RandAugment comes first.
    assert sizes[1] * 2**20 == pytest.approx(45 * 256 * 320 * 3, rel=0.01)
    assert sizes[3] * 2**20 == pytest.approx(45 * 240 * 426 * 3, rel=0.01)
    for way in measured["ways"]:
        speed = 1000 / (way["read_ms"]["median"] + way["views_ms"]["median"])
        assert way["clips_per_s"]["median"] == pytest.approx(speed)
    console = Console(file=io.StringIO(), width=150)
    clip_reading.print_reading(console, [measured])
    assert console.file.getvalue().count("mp4, ") == 4
    assert "45 frames of 240 x 426 to 2 x 8 of 224 px" in console.file.getvalue()


def test_a_clip_that_cannot_be_read_ends_the_measurement(tmp_path):
    split, _ = clip_reading.write_clips(tmp_path / "videos", ".mp4", 1)
    Path(split.clips[0].path).write_bytes(b"x")
    views = DATASET_VIEWS["ssv2"]["paper"]
    dataset = ActionTrainingSet(split, views, seed=0, read=clip_reading.TimedReader(read_frames))
    with pytest.raises(SystemExit, match="clip 0 cannot be read"):
        clip_reading.time_rows(dataset)


def test_waiting_is_that_of_the_steps_after_the_first():
    lines = [{"seconds": 9.0, "waited_s": 6.0, "clips": 4}, {"seconds": 5.0, "waited_s": 5.0, "clips": 4}]
    lines += [{"seconds": s, "waited_s": 0.5, "clips": 4} for s in (1.5, 2.5)]
    found = {"clips_per_s": 2, "step_s": 2, "waiting_share": 0.25, "first_waited_s": 6}
    assert benchmark.summarise_steps(lines) == found


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_the_recipe_itself_is_what_runs(tmp_path, monkeypatch):
    from moss_vllm.data.world import actions

    small = actions.MiniSize(train_per_class=2, test_per_class=1)
    root = actions.ensure_mini_actions(tmp_path / "mini", small)
    monkeypatch.setattr(actions, "MiniSize", lambda: small)
    recipe = measuring.load_recipe(benchmark.RECIPE)
    found = benchmark.run_recipe(recipe, root, tmp_path / "run", 3, 0)
    lines = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and found == benchmark.summarise_steps(lines)
    assert 0 < found["waiting_share"] < 1  # without workers, reading is waiting
