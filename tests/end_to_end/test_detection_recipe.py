"""Owns: the detection recipe as users start it - THUMOS-14's real layout, going on, and its settings."""

import json
import shutil

import pytest
import torch
from detection_layouts import CLASSES, REMOVED, TEST, VALIDATION
from detection_runs import WITHOUT_MOSS, flags, write_quirks
from launching import ROOT, as_flags, load_script, logged
from run_results import differing, lines, read_json
from safetensors.torch import load_file
from tiny_detector import write_encoder

from moss_vllm.core.detection_presets import DETECTORS
from moss_vllm.data.detection.datasets import read_detection
from moss_vllm.data.world.untrimmed import UNTRIMMED_CLASSES, UntrimmedSize, draw_untrimmed
from moss_vllm.detection import checkpoint
from moss_vllm.detection.predictions import read_predictions
from moss_vllm.detection.schema import DETECTION_SCHEMA
from moss_vllm.detection.scores import score_detections
from moss_vllm.runtime.line_store import read_answers
from moss_vllm.training.settings import parse

pytestmark = pytest.mark.usefixtures("one_process", "small_detector")

AVERAGE_IS_YOUNG = "warning: after 2 steps the average of the weights"
FILES = (checkpoint.WEIGHTS_FILE, checkpoint.AVERAGE_FILE, "state/optimizer.safetensors")


@pytest.fixture
def recipe(detection_recipe):
    return detection_recipe


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thumos") / "thumos-14"
    write_quirks(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("videomae"))


@pytest.fixture
def run(recipe, root, encoder, tmp_path):
    """A function that starts the recipe, and returns the test's scores."""

    def start(*more, out="run", **settings):
        return recipe.main([*flags(settings.pop("root", root), encoder, tmp_path / out, **settings), *more])

    return start


def raise_interrupt(*_, **__):
    raise KeyboardInterrupt


def raise_full(*_, **__):
    raise OSError("no room")


# ---- THUMOS-14, trained and tested


@pytest.mark.slow
def test_thumos_trains_two_steps_and_is_tested(run, root, tmp_path, capsys):
    scores = run(eval_from=1)
    printed = " ".join(capsys.readouterr().out.split())
    out = tmp_path / "run"
    # What was left out of the data is said.
    assert "thumos14 train: kept 2 of 2 videos, 0 missing, 3 actions of 3 classes" in printed
    assert "thumos14 test: kept 3 of 3 videos, 0 missing, 5 actions of 3 classes" in printed
    assert printed.count("repeated segments, counted once: 1") == 2
    assert printed.count("segments left out as Ambiguous: 1") == 2
    assert all(f"{name} is left out: it" in printed for name in REMOVED)
    assert "both of which count: 1 (CliffDiving and Diving 1)" in printed
    assert "video encoder: random weights" in printed and "moss after layer 1, on the whole window" in printed
    assert (
        "2 steps of 2 windows of 16 frames, every 2, 32 px (AdaTAD's code has 160, the paper 224)" in printed
    )
    assert "5 epochs of warm-up, a cosine to epoch 100, the end after 60" in printed
    # What was trained on: a window of each video in each step, and rates that begin at 0.
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"best", "step-000002", "evals", "test"}
    assert [line["clips"] for line in logged(out)] == [2, 2]
    assert [line["frames"] for line in logged(out)] == [32, 32]
    assert [line["lr"]["detector"] for line in logged(out)] == [0.0, pytest.approx(1e-4, rel=0.02)]
    assert list(logged(out)[0]["lr"]) == ["adapters", "moss", "detector"]
    assert all(0.1 < line["loss"] < 10 for line in logged(out))
    # What is kept: the weights, and their average, which a thousandth of the way has moved.
    start, last, average = (
        load_file(out / folder / file)
        for folder, file in (("step-000002", "detector.safetensors"),) * 2
        + (("best", "average.safetensors"),)
    )
    name = "detector.head.cls_out.bias"
    assert not torch.equal(last[name], average[name]) and start.keys() == average.keys()
    torch.testing.assert_close(average[name], torch.full((3,), -4.59512), atol=1e-5, rtol=0)
    assert 73 < float(last["loss.normaliser"]) < 100 and float(average["loss.normaliser"]) > 99.9
    loaded = checkpoint.load(out / "best")
    assert loaded.classes == CLASSES and loaded.run["data"] == "thumos14" and loaded.run["step"] == 2
    assert loaded.run["windows"]["steps"] == 16 and loaded.run["pixels"]["train_short_side_px"] == 36
    # What was found.
    split = read_detection("thumos14", root, "test")
    stored = read_answers(out / "test" / "answers", DETECTION_SCHEMA)
    assert list(stored.answers) == list(TEST) and not stored.failed
    predictions = read_predictions(out / "test" / "predictions.json", split.classes)
    assert score_detections(split, predictions).mean == scores.mean
    result = read_json(out / "test" / "result.json")
    assert (result["data"], result["step"], result["size_px"]) == ("thumos14", 2, 32)
    (line,) = lines(out / "evals.jsonl")
    assert line["step"] == 2 and line["score"] == scores.mean["avg"]  # the same weights, windows and rules
    assert "AdaTAD" in printed and "test of step 2, the average of its weights" in printed
    # The same test from the checkpoint alone.
    again = load_script(ROOT / "eval" / "detection.py").main(
        ["--ckpt", str(out / "best"), "--workers", "0", "--device", "cpu"]
    )
    assert again.mean == scores.mean


