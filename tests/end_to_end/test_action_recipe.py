"""Owns: the action recipe as users start it - each dataset's real layout, its settings, and what is "
"refused."""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from action_layouts import DATASETS, SSV_NAMES, write_layout
from launching import ROOT, logged
from safetensors.torch import load_file, save_file

from moss_vllm.core.presets import TEMPORAL_NAMES
from moss_vllm.recognition import checkpoint
from moss_vllm.recognition.build import build_classifier
from moss_vllm.recognition.dataset_views import DATASET_VIEWS
from moss_vllm.recognition.schema import CLIP_SCHEMA
from moss_vllm.runtime.line_store import read_answers
from moss_vllm.training.settings import parse

pytestmark = pytest.mark.usefixtures("one_process")

# Of what the protocols say only the sizes are changed.
SMALL = {"variant": "mini", "size_px": 84, "frames": 4, "steps": 2, "clips_a_step": 2, "batch_size": 2}
SMALL |= {"workers": 0, "tracker": "none", "eval_every": 1}
TINY = {**SMALL, "data": "list", "size_px": 28}
WEIGHTS = checkpoint.WEIGHTS_FILE


def script(folder):
    """The module recipes/action_recog.py or eval/action_recog.py."""
    name = f"{folder}_action_recog"
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / "action_recog.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # the dataclass looks its annotations up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recipe():
    yield script("recipes")
    del sys.modules["recipes_action_recog"]


@pytest.fixture(scope="module")
def tester():
    yield script("eval")
    del sys.modules["eval_action_recog"]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """The folder of each dataset; not to be changed."""
    root = tmp_path_factory.mktemp("layouts")
    for data in DATASETS:
        write_layout(data, root / data)
    return root


