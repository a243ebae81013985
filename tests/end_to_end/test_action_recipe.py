"""Owns: the action recipe as users start it - each dataset's real layout, and its settings."""

import dataclasses
import json
import re
import shutil
from functools import partial

import pytest
import torch
from action_layouts import DATASETS, SMALL, SSV_NAMES, TINY
from launching import as_flags, logged
from safetensors.torch import load_file

from moss_vllm.core.presets import TEMPORAL_NAMES
from moss_vllm.recognition import checkpoint
from moss_vllm.recognition.build import build_classifier
from moss_vllm.recognition.dataset_views import DATASET_VIEWS
from moss_vllm.recognition.schema import CLIP_SCHEMA
from moss_vllm.runtime.line_store import read_answers
from moss_vllm.runtime.trained_weights import encoder_fingerprint
from moss_vllm.runtime.versions import versions
from moss_vllm.training.settings import parse

pytestmark = pytest.mark.usefixtures("one_process")

WEIGHTS = checkpoint.WEIGHTS_FILE


@pytest.fixture
def recipe(action_recipe):
    return action_recipe


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


@pytest.mark.slow
@pytest.mark.parametrize("data", DATASETS)
def test_each_dataset_trains_two_steps_and_is_tested(recipe, action_tester, layouts, tmp_path, data, capsys):
    classes, ids, sampling, (clips, crops), repeats, augmented = EXPECTED[data]
    out, tracker = tmp_path / "run", "tensorboard" if data == "ssv1" else "none"
    given = {**SMALL, "data": data, "root": layouts / data, "out": out, "tracker": tracker}
    found = recipe.main(as_flags(given))
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
    assert versions().items() < result["environment"].items() and result["notes"] == []
    told = {name: value for name, value in result.items() if name not in ("environment", "notes")}
    assert told == {"data": data, "step": 2, "views": f"{clips} clips x {crops} crops", **found.summary()}
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
    again = action_tester.main(as_flags({"ckpt": out / "best", "workers": 0}))
    assert again.rows == found.rows
    folder = out / f"best-test-{clips}x{crops}"
    assert {**read_json(folder / "result.json"), "views": result["views"]} == result
    assert (folder / "per_class.csv").read_text() == (out / "test" / "per_class.csv").read_text()


@pytest.mark.slow
def test_the_protocols_views_are_those_of_table_7(recipe, layouts, tmp_path, capsys):
    """Without sizes of our own; a dry run reads two real clips that way."""
    for data, frames, size in (
        ("ssv2", 8, 224),
        ("diving48", 32, 224),
        ("k400", 16, 224),  # with the miniature's ladder; of B and L see below
    ):
        given = {"data": data, "root": layouts / data, "out": tmp_path / "run", "weights": "random"}
        recipe.main([*as_flags({**given, "variant": "mini", "workers": 0}), "--dry-run"])
        views = DATASET_VIEWS[data]["paper"]
        assert (views.frames, views.size_px) == (frames, size)
        shown = " ".join(capsys.readouterr().out.split())
        assert f"x {views.repeats} views of {frames} frames, {size} px, sampled {views.sampling}" in shown
        assert f"video: ({2 * views.repeats}, {frames}, 3, {size}, {size})" in shown
    assert not (tmp_path / "run").exists()


# ---- going on


@pytest.mark.slow
@pytest.mark.parametrize("host", ["ladder", "aim"])  # aim drops out, from a generator that is kept
def test_a_resumed_run_ends_in_the_same_weights(recipe, layouts, tmp_path, host):
    given = {**TINY, "root": layouts / "list", "host": host, "steps": 4, "resume": "auto", "repeats": 2}
    given |= {"randaugment": "rand-m7-n4-mstd0.5-inc1", "clips_a_step": 4, "eval_every": 2}  # of 2 x 2 clips
    recipe.main(as_flags({**given, "out": tmp_path / "straight"}))
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "step-000004")  # as a run that was killed in the last step
    shutil.rmtree(tmp_path / "resumed" / "test")
    recipe.main(as_flags({**given, "out": tmp_path / "resumed"}))
    one, other = (tmp_path / out / "step-000004" for out in ("straight", "resumed"))
    assert equal(load_file(one / WEIGHTS), load_file(other / WEIGHTS))
    assert equal(*(load_file(p / "state" / "optimizer.safetensors") for p in (one, other)))
    told = [[(x["step"], x["loss"], x["lr"]) for x in logged(p.parent)] for p in (one, other)]
    assert told[0] == told[1] and len(told[0]) == 4
    for name in ("evals.jsonl", "test/per_class.csv"):
        assert (one.parent / name).read_text() == (other.parent / name).read_text()