@pytest.mark.slow
def test_the_tests_begin_late_and_the_best_and_the_last_are_told(run, tmp_path, capsys):
    run(steps=5, eval_from=3, eval_every=1)  # an epoch is a step
    assert [line["step"] for line in lines(tmp_path / "run" / "evals.jsonl")] == [3, 4, 5]
    best, last = (read_json(tmp_path / "run" / name / "run.json")["step"] for name in ("best", "step-000005"))
    told = capsys.readouterr().out.splitlines()[-1]
    assert told.startswith("tests during training: last ") and f"(step {last:,})" in told
    assert f"(step {best:,}), of 3 tests" in told


# ---- going on


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, {"precision": "fp16"}, {"batch_size": 1, **WITHOUT_MOSS}], ids=["moss", "fp16", "plain"]
)
def test_a_resumed_run_ends_in_the_same_weights_and_average(run, tmp_path, settings):
    given = {"steps": 4, "eval_from": 1, "eval_every": 2, "resume": "auto", "ema_decay": 0.9, **settings}
    run(out="straight", **given)
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    for name in ("step-000004", "test"):  # as a run that was killed in the last step
        shutil.rmtree(tmp_path / "resumed" / name)
    run(out="resumed", **given)
    one, other = (tmp_path / out / "step-000004" for out in ("straight", "resumed"))
    assert differing(one, other, FILES) == []
    told = [[(x["step"], x["loss"], x["lr"]) for x in logged(folder.parent)] for folder in (one, other)]
    assert told[0] == told[1] and len(told[0]) == 4
    for name in ("evals.jsonl", "test/per_class.csv", "test/predictions.json"):
        assert (one.parent / name).read_text() == (other.parent / name).read_text()
    if settings.get("precision") == "fp16":
        scales = [read_json(folder / "state" / "loss_scale.json") for folder in (one, other)]
        assert scales[0] == scales[1] and logged(one.parent)[-1]["loss_scale"] == 65536.0


@pytest.mark.slow
def test_a_run_that_is_stopped_in_its_last_test_is_not_finished_and_goes_on_to_its_table(
    recipe, run, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recipe, "detect_videos", raise_interrupt)
        run()
    assert (out / "step-000002").is_dir() and not (out / "finished").exists()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no room"):
        patch.setattr(recipe, "finish", raise_full)
        run(resume="auto")
    assert not (out / "finished").exists()
    capsys.readouterr()
    scores = run(resume="auto")
    assert (out / "finished").read_text() == "step-000002\n" and len(logged(out)) == 2
    printed = capsys.readouterr().out
    assert "nothing remains to be trained" in printed and f"the average of its weights: {scores}" in printed
    assert printed.count(AVERAGE_IS_YOUNG) == 2  # before the run, and beside its table


@pytest.mark.slow
def test_a_finished_run_only_says_what_it_found_and_goes_on_for_more_steps(run, tmp_path):
    first = run(resume="auto")
    written = (tmp_path / "run" / "test" / "answers" / "00-of-01.jsonl").read_text()
    assert run(resume="auto").mean == first.mean
    assert (tmp_path / "run" / "test" / "answers" / "00-of-01.jsonl").read_text() == written
    (line,) = lines(tmp_path / "run" / "evals.jsonl")
    (tmp_path / "run" / "evals.jsonl").write_text(json.dumps({**line, "score": -1.0}) + "\n")
    run(resume="auto", steps=4)
    assert read_json(tmp_path / "run" / "test" / "result.json")["step"] == 4


