"""Owns: the ways of a step are one function, what is kept is what they say, and numbers are the log's own."""

import dataclasses
import io
import json

import av
import benchmark_action as benchmark
import pytest
import torch
from rich.console import Console

from moss_vllm.recognition.batches import ActionTrainingSet
from moss_vllm.recognition.build import build_classifier
from moss_vllm.recognition.dataset_views import DATASET_VIEWS
from moss_vllm.video.cache import FrameCache


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
    kept = {way: benchmark.kept_mib(step, video) * 2**20 for way, step in ways.items()}
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


def test_a_run_that_is_stopped_leaves_what_it_found(tmp_path, monkeypatch):
    def stop(*how):
        raise KeyboardInterrupt

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(benchmark, "CLIP_FRAMES", 9)
    monkeypatch.setattr(benchmark, "measure_waiting", stop)
    flags = ["--parts", "reading", "waiting", "--clips", "1", "--repeats", "1"]
    with pytest.raises(KeyboardInterrupt):
        benchmark.main([*flags, "--json", str(tmp_path / "action.json")])
    found = json.loads((tmp_path / "action.json").read_text())
    assert [one["container"] for one in found["reading"]] == [".webm", ".mp4"] and "waiting" not in found


def test_a_peak_that_is_not_known_is_not_a_number():
    row = {"clips_per_s": 2.0, "forward_ms": {"median": 5.0}, "step_ms": {"median": 9.0}}
    row |= {"kept_mib": 3.0, "peak_mib": None, "ratio": {"step_ms": 1.0, "kept_mib": 2.5}}
    console = Console(file=io.StringIO(), width=150)
    asked = {"variant": "s", "batch": 2, "image_size": 224, "precision": "fp32"}
    benchmark.print_step(console, {**asked, "ways": {"graph": row}})
    assert "3 (2.50x)" in console.file.getvalue() and "not known here" in console.file.getvalue()


@pytest.mark.parametrize("suffix", benchmark.CODECS)
def test_generated_clips_are_of_the_size_they_should_have(tmp_path, suffix):
    split, kilobytes = benchmark.write_clips(tmp_path / "videos", suffix, 1)
    assert 50 < kilobytes < 150
    with av.open(split.clips[0].path) as file:
        stream = file.streams.video[0]
        assert (stream.height, stream.width, float(stream.average_rate)) == (240, 426, 12)
        assert sum(1 for _ in file.decode(stream)) == 45


def test_reading_is_what_the_reader_takes_and_a_cache_spares_it(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "CLIP_FRAMES", 9)
    split, _ = benchmark.write_clips(tmp_path / "videos", ".mp4", 2)
    clock = iter(range(100))
    monkeypatch.setattr(benchmark.time, "process_time", lambda: next(clock))
    cache = FrameCache(tmp_path / "cache")
    views = dataclasses.replace(DATASET_VIEWS["ssv2"]["paper"], randaugment=None)
    dataset = ActionTrainingSet(split, views, seed=0, read=benchmark.TimedReader(cache.read_frames))
    # Of five ticks, two are within the two readings; milliseconds of a clip.
    assert benchmark.time_rows(dataset) == (1000, 1500)
    for clip in split.clips:
        with open(clip.path, "r+b") as file:
            file.write(b"x")  # the file's time is now another, so that its entry is too
    with pytest.raises(SystemExit, match="clip 0 cannot be read"):
        benchmark.time_rows(dataset)


def test_each_way_of_reading_is_measured(monkeypatch):
    monkeypatch.setattr(benchmark, "CLIP_FRAMES", 9)
    found = benchmark.measure_reading(".mp4", 1, 1)
    ways = [(way["cached"], way["randaugment"]) for way in found["ways"]]
    assert ways == [(False, False), (True, False), (False, True), (True, True)]
    assert found["views_a_clip"] == 2 and found["clips"] == 1
    sizes = [way["cache_mib_a_clip"] for way in found["ways"]]
    assert sizes[0] is sizes[2] is None
    # Every frame, scaled before, or as it is where RandAugment comes first.
    assert sizes[1] * 2**20 == pytest.approx(9 * 256 * 320 * 3, rel=0.01)
    assert sizes[3] * 2**20 == pytest.approx(9 * 240 * 426 * 3, rel=0.01)
    for way in found["ways"]:
        speed = 1000 / (way["read_ms"]["median"] + way["views_ms"]["median"])
        assert way["clips_per_s"]["median"] == pytest.approx(speed)
    console = Console(file=io.StringIO(), width=150)
    benchmark.print_reading(console, [found])
    assert console.file.getvalue().count("mp4, ") == 4


def test_waiting_is_that_of_the_steps_after_the_first():
    lines = [{"seconds": 9.0, "waited_s": 6.0, "clips": 4}, {"seconds": 5.0, "waited_s": 5.0, "clips": 4}]
    lines += [{"seconds": s, "waited_s": 0.5, "clips": 4} for s in (1.5, 2.5)]
    found = {"clips_per_s": 2, "step_s": 2, "waiting_share": 0.25, "first_waited_s": 6}
    assert benchmark.summarise(lines) == found


def test_each_number_of_workers_runs_in_turns(tmp_path, monkeypatch):
    ran = []

    class Recipe:
        @staticmethod
        def main(flags):
            given = dict(zip(flags[::2], flags[1::2], strict=True))
            ran.append(given)
            out = tmp_path / given["--out"]
            out.mkdir()
            line = {"seconds": 2.0, "waited_s": float(given["--workers"]) / 2, "clips": 32}
            (out / "train.jsonl").write_text((json.dumps(line) + "\n") * int(given["--steps"]))

    monkeypatch.setattr(benchmark, "load_recipe", lambda file: Recipe)
    monkeypatch.setattr(benchmark, "ensure_mini_actions", lambda root: root)
    found = benchmark.measure_waiting(tmp_path / "mini", 4, 2)
    assert [flags["--workers"] for flags in ran] == ["0", "1", "2"] * 2
    assert all(flags["--data"] == "mini" and flags["--steps"] == "4" for flags in ran)
    assert [run["waiting_share"]["median"] for run in found["runs"]] == [0, 0.25, 0.5]
    assert [run["clips_per_s"]["max"] for run in found["runs"]] == [16, 16, 16]
    console = Console(file=io.StringIO(), width=150)
    benchmark.print_waiting(console, found)
    assert "25.00 (25.00-25.00)" in console.file.getvalue()


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_the_recipe_itself_is_what_runs(tmp_path, monkeypatch):
    from moss_vllm.data.world import actions

    small = actions.MiniSize(train_per_class=2, test_per_class=1)
    root = actions.ensure_mini_actions(tmp_path / "mini", small)
    monkeypatch.setattr(actions, "MiniSize", lambda: small)
    recipe = benchmark.load_recipe(benchmark.RECIPE)
    found = benchmark.run_recipe(recipe, root, tmp_path / "run", 3, 0)
    lines = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and found == benchmark.summarise(lines)
    assert 0 < found["waiting_share"] < 1  # without workers, reading is waiting


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--batch", "0"], "take 1 or more"),
        (["--clips", "0"], "take 1 or more"),
        (["--steps", "2"], "--steps more than 2"),
        (["--json", "."], ". is a folder"),
        (["--device", "cuda"], "no CUDA device"),
        (["--parts", "sleeping"], "invalid choice: 'sleeping'"),
    ],
)
def test_bad_arguments_are_named(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert message in capsys.readouterr().err