def test_a_run_that_is_stopped_in_its_last_test_is_not_finished_and_goes_on_to_its_table(
    recipe, layouts, tmp_path, capsys, monkeypatch
):
    def stop(*_, **__):
        raise KeyboardInterrupt

    out = tmp_path / "run"
    words = as_flags({**TINY, "data": "list", "root": layouts / "list", "out": out})
    for function in ("score_clips", "save_accuracy"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(recipe, function, stop)
            recipe.main([*words, "--resume", "auto"])
        assert (out / "step-000002").is_dir() and not (out / "finished").exists()
    capsys.readouterr()
    accuracy = recipe.main([*words, "--resume", "auto"])
    assert (out / "finished").read_text() == "step-000002\n" and len(logged(out)) == 2
    printed = capsys.readouterr().out
    assert "nothing remains to be trained" in printed and f"{accuracy}; written to {out / 'test'}" in printed


@pytest.mark.slow
def test_a_finished_run_only_says_what_it_found_and_goes_on_for_more_steps(recipe, layouts, tmp_path):
    given = {**TINY, "root": layouts / "list", "out": tmp_path / "run", "resume": "auto"}
    first = recipe.main(as_flags(given))
    started = read_json(tmp_path / "run" / "settings.json")["started"]
    written = (tmp_path / "run" / "test" / "answers" / "00-of-01.jsonl").read_text()
    assert recipe.main(as_flags(given)).rows == first.rows
    assert (tmp_path / "run" / "test" / "answers" / "00-of-01.jsonl").read_text() == written
    # More steps: another checkpoint may be the best one, and then its test takes the place of the first.
    (line,) = lines(tmp_path / "run" / "evals.jsonl")
    worst = json.dumps({**line, "score": -1.0}) + "\n"
    (tmp_path / "run" / "evals.jsonl").write_text(worst)
    recipe.main(as_flags({**given, "steps": 4}))
    assert read_json(tmp_path / "run" / "test" / "result.json")["step"] == 4
    assert [line["step"] for line in lines(tmp_path / "run" / "evals.jsonl")] == [2, 4]
    record = read_json(tmp_path / "run" / "settings.json")
    assert record["started"] == started and record["steps"] == 4


def test_a_run_that_goes_on_with_as_many_other_labels_says_so_and_is_tested_anew(
    recipe, layouts, tmp_path, capsys
):
    root, out = shutil.copytree(layouts / "list", tmp_path / "list"), tmp_path / "run"
    words = as_flags({**TINY, "data": "list", "root": root, "out": out, "resume": "auto"})
    recipe.main(words)
    before = (out / "test" / "answers" / "00-of-01.jsonl").read_text()
    capsys.readouterr()
    recipe.main(words)
    assert "another" not in capsys.readouterr().out
    assert (out / "test" / "answers" / "00-of-01.jsonl").read_text() == before
    for split in ("train", "val"):
        rows = (root / f"{split}.txt").read_text().splitlines()
        labels = [row.rpartition(" ")[2] for row in rows]
        turned = [
            f"{row.rpartition(' ')[0]} {label}" for row, label in zip(rows, reversed(labels), strict=True)
        ]
        assert turned != rows
        (root / f"{split}.txt").write_text("\n".join(turned) + "\n")
    recipe.main(words)
    told = capsys.readouterr().out
    for name in ("train", "test"):
        assert f"step-000002 is of a run with another {name} split (its digest was " in told
    assert (out / "test" / "answers" / "00-of-01.jsonl").read_text() != before


@pytest.mark.slow
def test_a_step_of_another_run_may_be_gone_on_from(recipe, layouts, trained_actions, tmp_path):
    given = {**TINY, "root": layouts / "list", "out": tmp_path / "run"}
    earlier = trained_actions / "list" / "step-000002"
    found = recipe.main(as_flags({**given, "resume": earlier}))  # nothing is left to do
    assert read_json(tmp_path / "run" / "test" / "result.json")["step"] == 2 and len(found.rows) == 2
    assert [line["step"] for line in lines(tmp_path / "run" / "evals.jsonl")] == [2]
    weights = [load_file(out / "best" / WEIGHTS) for out in (trained_actions / "list", tmp_path / "run")]
    assert equal(*weights)


@pytest.mark.slow
def test_a_start_takes_over_all_but_the_head(recipe, layouts, trained_actions, tmp_path):
    given = {**TINY, "data": "diving48", "root": layouts / "diving48", "out": tmp_path / "run", "lr": 0.0}
    recipe.main(as_flags({**given, "start": trained_actions / "k400" / "best", "steps": 1}))
    before = load_file(trained_actions / "k400" / "best" / WEIGHTS)
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


@pytest.mark.slow
def test_a_clip_that_cannot_be_read_is_counted(recipe, layouts, tmp_path):
    root = tmp_path / "gym99"
    shutil.copytree(layouts / "gym99", root)
    names = sorted(path.name for path in (root / "subactions").iterdir())
    for index in (1, 5):  # one of each split
        (root / "subactions" / names[index]).write_bytes(b"no video")
    given = {**TINY, "data": "gym99", "root": root, "out": tmp_path / "run", "max_bad_share": 0.25}
    found = recipe.main(as_flags({**given, "repeats": 2, "clips_a_step": 1, "steps": 4}))
    read = sorted((line["clips"], line["loss"] > 0) for line in logged(tmp_path / "run"))
    assert read == [(0, False), (1, True), (1, True), (1, True)]  # a step of no clip at all, too
    (line,) = lines(tmp_path / "run" / "rejected-0.jsonl")
    assert f"{line['row_id']}.mp4" == names[1] and "not a video" in line["reason"]
    assert list(found.failed) == [names[5].removesuffix(".mp4")] and len(found.rows) == 2
    assert found.summary()["failed"] == 1 and not found.rows[1]["correct"]


# ---- settings


def settings_of(recipe, **given):
    return recipe.fill_in(parse(recipe.ActionRecog, as_flags(given), "")[0])


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
    short = settings_of(recipe, data="ssv2", steps=10)
    assert recipe.plan_steps(short, 1280, 1)[1].warmup_share == pytest.approx(0.2)


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


@pytest.mark.slow
@pytest.mark.parametrize("host", ["full", "aim", "dist"])
def test_each_host_trains(recipe, layouts, tmp_path, host):
    given = {**TINY, "root": layouts / "list", "out": tmp_path / "run", "host": host, "steps": 1}
    found = recipe.main(as_flags(given))
    assert len(found.rows) == 2 and (logged(tmp_path / "run")[0]["clips"]) == 2
    loaded = checkpoint.load(tmp_path / "run" / "best")
    per_encoded = loaded.model.frames_per_encoded
    assert loaded.run["views"]["frames"] == 4 * per_encoded and loaded.run["model"]["frames"] == 4
    # The encoder is in the checkpoint where it trains, and has a fingerprint where it does not.
    names = load_file(tmp_path / "run" / "best" / WEIGHTS).keys()
    assert ("vit.blocks.0.attn.qkv.weight" in names) == (host == "full")
    assert (loaded.run["encoder_fingerprint"] == encoder_fingerprint(loaded.model)) and len(
        loaded.run["encoder_fingerprint"]
    ) == 16


def test_flags_win_over_yaml_and_yaml_over_the_table(recipe, layouts, tmp_path):
    config = {**TINY, "root": str(layouts / "list"), "lr": 0.5, "temporal": "stss1", "allow_missing": True}
    text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in config.items())
    (tmp_path / "run.yaml").write_text(text)
    given = {"config": tmp_path / "run.yaml", "out": tmp_path / "run", "lr": 0.25, "steps": 1}
    recipe.main([*as_flags(given), "--no-allow-missing"])
    settings = checkpoint.load(tmp_path / "run" / "best").run["settings"]
    assert settings["lr"] == 0.25 and settings["temporal"] == "stss1" and settings["steps"] == 1
    assert (
        settings["allow_missing"] is False
        and settings["epochs"] == settings_of(recipe).epochs
        and settings["weight_decay"] == 0.15
    )
    assert read_json(tmp_path / "run" / "settings.json")["settings"] == settings