def test_a_run_that_goes_on_with_as_many_other_actions_says_so(run, root, tmp_path, capsys):
    run()
    moved = shutil.copytree(root, tmp_path / "moved")
    capsys.readouterr()
    run(resume="auto", root=moved)
    assert "warning: " not in capsys.readouterr().out.replace(
        AVERAGE_IS_YOUNG, ""
    )  # the folder is no difference
    file = moved / "annotations" / "thumos_14_anno.json"
    content = read_json(file)
    for name in (VALIDATION[0], TEST[0]):
        content["database"][name]["annotations"][0]["segment"][1] += 0.5
    file.write_text(json.dumps(content))
    run(resume="auto", root=moved)
    told = capsys.readouterr().out
    for name in ("train", "test"):
        assert f"step-000002 is of a run with another {name} split (its digest was " in told


@pytest.mark.slow
def test_a_run_that_goes_on_with_a_corrected_annotation_is_tested_on_it(run, root, tmp_path):
    run(resume="auto")
    moved = shutil.copytree(root, tmp_path / "corrected")
    file = moved / "annotations" / "thumos_14_anno.json"
    content = read_json(file)
    content["database"] = {name: content["database"][name] for name in reversed(content["database"])}
    file.write_text(json.dumps(content))
    run(resume="auto", root=moved)
    assert read_json(tmp_path / "run" / "test" / "result.json")["split"]["root"] == str(moved)


# ---- bad videos


@pytest.mark.slow
def test_a_video_that_cannot_be_read_is_counted_and_the_step_goes_on(run, root, tmp_path):
    broken = shutil.copytree(root, tmp_path / "broken")
    for name in VALIDATION:
        (broken / "raw_data" / "video" / f"{name}.mp4").write_bytes(b"no video")
    scores = run(root=broken, max_bad_share=1.0, eval_from=1)
    out = tmp_path / "run"
    assert [(line["clips"], line["loss"], line["grad_norm"]) for line in logged(out)] == [(0, 0.0, 0.0)] * 2
    rejected = lines(out / "rejected-0.jsonl")
    assert [row["row_id"] for row in rejected] == sorted(
        VALIDATION, key=[r["row_id"] for r in rejected].index
    )
    assert len(rejected) == 2 and "not a video" in rejected[0]["reason"] and scores.videos == 3
    with pytest.raises(RuntimeError, match=r"2 of 2 rows so far could not be used.*or raise max_bad_share"):
        run(root=broken, out="other")


# ---- settings


def test_a_dry_run_shows_everything_and_writes_nothing(run, tmp_path, capsys):
    assert run("--dry-run") is None and not (tmp_path / "run").exists()
    printed = capsys.readouterr().out
    for text in ("clips: (2, 16, 3, 32, 32)", "mask: (2, 16)", "ema_decay: 0.999", "schedule_epochs: 100"):
        assert text in printed
    assert "count: " in printed and "2 windows at 32 px" in printed and "total" in printed


def settings_of(recipe, *words):
    return recipe.fill_in(parse(recipe.Detection, ["--data", "thumos14", *words], "")[0])


def test_what_is_not_given_is_adatads(recipe):
    assert DETECTORS.keys() >= {"s", "b", "l"}
    for variant, rate in (("s", 2e-4), ("b", 1e-4), ("l", 1e-4)):
        found = settings_of(recipe, "--variant", variant)
        assert (found.adapter_lr, found.lr, found.weight_decay) == (rate, 1e-4, 0.05)
    assert (found.frames, found.stride, found.size_px, found.clips_a_step) == (768, 4, 160, 2)
    assert (found.epochs, found.schedule_epochs, found.warmup_epochs) == (60, 100, 5.0)
    assert (found.clip_norm, found.ema_decay, found.eval_from, found.eval_every) == (1.0, 0.999, 42, 2)
    assert settings_of(recipe).variant == "b" and settings_of(recipe, "--epochs", "3").epochs == 3