@pytest.fixture(scope="module")
def trained(recipe, layouts, tmp_path_factory):
    """The folder of a run on `list`, and of one on Kinetics; not to be changed."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    root = tmp_path_factory.mktemp("trained")
    for data in ("list", "k400"):
        recipe.main(words({**TINY, "data": data, "root": layouts / data, "out": root / data}))
    return root


def words(given):
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in given.items())
    return [text for pair in pairs for text in pair]


def read_json(path):
    return json.loads(path.read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def equal(one, other):
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])] == []


# ---- each dataset, trained and tested


EXPECTED = {  # classes; ids of the test clips; sampling, views of a test, training views, RandAugment
    "ssv1": (4, ["100222", "100223"], "uniform", (2, 3), 2, True),
    "ssv2": (4, ["49", "50"], "uniform", (2, 3), 2, True),
    "diving48": (48, ["-mmq0PT-u8k_00159", "-mmq0PT-u8k_00160"], "uniform", (2, 3), 1, False),
    "gym99": (99, [f"A0xAXXysHUo_E_002184_002237_A_00{i}_00{i + 1}" for i in (39, 40)], "uniform",
              (2, 3), 1, False),
    "gym288": (288, [f"A0xAXXysHUo_E_002184_002237_A_00{i}_00{i + 1}" for i in (39, 40)], "uniform",
               (2, 3), 1, False),
    "k400": (3, ["0wR5jVB-WPk_000417_000427", "1Px6ybRnBzk_000000_000010"], "dense", (4, 3), 2, False),
    "list": (4, ["clip 4.mp4", "clip_5.webm"], "uniform", (2, 3), 1, False),
}  # fmt: skip


@pytest.mark.parametrize("data", DATASETS)
def test_each_dataset_trains_two_steps_and_is_tested(recipe, tester, layouts, tmp_path, data, capsys):
    classes, ids, sampling, (clips, crops), repeats, augmented = EXPECTED[data]
    out, tracker = tmp_path / "run", "tensorboard" if data == "ssv1" else "none"
    given = {**SMALL, "data": data, "root": layouts / data, "out": out, "tracker": tracker}
    found = recipe.main(words(given))
    printed = capsys.readouterr().out
    folders = {"best", "step-000002", "evals", "test"} | ({"tensorboard"} if data == "ssv1" else set())
    assert {path.name for path in out.iterdir() if path.is_dir()} == folders
    # What was trained on: every clip once, in as many views as the protocol says.
    assert [line["step"] for line in logged(out)] == [1, 2]
    assert [line["clips"] for line in logged(out)] == [2, 2]
    assert [line["frames"] for line in logged(out)] == [2 * repeats * 4] * 2
    assert list(logged(out)[0]["lr"]) == ["moss", "host"]
    # What was found: a line a clip, scores by hand from them.
    stored = read_answers(out / "test" / "answers", CLIP_SCHEMA)
    assert list(stored.answers) == ids and not stored.failed and stored.header["questions"] == 2
    assert [row["uid"] for row in found.rows] == ids and found.pending == 0
    for row in found.rows:
        shares = [share for _, share in row["top5"]]
        assert len(shares) == min(5, classes) and shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) <= 1.00001 and row["output"] == row["top5"][0][0]
        assert row["correct"] == (row["output"] == row["answer"])
    top1 = 50.0 * sum(row["correct"] for row in found.rows)
    result = read_json(out / "test" / "result.json")
    assert result == {"data": data, "step": 2, "views": f"{clips} clips x {crops} crops", **found.summary()}
    assert (found.top1, found.class_mean, result["clips"]) == (top1, top1, 2)  # two classes, a clip each
    assert f"test of step 2, {clips} clips x {crops} crops: top-1 {top1:.2f}" in printed
    (line,) = lines(out / "evals.jsonl")
    assert line["step"] == 2 and line["clips"] == 2
    assert line["score"] == line["class_mean" if data.startswith("gym") else "top1"]
    # What is kept.
    loaded = checkpoint.load(out / "best")
    assert len(loaded.classes) == classes and loaded.run["data"] == data and loaded.run["step"] == 2
    views = loaded.run["views"]
    assert (views["sampling"], views["clips"], views["crops"]) == (sampling, clips, crops)
    assert views["repeats"] == repeats and bool(views["randaugment"]) == augmented
    assert (views["frames"], views["size_px"]) == (4, 84)
    assert equal(load_file(out / "best" / WEIGHTS), load_file(out / "step-000002" / WEIGHTS))
    # The same test from the checkpoint alone.
    again = tester.main(words({"ckpt": out / "best", "workers": 0}))
    assert again.rows == found.rows
    folder = out / f"best-test-{clips}x{crops}"
    assert {**read_json(folder / "result.json"), "views": result["views"]} == result
    assert (folder / "per_class.csv").read_text() == (out / "test" / "per_class.csv").read_text()


def test_the_protocols_views_are_those_of_table_7(recipe, layouts, tmp_path, capsys):
    """Without sizes of our own; a dry run reads two real clips that way."""
    for data, frames, size in (
        ("ssv2", 8, 224),
        ("diving48", 32, 224),
        ("k400", 16, 224),  # with the miniature's ladder; of B and L see below
        ("gym99", 32, 224),
    ):
        given = {"data": data, "root": layouts / data, "out": tmp_path / "run", "weights": "random"}
        recipe.main([*words({**given, "variant": "mini", "workers": 0}), "--dry-run"])
        views = DATASET_VIEWS[data]["paper"]
        assert (views.frames, views.size_px) == (frames, size)
        shown = " ".join(capsys.readouterr().out.split())
        assert f"x {views.repeats} views of {frames} frames, {size} px, sampled {views.sampling}" in shown
        assert f"video: ({2 * views.repeats}, {frames}, 3, {size}, {size})" in shown
    assert not (tmp_path / "run").exists()


# ---- going on


@pytest.mark.parametrize("host", ["ladder", "aim"])  # aim drops out, from a generator that is kept
def test_a_resumed_run_ends_in_the_same_weights(recipe, layouts, tmp_path, host):
    given = {**TINY, "root": layouts / "list", "host": host, "steps": 4, "resume": "auto", "repeats": 2}
    given |= {"randaugment": "rand-m7-n4-mstd0.5-inc1", "clips_a_step": 4, "eval_every": 2}  # of 2 x 2 clips
    recipe.main(words({**given, "out": tmp_path / "straight"}))
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "step-000004")  # as a run that was killed in the last step
    shutil.rmtree(tmp_path / "resumed" / "test")
    recipe.main(words({**given, "out": tmp_path / "resumed"}))
    one, other = (tmp_path / out / "step-000004" for out in ("straight", "resumed"))
    assert equal(load_file(one / WEIGHTS), load_file(other / WEIGHTS))
    assert equal(*(load_file(p / "state" / "optimizer.safetensors") for p in (one, other)))
    told = [[(x["step"], x["loss"], x["lr"]) for x in logged(p.parent)] for p in (one, other)]
    assert told[0] == told[1] and len(told[0]) == 4
    for name in ("evals.jsonl", "test/per_class.csv"):
        assert (one.parent / name).read_text() == (other.parent / name).read_text()


def test_a_finished_run_only_says_what_it_found_and_goes_on_for_more_steps(recipe, layouts, tmp_path):
    given = {**TINY, "root": layouts / "list", "out": tmp_path / "run", "resume": "auto"}
    first = recipe.main(words(given))
    started = read_json(tmp_path / "run" / "settings.json")["started"]
    written = (tmp_path / "run" / "test" / "answers" / "00-of-01.jsonl").read_text()
    assert recipe.main(words(given)).rows == first.rows
    assert (tmp_path / "run" / "test" / "answers" / "00-of-01.jsonl").read_text() == written
    # More steps: another checkpoint may be the best one, and then its test takes the place of the first.
    (line,) = lines(tmp_path / "run" / "evals.jsonl")
    worst = json.dumps({**line, "score": -1.0}) + "\n"
    (tmp_path / "run" / "evals.jsonl").write_text(worst)
    recipe.main(words({**given, "steps": 4}))
    assert read_json(tmp_path / "run" / "test" / "result.json")["step"] == 4
    assert [line["step"] for line in lines(tmp_path / "run" / "evals.jsonl")] == [2, 4]
    record = read_json(tmp_path / "run" / "settings.json")
    assert record["started"] == started and record["steps"] == 4


def test_a_step_of_another_run_may_be_gone_on_from(recipe, layouts, trained, tmp_path):
    given = {**TINY, "root": layouts / "list", "out": tmp_path / "run"}
    found = recipe.main(words({**given, "resume": trained / "list" / "step-000002"}))  # nothing is left to do
    assert read_json(tmp_path / "run" / "test" / "result.json")["step"] == 2 and len(found.rows) == 2
    assert [line["step"] for line in lines(tmp_path / "run" / "evals.jsonl")] == [2]
    weights = [load_file(out / "best" / WEIGHTS) for out in (trained / "list", tmp_path / "run")]
    assert equal(*weights)


def test_a_start_takes_over_all_but_the_head(recipe, layouts, trained, tmp_path):
    given = {**TINY, "data": "diving48", "root": layouts / "diving48", "out": tmp_path / "run", "lr": 0.0}
    recipe.main(words({**given, "start": trained / "k400" / "best", "steps": 1}))
    before = load_file(trained / "k400" / "best" / WEIGHTS)
    after = load_file(tmp_path / "run" / "step-000001" / WEIGHTS)
    assert before.keys() == after.keys()
    head = {name for name in after if name.startswith("ladder.head.")}
    assert head == {"ladder.head.weight", "ladder.head.bias"}
    assert before["ladder.head.weight"].shape == (3, 48) and after["ladder.head.weight"].shape == (48, 48)
    moved = {name for name in after.keys() - head if not torch.equal(after[name], before[name])}
    # At rate 0 nothing moves but BatchNorm's statistics, which go on from where they were.
    assert moved and all(re.search(r"\.(running_\w+|num_batches_tracked)$", name) for name in moved)
    counts = [name for name in moved if name.endswith("num_batches_tracked")]
    assert counts and all(after[name] == before[name] + 1 == 3 for name in counts)


def test_a_clip_that_cannot_be_read_is_counted(recipe, layouts, tmp_path):
    root = tmp_path / "gym99"
    shutil.copytree(layouts / "gym99", root)
    names = sorted(path.name for path in (root / "subactions").iterdir())
    for index in (1, 5):  # one of each split
        (root / "subactions" / names[index]).write_bytes(b"no video")
    given = {**TINY, "data": "gym99", "root": root, "out": tmp_path / "run", "max_bad_share": 0.25}
    found = recipe.main(words({**given, "repeats": 2, "clips_a_step": 1, "steps": 4}))
    read = sorted((line["clips"], line["loss"] > 0) for line in logged(tmp_path / "run"))
    assert read == [(0, False), (1, True), (1, True), (1, True)]  # a step of no clip at all, too
    (line,) = lines(tmp_path / "run" / "rejected-0.jsonl")
    assert f"{line['row_id']}.mp4" == names[1] and "not a video" in line["reason"]
    assert list(found.failed) == [names[5].removesuffix(".mp4")] and len(found.rows) == 2
    assert found.summary()["failed"] == 1 and not found.rows[1]["correct"]


# ---- settings


def settings_of(recipe, **given):
    return recipe.fill_in(parse(recipe.ActionRecog, words(given), "")[0])


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"data": "ssv1"}, ("s", 128, 40, 1e-3, 0.15)),
        ({"data": "ssv2", "variant": "b"}, ("b", 128, 40, 1e-3, 0.15)),
        ({"data": "ssv2", "variant": "m"}, ("m", 96, 30, 2e-4, 0.15)),
        ({"data": "ssv2", "variant": "l"}, ("l", 80, 30, 2e-4, 0.15)),
        ({"data": "ssv2", "variant": "MOSS-L"}, ("l", 80, 30, 2e-4, 0.15)),
        ({"data": "k400", "variant": "b"}, ("b", 128, 30, 1e-3, 0.15)),
        ({"data": "k400", "variant": "l"}, ("l", 96, 30, 2e-4, 0.15)),
        ({"data": "diving48", "variant": "b"}, ("b", 128, 30, 1e-3, 0.15)),
        ({"data": "gym288", "variant": "l"}, ("l", 80, 30, 2e-4, 0.15)),
        ({"data": "ssv2", "host": "full"}, ("s", 128, 20, 7e-4, 0.05)),
        ({"data": "ssv2", "host": "aim", "lr": 0.5}, ("s", 64, 50, 0.5, 0.05)),
        ({"data": "ssv2", "host": "dist", "epochs": 3}, ("s", 256, 3, 3.2e-4, 1e-4)),
        ({"variant": "s"}, ("s", 128, 40, 1e-3, 0.15)),
    ],
)
def test_what_is_not_given_is_table_7s(recipe, given, expected):
    found = settings_of(recipe, **given)
    names = ("variant", "clips_a_step", "epochs", "lr", "weight_decay")
    assert tuple(getattr(found, name) for name in names)[:3] == expected[:3]
    assert tuple(getattr(found, name) for name in names)[3:] == pytest.approx(expected[3:])
    assert found.layer_decay == (0.7 if given.get("host") == "full" else None)


def test_the_miniature_has_a_row_of_its_own_on_any_data(recipe):
    (row,) = recipe.yaml.safe_load(recipe.SCHEDULES.read_text())["mini"].values()
    assert row.keys() == {"clips_a_step", "epochs", "lr"}
    for given in ({}, {"data": "ssv2", "variant": "mini"}):
        found = settings_of(recipe, **given)
        assert found.variant == "mini" and {name: getattr(found, name) for name in row} == row


def test_the_miniatures_encoder_is_random_unless_a_file_is_named(recipe):
    assert settings_of(recipe).weights == "random"
    assert settings_of(recipe, weights="a.safetensors").weights == "a.safetensors"
    assert settings_of(recipe, backbone="clip_b16").weights == "pretrained"
    assert settings_of(recipe, variant="s").weights == "pretrained"
    assert (settings_of(recipe).size_px, settings_of(recipe, variant="s").size_px) == (None, 224)


@pytest.mark.parametrize(
    "clips, processes, batch_size, expected",
    [  # batch size and micro-batches of a process, clips a step, steps of an epoch, of the run, warm-up
        (168_913, 8, 16, (16, 1, 128, 1320, 52_800, 0.1)),
        (168_913, 1, 16, (16, 8, 128, 1320, 52_800, 0.1)),
        (168_913, 2, 64, (64, 1, 128, 1320, 52_800, 0.1)),
        (168_913, 4, 64, (32, 1, 128, 1320, 52_800, 0.1)),
        (86_017, 3, 16, (16, 3, 144, 598, 23_920, 0.1)),
        (4, 1, 2, (2, 64, 128, 1, 40, 0.1)),
    ],
)
def test_steps_follow_the_clips_a_step(recipe, clips, processes, batch_size, expected):
    settings = settings_of(recipe, data="ssv2", batch_size=batch_size)
    an_epoch, loop = recipe.plan_steps(settings, clips, processes)
    a_step = loop.batch_size * loop.accumulate * processes
    found = (loop.batch_size, loop.accumulate, a_step, an_epoch, loop.steps, loop.warmup_share)
    assert found == pytest.approx(expected)
    assert loop.save_every == 2 * an_epoch and loop.floor == 0.01 and loop.clip_norm == 20


def test_a_short_run_warms_up_for_a_fifth_of_it(recipe):
    settings = settings_of(recipe, data="ssv2", steps=10)
    assert recipe.plan_steps(settings, 1280, 1)[1].warmup_share == pytest.approx(0.2)


@pytest.mark.parametrize("temporal", TEMPORAL_NAMES)
def test_each_temporal_module_builds_and_runs(recipe, temporal):
    given = {"temporal": temporal, "frames": 2, "size_px": 28}
    if temporal != "none":
        given["temporal_layers"] = "4,2"
    if temporal == "moss":
        given["temporal_options"] = "{orders: [1, 2, 3], window: [3, 3, 3], d_hidden: 8}"
    how = recipe.model_arguments(settings_of(recipe, **given), 5)
    assert json.loads(json.dumps(how)) == how  # a checkpoint has it as JSON
    model = build_classifier(**how).eval()
    assert model(torch.randn(1, 2, 3, 28, 28)).shape == (1, 5)
    placed = {} if temporal == "none" else {2: "moss", 4: "moss2"}
    assert model.ladder.temporal_names == placed
    if temporal == "moss":
        assert model.ladder.moss.orders == (1, 2, 3) and model.ladder.moss.order1.window == (3, 3, 3)


@pytest.mark.parametrize("host", ["full", "aim", "dist"])
def test_each_host_trains(recipe, layouts, tmp_path, host):
    given = {
        **TINY,
        "root": layouts / "list",
        "out": tmp_path / "run",
        "host": host,
        "steps": 1,
        "size_px": 28,
    }
    found = recipe.main(words(given))
    assert len(found.rows) == 2 and (logged(tmp_path / "run")[0]["clips"]) == 2
    loaded = checkpoint.load(tmp_path / "run" / "best")
    per_encoded = loaded.model.frames_per_encoded
    assert loaded.run["views"]["frames"] == 4 * per_encoded and loaded.run["model"]["frames"] == 4
    # The encoder is in the checkpoint where it trains, and has a fingerprint where it does not.
    names = load_file(tmp_path / "run" / "best" / WEIGHTS).keys()
    assert ("vit.blocks.0.attn.qkv.weight" in names) == (host == "full")
    assert (loaded.run["encoder_fingerprint"] == checkpoint.encoder_fingerprint(loaded.model)) and len(
        loaded.run["encoder_fingerprint"]
    ) == 16


def test_flags_win_over_yaml_and_yaml_over_the_table(recipe, layouts, tmp_path):
    config = {**TINY, "root": str(layouts / "list"), "lr": 0.5, "temporal": "stss1", "allow_missing": True}
    text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in config.items())
    (tmp_path / "run.yaml").write_text(text)
    given = {"config": tmp_path / "run.yaml", "out": tmp_path / "run", "lr": 0.25, "steps": 1}
    recipe.main([*words(given), "--no-allow-missing"])
    settings = checkpoint.load(tmp_path / "run" / "best").run["settings"]
    assert settings["lr"] == 0.25 and settings["temporal"] == "stss1" and settings["steps"] == 1
    assert (
        settings["allow_missing"] is False
        and settings["epochs"] == settings_of(recipe).epochs
        and settings["weight_decay"] == 0.15
    )
    assert read_json(tmp_path / "run" / "settings.json")["settings"] == settings


def test_a_dry_run_shows_everything_and_writes_nothing(recipe, layouts, tmp_path, capsys):
    given = {**SMALL, "data": "ssv1", "root": layouts / "ssv1", "out": tmp_path / "run"}
    assert recipe.main([*words(given), "--dry-run"]) is None
    assert not (tmp_path / "run").exists()
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "ssv1 train: kept 4 of 4 clips, 0 missing, 4 classes (4 with clips); published count 86,017",
        "ladder mini beside mini_vit, weights random; moss after layer 2",
        "one process x1, precision fp32: 2 steps of 2 clips x 2 views of 4 frames, 84 px, sampled uniform",
        "tests show 2 x 3",
        "what trains",
        "63,456",
        "weight_decay: 0.15",
        # The views that hold, not what was left open.
        "frames: 4",
        "sampling: uniform",
        "repeats: 2",
        "randaugment: rand-m7-n4-mstd0.5-inc1",
        "train_scale: (96, 120)",
        "test_scale: (96, 120)",
        "grayscale: 0.0",
        "flip: 0.5",
        "clip_norm: 20.0",
        "video: (4, 4, 3, 84, 84)",
        "labels: (4,)",
    ):
        assert text in shown, text


@pytest.mark.parametrize(
    "given, shown",
    [
        ({"variant": "b"}, "x 2 views of 32 frames, 224 px, sampled dense; tests show 4 x 3"),
        ({"variant": "MOSS-L", "backbone": "mini_vit"}, "x 2 views of 16 frames, 224 px, sampled dense"),
        ({"variant": "b", "protocol": "authors"}, "x 1 views of 16 frames, 224 px, sampled uniform-k400"),
        ({"variant": "l", "protocol": "authors"}, "x 2 views of 16 frames, 224 px, sampled uniform-k400"),
    ],
)
def test_kinetics_frames_and_repeats_are_the_variants(recipe, layouts, tmp_path, given, shown, capsys):
    small = {"backbone": "mini_vit", "host": "full", "temporal_layers": "2", "temporal": "moss"}
    given = {"data": "k400", "root": layouts / "k400", "out": tmp_path / "run", **small, **given}
    recipe.main([*words({**given, "weights": "random"}), "--dry-run"])
    assert shown in " ".join(capsys.readouterr().out.split())


def test_a_list_that_tells_left_from_right_is_not_mirrored(recipe, layouts, tmp_path, capsys):
    given = {**TINY, "root": layouts / "list", "out": tmp_path / "run"}
    recipe.main([*words(given), "--dry-run"])
    printed = capsys.readouterr().out.splitlines()
    assert "flip: 0.0" in printed and "randaugment: none" in printed


def test_help_names_and_explains_every_setting(recipe, capsys):
    with pytest.raises(SystemExit) as stopped:
        recipe.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    for field in dataclasses.fields(recipe.ActionRecog):
        assert f"--{field.name.replace('_', '-')}" in shown
        told = {True: "yes", False: "no"}[field.default] if field.type is bool else field.default
        untold = told is None or "default" in field.metadata["help"]
        explained = field.metadata["help"] + ("" if untold else f" (default: {told})")
        assert " ".join(explained.split()) in shown.replace("- ", "-"), field.name
    assert "None" not in shown.partition("--data STR")[2]  # what holds is said
    for text in ("(default: s, b 1e-3; m, l 2e-4; mini 2e-3)", "K400 32, m and l 16)", "SSV, K400 2;"):
        assert text in shown
    for text in (*DATASETS, "Table 7", "--dry-run", "--start", "accelerate launch", "eval/action_recog.py"):
        assert text in shown


# ---- what is wrong in a dataset


LABELS = {
    "ssv1": "something-something-v1-labels.csv",
    "ssv2": "labels/labels.json",
    "diving48": "Diving48_vocab.json",
    "gym99": "gym99_categories.txt",
    "gym288": "gym288_categories.txt",
    "k400": "train.csv",  # its classes are those of the lists
    "list": "sth_labels.csv",
}
LISTS = {  # of train and test, and what stands for a class in them
    "ssv1": (
        "something-something-v1-train.csv",
        "something-something-v1-validation.csv",
        "Turning",
        "Eating",
    ),
    "ssv2": ("labels/train.json", "labels/validation.json", "Turning", "Eating"),
    "diving48": ("Diving48_V2_train.json", "Diving48_V2_test.json", '"label": 47', '"label": 48'),
    "gym99": ("gym99_train_element_v1.1.txt", "gym99_val_element.txt", "0036 98", "0036 99"),
    "gym288": ("gym288_train_element_v1.1.txt", "gym288_val_element.txt", "0036 287", "0036 288"),
    "k400": ("train.csv", "val.csv", "", ""),
    "list": ("train.txt", "val.txt", "clip 1 12 2", "clip 1 12 4"),
}


@pytest.fixture
def refused(recipe, tmp_path):
    """A function that runs the recipe and returns its message; nothing may have been written."""

    def run(**given):
        with pytest.raises((ValueError, OSError, RuntimeError)) as caught:
            recipe.main(words({**TINY, "out": tmp_path / "run", **given}))
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    return run


@pytest.fixture
def copied(layouts, tmp_path):
    def copy(data):
        shutil.copytree(layouts / data, tmp_path / data)
        return tmp_path / data

    return copy


@pytest.mark.parametrize("data", DATASETS)
def test_a_wrong_root_or_label_file_is_named(refused, copied, tmp_path, data):
    told = refused(data=data, root=tmp_path / "gone")
    assert told == f"{tmp_path}/gone: folder: is not a folder; pass the folder of the dataset"
    root = copied(data)
    (root / LABELS[data]).unlink()
    told = refused(data=data, root=root)
    name = "labels.csv" if data == "list" else Path(LABELS[data]).name
    assert told.startswith(f"{root}: folder: no ") and name in told.split(" in ")[0]
    assert told.endswith("; pass the folder that holds it as root or annotation")


@pytest.mark.parametrize(
    "data", [data for data in DATASETS if data != "k400"]
)  # whose lists name its classes
def test_an_unknown_class_is_named(refused, copied, data):
    root, (name, _, old, new) = copied(data), LISTS[data]
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new, 1))
    told = refused(data=data, root=root)
    wrong = {"ssv1": "'Eating the", "ssv2": "'Eating the", "diving48": "48", "list": "'4'"}
    assert told.startswith(f"{root}/{name}: ") and told.endswith("; use the label file of the same release")
    assert f": class {wrong.get(data, repr(new[5:]))}" in told


def test_clips_of_both_lists_are_told_and_paths_are_no_markup(recipe, copied, tmp_path, capsys):
    root = copied("list").rename(tmp_path / "[old] list")
    (root / "val.txt").write_text((root / "train.txt").read_text())
    recipe.main([*words({**TINY, "root": root, "out": tmp_path / "run"}), "--dry-run"])
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "WARNING: 4 clips of" in shown and "[old] list/val.txt are trained on: some class/clip 0, so" in shown
    )


@pytest.mark.parametrize("data", DATASETS)
@pytest.mark.parametrize("split", [0, 1])
def test_an_empty_split_is_named(refused, copied, data, split):
    root, name = copied(data), LISTS[data][split]
    header = (root / name).read_text().splitlines()[0] if data == "k400" else ""
    (root / name).write_text("[]" if name.endswith(".json") else header)
    reason = {"json": "is an empty list; download it again", "": "is empty; download it again"}
    expected = reason["json" if name.endswith(".json") else ""]
    if data == "k400":
        expected = "lists no clip; check that it is the right file"
    assert refused(data=data, root=root) == f"{root}/{name}: file: {expected}"


def test_missing_videos_are_named_and_may_be_left_out(refused, recipe, copied, tmp_path):
    root = copied("ssv2")
    (root / "20bn-something-something-v2" / "46.webm").unlink()
    assert refused(data="ssv2", root=root) == (
        f"{root}/labels/train.json: 1 of 4 clips: no video in 20bn-something-something-v2, videos, . of "
        f"{root}: "
        "46.webm; download them, or allow missing videos (--allow-missing)"
    )
    given = {**TINY, "data": "ssv2", "root": root, "out": tmp_path / "run", "steps": 1}
    recipe.main([*words(given), "--allow-missing"])
    assert read_json(tmp_path / "run" / "settings.json")["data_lines"][0].startswith(
        "ssv2 train: kept 3 of 4 clips, 1 missing, 4 classes (3 with clips)"
    )


def test_too_many_clips_that_cannot_be_read_stop_the_run(recipe, copied, tmp_path):
    root = copied("diving48")
    (root / "rgb" / "-mmq0PT-u8k_00156.mp4").write_bytes(b"no video")
    given = {**TINY, "data": "diving48", "root": root, "out": tmp_path / "run"}
    told = (
        r"1 of [24] rows so far could not be used, more than 0\.5% of 4; see .*/run/rejected-\*\.jsonl and "
    )
    with pytest.raises(RuntimeError, match=told):
        recipe.main(words(given))
    assert not list((tmp_path / "run").glob("*step-*")) and not (tmp_path / "run" / "best").exists()


# ---- what is wrong in the settings


OPTIONS = "write them as '{orders: [1, 2]}'"
WRONG = [
    ({"data": "ucf101"},
     "data is 'ucf101'; it must be one of ssv1, ssv2, diving48, gym99, gym288, k400, list, mini"),
    ({"data": "mini", "root": "<list>"},
     "<list> exists and is no whole dataset of mini actions (no mini_actions.json); remove it or name "
     "another folder"),
    ({"root": None}, "data is 'list'; name the folder of its videos and annotation files with --root: "
     "{train,test}.txt, labels.csv, and what the lists name (other spellings in docs/action_recognition.md)"),
    ({"data": "mini", "root": None, "annotation": "<list>"},
     "data is 'mini', drawn whole with its own lists; leave out annotation and allow_missing"),
    ({"temporal": "none", "temporal_layers": "4", "cache_gib": 2.0, "epochs": 3},
     "temporal_layers is '4' with temporal 'none', which has no layers; leave one of the two out; "
     "cache_gib is 2.0 with no cache; leave one of the two out; "
     "epochs is 3 with steps 2, which say how long it trains; leave one of the two out"),
    ({"annotation": "<list>/train.txt"},
     "annotation <list>/train.txt is a file; name the folder of both lists"),
    ({"annotation": "<tmp>/gone"}, "<tmp>/gone: file: is not there; check the annotation's path"),
    ({"variant": "xl"}, "unknown variant 'xl'; choose one of s, b, m, l, mini"),
    ({"host": "lora"}, "unknown host 'lora'; choose one of ladder, full, aim, dist"),
    ({"backbone": "resnet50"},
     "'resnet50' is no vision transformer of timm <...>; choose one of clip_b16, <...>"),
    ({"temporal": "mos"}, "unknown temporal module 'mos'; choose one of moss, stss1, selfy, atm, r2plus1d, "
     "factorised_attention, local_attention, none"),
    ({"temporal_options": "[1"}, f"temporal_options is '[1' (<...>); {OPTIONS}"),
    ({"temporal_options": "[1]"}, f"temporal_options is '[1]' (it holds a list); {OPTIONS}"),
    ({"temporal_options": "{order: 2}"},
     "'moss' cannot be built with temporal_options '{order: 2}' (MOSS.__init__() "
     "got an unexpected keyword argument 'order'); moss_vllm/core has its arguments"),
    ({"temporal_options": "{classes: 2}"},
     "'moss' cannot be built with temporal_options '{classes: 2}' (<...>); "
     "moss_vllm/core has its arguments"),
    ({"temporal_options": "{d_hidden: -3}"},
     "'moss' cannot be built with temporal_options '{d_hidden: -3}' (<...>); "
     "moss_vllm/core has its arguments"),
    ({"temporal_options": "{orders: [0]}"},
     "orders=[0] are not different orders from 1 on; the paper uses (1, 2)"),
    ({"temporal_options": "{window: [4, 9, 9]}"}, "window (L, U, V) needs three positive odd sizes <...>"),
    ({"temporal": "none", "temporal_options": "{orders: [1]}"},
     "temporal module 'none' has no options, got orders; leave them out"),
    ({"temporal_layers": "six"}, "temporal_layers is 'six'; write different layers as '4' or '4,6'"),
    ({"temporal_layers": "2,2"}, "temporal_layers is '2,2'; write different layers as '4' or '4,6'"),
    ({"temporal_layers": "3"},
     "temporal modules at layers [3] would never run: the ladder taps layers (2, 4)"),
    ({"host": "aim", "temporal_layers": "9"}, "temporal modules at layers [9]; mini_vit has 1 to 4"),
    ({"weights": "vit.pt"},
     "weights <cwd>/vit.pt: neither 'pretrained', 'random' nor a .safetensors file. Others can "
     "run code when read; <...>"),
    ({"weights": "<tmp>/vit.safetensors"}, "weights <tmp>/vit.safetensors: no such file"),
    ({"layer_decay": 0.7},
     "layer_decay=0.7 scales the rates of an encoder that trains; that of LadderClassifier is "
     "frozen, leave it out"),
    ({"protocol": "theirs"}, "protocol is 'theirs'; it must be one of paper, authors"),
    ({"size_px": 50}, "size_px is 50; it must be a multiple of 14, a patch of mini_vit"),
    ({"size_px": 7}, "image_size=7 is less than a patch, which is 14 pixels"),
    ({"frames": 0}, "frames is 0; it must be at least 1"),
    ({"sampling": "random"}, "sampling is 'random'; it must be one of uniform, uniform-k400, dense"),
    ({"clips": 0}, "clips is 0; it must be at least 1"),
    ({"crops": 2}, "crops is 2; it must be 1 (centre) or 3 (left, right, centre)"),
    ({"repeats": 0}, "repeats is 0; it must be at least 1"),
    ({"randaugment": "m9"}, "randaugment is 'm9'; write it as 'rand-m7-n4-mstd0.5-inc1'"),
    ({"randaugment": "rand-m9-increasing"}, "randaugment is 'rand-m9-increasing' (a section is unknown, or "
     "there twice); write it as 'rand-m7-n4-mstd0.5-inc1'"),
    ({"precision": "half", "steps": 0, "lr": "nan", "floor": 2, "clip_norm": 0, "workers": -1, "cache": ""},
     "steps is 0; it must be at least 1; lr is nan; it must be a number from 0 to 1; floor is 2.0; it must "
     "be a "
     "number from 0 to 1; workers is -1; it must be at least 0; clip_norm is 0.0; it must be above 0; cache "
     "is empty; "
     "name a folder or a file; precision is 'half'; it must be one of fp32, bf16"),
    ({"tracker": "excel"}, "tracker is 'excel'; it must be one of tensorboard, wandb, trackio, none"),
    ({"out": "<list>/train.txt"},
     "out <list>/train.txt is not a folder that can be written to (<...>); name another"),
    ({"resume": "<tmp>/gone"},
     "<tmp>/gone: no step-NNNNNN folder with a state; resume from a checkpoint of this run"),
    ({"start": "<tmp>/gone"},
     "<tmp>/gone: no run.json; name a folder that recipes/action_recog.py wrote (step-NNNNNN or best)"),
]  # fmt: skip


def pattern(message, **places):
    for name, value in places.items():
        message = message.replace(f"<{name}>", str(value))
    return re.escape(message).replace(re.escape("<...>"), "(.|\n)+")


@pytest.mark.parametrize("given, message", WRONG, ids=[" ".join(map(str, given)) for given, _ in WRONG])
def test_wrong_settings_are_refused(refused, layouts, tmp_path, given, message):
    places = {"list": layouts / "list", "tmp": tmp_path, "cwd": os.getcwd()}
    for name, value in places.items():
        given = {k: v.replace(f"<{name}>", str(value)) if isinstance(v, str) else v for k, v in given.items()}
    given = {"root": layouts / "list", **given}
    told = refused(**{name: value for name, value in given.items() if value is not None})
    assert re.fullmatch(pattern(message, **places), told), told


# ---- what is wrong in a checkpoint


@pytest.fixture
def ground(recipe, tester, layouts, trained, tmp_path):
    """A copy of the run on `list`, and functions that run something on it."""
    run = tmp_path / "run"
    shutil.copytree(trained / "list", run)
    small = {**TINY, "root": layouts / "list"}

    def train(**given):
        return partial(recipe.main, words({**small, "out": run, **given}))

    def start(**given):
        return train(start=run / "best", out=tmp_path / "next", **given)

    def test(**given):
        return partial(tester.main, words({"ckpt": run / "best", "workers": 0, **given}))

    return SimpleNamespace(tmp=tmp_path, run=run, layouts=layouts, train=train, start=start, test=test)


def write_run(ground, text):
    (ground.run / "best" / "run.json").write_text(text)


def edit_run(ground, **values):
    file = ground.run / "best" / "run.json"
    write_run(ground, json.dumps({**read_json(file), **values}))


def edit_weights(ground, change):
    file = ground.run / "best" / WEIGHTS
    save_file(change(load_file(file)), file)


def without_a_norm(weights):
    return {name: value for name, value in weights.items() if name != "ladder.norm.running_mean"}


def with_nan(weights):
    return {**weights, "ladder.norm.weight": torch.full_like(weights["ladder.norm.weight"], float("nan"))}


def with_more(weights):
    return {**weights, "ladder.extra": torch.zeros(2)}


def with_a_wide_norm(weights):
    return {**weights, "ladder.norm.weight": torch.ones(7)}


def cut(ground):
    file = ground.run / "best" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-10])


def fewer_classes(ground):
    run = read_json(ground.run / "best" / "run.json")
    edit_run(ground, classes=run["classes"][:3])


def unknown_argument(ground):
    edit_run(ground, model={**read_json(ground.run / "best" / "run.json")["model"], "depth": 3})


def other_views(ground):
    ground.test(out=ground.tmp / "out")()


def torn_store(ground):
    other_views(ground)
    (ground.tmp / "out" / "answers" / "00-of-01.jsonl").open("a").write("no line\n")


WHOLE = "use a checkpoint of this classifier, whole"
NO_CHECKPOINT = "name a folder that recipes/action_recog.py wrote (step-NNNNNN or best)"
DAMAGED = [  # what, the damage, what is run ("train", "start" or "test") with what, the message
    ("an out folder of another run", None, "train", {},
     "<run>/step-000002 is there already; go on with --resume auto, or name another --out"),
    ("another seed", None, "train", {"resume": "auto", "seed": 1, "steps": 4},
     "<run>/step-000002 was trained with seed=0, this run has 1: rows would be skipped or repeated; <...>"),
    ("another number of clips a step", None, "train", {"resume": "auto", "clips_a_step": 4, "steps": 4},
     "<run>/step-000002 was trained with clips_a_step=2, this run has 4: rows would be skipped or repeated; "
     "<...>"),
    ("fewer steps", None, "train", {"resume": "auto", "steps": 1},
     "<run>/step-000002 is beyond the last step, 1; raise --steps, or name another --out"),
    ("another module", None, "train", {"resume": "auto", "temporal": "none"},
     f"<run>/step-000002/{WEIGHTS}: <...> left over (<...>); {WHOLE}"),
    ("a start of another host", None, "start", {"host": "full"},
     "<run>/best was trained beside other weights of mini_vit (fingerprint <...>, these have <...>); pass "
     "those with "
     "--weights"),
    ("weights that are missing", lambda ground: edit_weights(ground, without_a_norm), "start", {},
     f"<run>/best/{WEIGHTS}: 1 missing (ladder.norm.running_mean); {WHOLE}"),
    ("weights that are not finite", lambda ground: edit_weights(ground, with_nan), "start", {},
     f"<run>/best/{WEIGHTS}: 1 not finite (ladder.norm.weight); {WHOLE}"),
    ("weights left over", lambda ground: edit_weights(ground, with_more), "test", {},
     f"<run>/best/{WEIGHTS}: 1 left over (ladder.extra); {WHOLE}"),
    ("weights of another shape", lambda ground: edit_weights(ground, with_a_wide_norm), "test", {},
     f"<run>/best/{WEIGHTS}: 1 of another shape (ladder.norm.weight); {WHOLE}"),
    ("a file that is cut short", cut, "test", {},
     f"<run>/best/{WEIGHTS}: cannot be read (<...>); use another checkpoint"),
    ("no weights", lambda ground: (ground.run / "best" / WEIGHTS).unlink(), "test", {},
     f"<run>/best: no {WEIGHTS}; {NO_CHECKPOINT}"),
    ("no checkpoint", None, "test", {"ckpt": "<run>"}, f"<run>: no run.json; {NO_CHECKPOINT}"),
    ("a broken record", partial(write_run, text="{"), "test", {},
     "<run>/best/run.json: cannot be read as JSON (<...>); use an earlier checkpoint"),
    ("a record of something else", partial(write_run, text="{}"), "test", {},
     "<run>/best/run.json: has no model, encoder_fingerprint, classes, views, data; is it of a classifier?"),
    ("a record of a later version", unknown_argument, "test", {},
     "<run>/best/run.json: its model cannot be built (<...> 'depth'); use a whole checkpoint"),
    ("another encoder", lambda ground: edit_run(ground, encoder_fingerprint="0123456789abcdef"), "test", {},
     "<run>/best was trained beside other weights of mini_vit (fingerprint 0123456789abcdef, these have "
     "<...>); pass "
     "those with --weights"),
    ("data with other classes", None, "test", {"data": "gym99", "root": "<layouts>/gym99"},
     "<run>/best knows 4 classes and gym99 has 99, or others; test it on the dataset it was trained on"),
    ("data with classes left out", fewer_classes, "test", {},
     "<run>/best knows 3 classes and list has 4, or others; test it on the dataset it was trained on"),
    ("unknown data", None, "test", {"data": "ucf101"}, "data is 'ucf101'; it must be one of ssv1, <...>"),
    ("no root", lambda ground: edit_run(ground, settings={"root": None, "annotation": None}), "test", {},
     "data is 'list'; name the folder of its videos and annotation files with --root: <...>"),
    ("two crops", None, "test", {"crops": 2}, "crops is 2; it must be 1 (centre) or 3 (left, right, centre)"),
    ("a folder with other views", other_views, "test", {"out": "<tmp>/out", "clips": 1},
     "<tmp>/out/answers/00-of-01.jsonl holds answers of another run (protocol.clips was 2, is 1); evaluate "
     "again with "
     "--overwrite, or into another --out"),
    ("a line that is none", torn_store, "test", {"out": "<tmp>/out"},
     "<tmp>/out/answers/00-of-01.jsonl: line 4 is no line of an answer store (<...>"),
]  # fmt: skip


@pytest.mark.parametrize(
    "damage, what, given, message",
    [one[1:] for one in DAMAGED],
    ids=[one[0].replace(" ", "-") for one in DAMAGED],
)
def test_a_wrong_checkpoint_is_refused(ground, damage, what, given, message):
    if damage:
        damage(ground)
    places = {"run": ground.run, "tmp": ground.tmp, "layouts": ground.layouts}
    for name, value in places.items():
        given = {k: v.replace(f"<{name}>", str(value)) if isinstance(v, str) else v for k, v in given.items()}
    before = {path: path.read_bytes() for path in ground.tmp.rglob("*") if path.is_file()}
    with pytest.raises((ValueError, OSError, SystemExit)) as caught:
        getattr(ground, what)(**given)()
    assert isinstance(caught.value, SystemExit) == (what == "test")  # whose main ends the script itself
    told = str(caught.value).removeprefix("error: ")
    assert re.fullmatch(pattern(message, **places), told), told
    assert {path: path.read_bytes() for path in ground.tmp.rglob("*") if path.is_file()} == before


def test_an_evaluation_goes_on_or_starts_again(ground):
    whole = ground.test(out=ground.tmp / "out")()
    file = ground.tmp / "out" / "answers" / "00-of-01.jsonl"
    rows = file.read_text().splitlines(keepends=True)
    assert len(rows) == 3
    file.write_text("".join(rows[:2]) + rows[2][:20])  # killed while it wrote
    assert ground.test(out=ground.tmp / "out")().rows == whole.rows
    assert file.read_text().splitlines(keepends=True) == rows
    again = ground.test(out=ground.tmp / "out", clips=1, crops=1)
    with pytest.raises(SystemExit):
        again()
    found = partial(again.func, [*again.args[0], "--overwrite"])()
    assert len(found.rows) == 2 and found.rows != whole.rows
    assert read_json(ground.tmp / "out" / "result.json")["views"] == "1 clips x 1 crops of 4 frames"


def test_views_named_in_a_test_win_over_the_checkpoints(ground):
    ground.test(clips=1, crops=1, frames=2, sampling="dense")()
    stored = read_answers(ground.run / "best-test-1x1" / "answers", CLIP_SCHEMA)
    shown = {
        name: stored.header["protocol"][name] for name in ("clips", "crops", "frames", "sampling", "size_px")
    }
    assert shown == {"clips": 1, "crops": 1, "frames": 2, "sampling": "dense", "size_px": 28}
    assert {row["answer"] for row in stored.answers.values()} <= {name.replace(",", "") for name in SSV_NAMES}