@pytest.mark.slow
def test_a_dry_run_shows_everything_and_writes_nothing(recipe, layouts, tmp_path, capsys):
    given = {**SMALL, "data": "ssv1", "root": layouts / "ssv1", "out": tmp_path / "run"}
    assert recipe.main([*as_flags(given), "--dry-run"]) is None
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "given, shown",
    [
        ({"variant": "b"}, "x 2 views of 32 frames, 224 px, sampled dense; tests show 4 x 3"),
        ({"variant": "l", "protocol": "authors"}, "x 2 views of 16 frames, 224 px, sampled uniform-k400"),
    ],
)
def test_kinetics_frames_and_repeats_are_the_variants(recipe, layouts, tmp_path, given, shown, capsys):
    small = {"backbone": "mini_vit", "host": "full", "temporal_layers": "2", "temporal": "moss"}
    given = {"data": "k400", "root": layouts / "k400", "out": tmp_path / "run", **small, **given}
    recipe.main([*as_flags({**given, "weights": "random"}), "--dry-run"])
    assert shown in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_list_that_tells_left_from_right_is_not_mirrored(recipe, layouts, tmp_path, capsys):
    given = {**TINY, "root": layouts / "list", "out": tmp_path / "run"}
    recipe.main([*as_flags(given), "--dry-run"])
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
        about, default, rest = field.metadata["help"].partition("(default")
        parts = [about, default and f"default{rest}"]
        parts += [] if told is None or "default" in field.metadata["help"] else [f"default: {told})"]
        for part in parts:  # a range stands between
            assert " ".join(part.split()) in shown.replace("- ", "-"), field.name
    assert "None" not in shown.partition("--data {")[2]  # what holds is said
    for text in ("default: s, b 1e-3; m, l 2e-4; mini 2e-3)", "K400 32, m and l 16)", "SSV, K400 2;"):
        assert text in shown
    for text in (*DATASETS, "Table 7", "--dry-run", "--start", "accelerate launch", "eval/action_recog.py"):
        assert text in shown