def test_the_steps_of_thumos_are_adatads(recipe):
    for processes, batch_size in ((1, 2), (2, 1)):
        an_epoch, loop = recipe.plan_steps(settings_of(recipe), 200, processes)
        assert (an_epoch, loop.steps, loop.batch_size, loop.accumulate) == (100, 6000, batch_size, 1)
        assert (loop.evaluate_every, loop.save_every, loop.unit) == (200, 200, "frames")
        assert [loop.rate(step, 1e-4) for step in (0, 499, 500)] == pytest.approx([0.0, 1e-4, 1e-4])
        assert loop.rate(5999, 1e-4) == pytest.approx(3.774798087912057e-05, rel=1e-9)
    an_epoch, loop = recipe.plan_steps(settings_of(recipe, "--batch-size", "1"), 201, 1)
    assert (an_epoch, loop.batch_size, loop.accumulate) == (101, 1, 2)
    _, short = recipe.plan_steps(settings_of(recipe, "--steps", "600"), 200, 1)
    assert short.rate(49, 1.0) == 1.0 and short.rate(599, 1e-4) == pytest.approx(3.77e-05, rel=0.01)


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"frames": 24}, "frames is 24; it must be a multiple of 16, a chunk of"),
        ({"size_px": 40}, "size_px is 40; it must be a multiple of 16, a patch of"),
        ({"variant": "g"}, "variant is 'g'; it must be one of s, b, l"),
        ({"data": "activitynet"}, "data is 'activitynet'; it must be one of thumos14, json"),
        ({"root": None}, "name the folder of its annotation and videos with --root"),
        ({"epochs": 120}, "schedule_epochs is 100, below epochs, 120; raise it"),
        ({"warmup_epochs": "inf"}, "warmup_epochs is inf; it must be below schedule_epochs, 100"),
        ({"videos": "videos:"}, "videos is 'videos:', with an empty name; write folders"),
        ({"temporal": "none", "temporal_options": None}, "temporal_layers is '1' with temporal 'none'"),
        ({"temporal_options": "{depth: 3}"}, "'moss' cannot be built with temporal_options '{depth: 3}'"),
        ({"cache_gib": 1}, "cache_gib limits what is added to cache, which is not given"),
        ({"precision": "half"}, "precision is 'half'; it must be one of fp32, bf16, fp16"),
        ({"ema_decay": 1.5, "clip_norm": 0}, "clip_norm is 0.0; it must be above 0"),
        ({"subset": "testing"}, "no video has the subset 'testing', by which test is chosen"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_the_run(run, tmp_path, settings, told):
    with pytest.raises(ValueError, match=told.replace("(", r"\(")):
        run(**settings)
    assert not (tmp_path / "run").exists()


# ---- the embedded default


@pytest.fixture(scope="module")
def untrimmed(tmp_path_factory):
    return draw_untrimmed(tmp_path_factory.mktemp("world") / "untrimmed", UntrimmedSize(3, 1))


@pytest.mark.slow
@pytest.mark.parametrize("one_frame", [False, True])
def test_the_miniature_trains_on_what_is_drawn_here(recipe, untrimmed, tmp_path, capsys, one_frame):
    out = tmp_path / "run"
    words = as_flags({"root": untrimmed, "out": out, "steps": 2, "workers": 0, "tracker": "none"})
    scores = recipe.main([*words, *(["--one-frame"] if one_frame else [])])
    printed = " ".join(capsys.readouterr().out.split())
    assert "mini train: kept 3 of 3 videos, 0 missing" in printed and "of 8 classes" in printed
    assert "AdaTAD mini; moss after layer 1, on the whole window" in printed
    told = "2 steps of 4 windows of 64 frames, every 2, 64 px 4 epochs of warm-up, a cosine to epoch 40"
    assert told in printed
    assert {line["clips"] for line in logged(out)} == {4} and scores.videos == 1
    loaded = checkpoint.load(out / "best")
    assert loaded.model.encoder.one_frame is one_frame and loaded.classes == tuple(UNTRIMMED_CLASSES)
    assert loaded.run["pixels"] == {"size_px": 64, "train_short_side_px": 64, "augment": False}
    assert loaded.run["settings"]["weights"] == "random" and loaded.model.detector.levels == 4
    stored = read_answers(out / "test" / "answers", DETECTION_SCHEMA)
    assert stored.header["benchmark"] == "mini" and list(stored.answers) == ["video_test_0000001"]


def test_what_is_left_out_is_the_miniatures(recipe):
    left = recipe.fill_in(recipe.Detection())
    assert (left.data, left.variant, left.weights, left.adapter_lr) == ("mini", "mini", "random", 4e-3)
    theirs = recipe.fill_in(recipe.Detection(data="thumos14"))
    assert (theirs.variant, theirs.weights, theirs.lr, theirs.ema_decay) == ("b", "pretrained", 1e-4, 0.999)
    assert theirs.augment and not left.augment