# ---- data


def test_clips_of_both_lists_are_told_and_paths_are_no_markup(recipe, layouts, tmp_path, capsys):
    root = shutil.copytree(layouts / "list", tmp_path / "[old] list")
    (root / "val.txt").write_text((root / "train.txt").read_text())
    recipe.main([*as_flags({**TINY, "root": root, "out": tmp_path / "run"}), "--dry-run"])
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "WARNING: 4 clips of" in shown and "[old] list/val.txt are trained on: some class/clip 0, so" in shown
    )


def test_missing_videos_may_be_left_out(recipe, layouts, tmp_path):
    root = shutil.copytree(layouts / "ssv2", tmp_path / "ssv2")
    (root / "20bn-something-something-v2" / "46.webm").unlink()
    given = {**TINY, "data": "ssv2", "root": root, "out": tmp_path / "run", "steps": 1}
    recipe.main([*as_flags(given), "--allow-missing"])
    assert read_json(tmp_path / "run" / "settings.json")["data_lines"][0].startswith(
        "ssv2 train: kept 3 of 4 clips, 1 missing, 4 classes (3 with clips)"
    )


# ---- testing a checkpoint


def test_an_evaluation_goes_on_or_starts_again(action_ground):
    action_ground.finished_run()
    whole = action_ground.test(out=action_ground.tmp / "out")()
    file = action_ground.tmp / "out" / "answers" / "00-of-01.jsonl"
    rows = file.read_text().splitlines(keepends=True)
    assert len(rows) == 3
    file.write_text("".join(rows[:2]) + rows[2][:20])  # killed while it wrote
    assert action_ground.test(out=action_ground.tmp / "out")().rows == whole.rows
    assert file.read_text().splitlines(keepends=True) == rows
    again = action_ground.test(out=action_ground.tmp / "out", clips=1, crops=1)
    with pytest.raises(SystemExit):
        again()
    found = partial(again.func, [*again.args[0], "--overwrite"])()
    assert len(found.rows) == 2 and found.rows != whole.rows
    assert read_json(action_ground.tmp / "out" / "result.json")["views"] == "1 clips x 1 crops of 4 frames"


def test_views_named_in_a_test_win_over_the_checkpoints(action_ground):
    action_ground.finished_run()
    action_ground.test(clips=1, crops=1, frames=2, sampling="dense")()
    stored = read_answers(action_ground.run / "best-test-1x1" / "answers", CLIP_SCHEMA)
    shown = {
        name: stored.header["protocol"][name] for name in ("clips", "crops", "frames", "sampling", "size_px")
    }
    assert shown == {"clips": 1, "crops": 1, "frames": 2, "sampling": "dense", "size_px": 28}
    assert {row["answer"] for row in stored.answers.values()} <= {name.replace(",", "") for name in SSV_NAMES}
