"""Owns: the boundary recipe as users start it - both data sets' real layouts, going on, and its settings."""

import json
import shutil

import pytest
import torch
from boundary_layouts import INSTANCES, TEST, TRAIN
from boundary_runs import WITHOUT_MOSS, flags, write_odd_kinetics, write_odd_tapos
from launching import ROOT, as_flags, load_script, logged
from run_results import differing, lines, read_json

from moss_vllm.boundaries import checkpoint
from moss_vllm.boundaries.schema import BOUNDARY_SCHEMA
from moss_vllm.core import MOSS
from moss_vllm.data.world.boundaries import BoundariesSize, draw_boundaries
from moss_vllm.runtime.line_store import read_answers
from moss_vllm.training.settings import parse

pytestmark = pytest.mark.usefixtures("one_process")

FILES = (checkpoint.WEIGHTS_FILE, "state/optimizer.safetensors")


@pytest.fixture
def recipe(boundary_recipe):
    return boundary_recipe


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinetics")
    write_odd_kinetics(folder)
    return folder


@pytest.fixture
def run(recipe, root, tmp_path):
    """A function that starts the recipe, and returns the test's scores."""

    def start(*more, out="run", **settings):
        return recipe.main([*flags(settings.pop("root", root), tmp_path / out, **settings), *more])

    return start


# ---- both data sets, trained and tested


def test_kinetics_trains_two_steps_and_is_tested(run, root, tmp_path, capsys):
    scores = run()
    printed = " ".join(capsys.readouterr().out.split())
    out = tmp_path / "run"
    # What is odd about the data is said.
    assert "kinetics_gebd train: kept 2 of 2 clips, 0 missing, 7 boundaries in 4 lists of raters" in printed
    found_by_id = f"clips found by their id alone, under another name: 1 ({TRAIN[0]}_000003_000014)"
    assert found_by_id in printed
    other_count = "clips with over 5 % more or fewer frames than annotated, placed by time: 1"
    assert f"{other_count} ({TEST[2]} 80 of 100)" in printed
    assert "clips left out as their raters agree below 0.3: 1" in printed
    assert "ResNet: random weights BasicGEBD mini; moss after stage 2" in printed
    assert "3 rows of 20 frames, evenly spread over a clip, 32 px" in printed
    assert "trained on the best two raters of each clip, labels gaussian" in printed
    assert "sgd: a tenth of the rates from epochs 6,8,12, the end after 15, all shrunk to 2 steps" in printed
    # What was trained on.
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"best", "step-000002", "evals", "test"}
    assert [(line["clips"], line["frames"]) for line in logged(out)] == [(2, 40)] * 2
    rates = dict.fromkeys(("encoder", "moss", "head"), pytest.approx(1e-2))
    assert logged(out)[0]["lr"] == rates and all(0.1 < line["loss"] < 10 for line in logged(out))
    loaded = checkpoint.load(out / "best")
    assert loaded.run["step"] == 2 and loaded.run["data"] == "kinetics_gebd" and loaded.clips.frames == 20
    assert loaded.settings["threshold"] == 0.3 and not loaded.clips.sliced
    # What was found.
    stored = read_answers(out / "test" / "answers", BOUNDARY_SCHEMA)
    assert list(stored.answers) == list(TEST) and not stored.failed
    assert {len(answer["scores"]) for answer in stored.answers.values()} == {20}
    assert max(stored.answers[TEST[2]]["numbers"]) == 100  # of 80 files, placed by time
    result = read_json(out / "test" / "result.json")
    assert (result["data"], result["step"], result["size_px"], result["clips"]) == ("kinetics_gebd", 2, 32, 2)
    (line,) = lines(out / "evals.jsonl")
    assert line["step"] == 2 and line["score"] == scores.mean["F1@0.05"]
    assert "BasicGEBD + MOSS (paper) 79.4 89.0" in printed and "test of step 2: F1@0.05" in printed
    # The same test from the checkpoint alone.
    again = load_script(ROOT / "eval" / "boundaries.py").main(
        ["--ckpt", str(out / "best"), "--workers", "0", "--device", "cpu"]
    )
    assert again.mean == scores.mean


def test_tapos_trains_on_slices_and_is_tested(run, tmp_path, capsys):
    root = tmp_path / "tapos"
    write_odd_tapos(root)
    left_out = {"data": "tapos", "root": root, "frames": 25, "batch_size": 2}
    with pytest.raises(ValueError, match=f"{INSTANCES['val'][1]}"):
        run(**left_out)
    scores = run("--allow-missing", **left_out)
    printed = " ".join(capsys.readouterr().out.split())
    assert "tapos test: kept 1 of 2 clips, 1 missing" in printed
    assert "instances left out as they have no boundary: 1 (yt_made_up-2_s00009_0_000_5_000)" in printed
    assert "9 rows of 25 frames, a frame every 0.1 s, in slices, 32 px" in printed
    assert "trained on the best rater of each clip, labels cut" in printed
    assert "boundaries at a threshold of 0.2" in printed and len(scores.matches.missing) == 1
    stored = read_answers(tmp_path / "run" / "test" / "answers", BOUNDARY_SCHEMA)
    assert len(stored.answers[INSTANCES["val"][0]]["numbers"]) == 60  # 6.0 s, without what fills up
    assert checkpoint.load(tmp_path / "run" / "best").clips.sliced


def test_every_epoch_is_tested_and_the_best_and_the_last_are_told(run, tmp_path, capsys):
    run(steps=4)  # an epoch is two steps
    assert [line["step"] for line in lines(tmp_path / "run" / "evals.jsonl")] == [2, 4]
    best, last = (read_json(tmp_path / "run" / name / "run.json")["step"] for name in ("best", "step-000004"))
    told = capsys.readouterr().out
    assert f"(step {last:,})" in told and f"(step {best:,}), of 2 tests" in told


# ---- going on


@pytest.mark.slow
def test_computing_moss_again_changes_no_loss(run, tmp_path, monkeypatch):
    forward, seen = MOSS.forward, []
    monkeypatch.setattr(MOSS, "forward", lambda self, x: seen.append(self.checkpointing) or forward(self, x))
    for more, out in (([], "kept"), (["--checkpoint-moss"], "again")):
        seen.clear()
        run(*more, out=out)
        assert {bool(more)} <= set(seen)  # the test of the best checkpoint opens it anew
    kept, again = ([line["loss"] for line in logged(tmp_path / out)] for out in ("kept", "again"))
    assert again == pytest.approx(kept, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{}, {"precision": "fp16"}, {"optimizer": "adamw", "batch_size": 1, **WITHOUT_MOSS}],
    ids=["moss", "fp16", "plain"],
)
def test_a_resumed_run_ends_in_the_same_weights(run, tmp_path, settings):
    given = {"steps": 4, "resume": "auto", **settings}
    run(out="straight", **given)
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    for name in ("step-000004", "test"):  # as a run that was killed in the last step
        shutil.rmtree(tmp_path / "resumed" / name)
    run(out="resumed", **given)
    one, other = (tmp_path / out / "step-000004" for out in ("straight", "resumed"))
    assert differing(one, other, FILES) == []
    told = [[(x["step"], x["loss"], x["lr"]) for x in logged(folder.parent)] for folder in (one, other)]
    assert told[0] == told[1] and len(told[0]) == 4
    for name in ("evals.jsonl", "test/per_clip.csv", "test/predictions.json"):
        assert (one.parent / name).read_text() == (other.parent / name).read_text()
    if settings.get("precision") == "fp16":
        assert logged(one.parent)[-1]["loss_scale"] <= 65536.0


def test_a_finished_run_only_says_what_it_found_and_goes_on_for_more_steps(run, tmp_path):
    first = run(resume="auto")
    written = (tmp_path / "run" / "test" / "answers" / "00-of-01.jsonl").read_text()
    assert run(resume="auto").mean == first.mean
    assert (tmp_path / "run" / "test" / "answers" / "00-of-01.jsonl").read_text() == written
    (line,) = lines(tmp_path / "run" / "evals.jsonl")
    (tmp_path / "run" / "evals.jsonl").write_text(json.dumps({**line, "score": -1.0}) + "\n")
    run(resume="auto", steps=4)
    assert read_json(tmp_path / "run" / "test" / "result.json")["step"] == 4


# ---- bad clips


def test_a_clip_that_cannot_be_read_is_counted_and_the_step_goes_on(run, root, tmp_path):
    broken = shutil.copytree(root, tmp_path / "broken")
    for path in (broken / "images" / "train").iterdir():
        if path.is_dir():
            sorted(path.iterdir())[3].unlink()  # a gap
        else:
            path.write_bytes(b"no video")
    scores = run(root=broken, max_bad_share=1.0)
    out = tmp_path / "run"
    assert [(line["clips"], line["loss"], line["grad_norm"]) for line in logged(out)] == [(0, 0.0, 0.0)] * 2
    rejected = lines(out / "rejected-0.jsonl")
    assert {row["row_id"] for row in rejected} == set(TRAIN) and len(scores.matches.names) == 2
    assert {"but no frame" in row["reason"] for row in rejected} == {True, False}
    with pytest.raises(RuntimeError, match=r"2 of 2 rows so far could not be used.*or raise max_bad_share"):
        run(root=broken, out="other")


# ---- settings


def test_a_dry_run_shows_everything_and_writes_nothing(run, tmp_path, capsys):
    assert run("--dry-run") is None and not (tmp_path / "run").exists()
    printed = capsys.readouterr().out
    for text in ("clips: (2, 20, 3, 32, 32)", "mask: (2, 20)", "optimizer: sgd", "milestones: 6,8,12"):
        assert text in printed
    assert "count: 40" in printed and "2 clips at 32 px" in printed and "total" in printed


def settings_of(recipe, *words):
    return recipe.fill_in(parse(recipe.Boundaries, ["--data", "kinetics_gebd", *words], "")[0])


def test_what_is_not_given_is_efficientgebds(recipe):
    found = settings_of(recipe)
    assert (found.variant, found.weights, found.frames, found.size_px) == ("r50", "pretrained", 100, 224)
    assert (found.optimizer, found.lr, found.weight_decay, found.clip_norm) == ("sgd", 1e-2, 1e-4, 0.0)
    assert (found.epochs, found.milestones, found.clips_a_step, found.batch_size) == (15, "6,8,12", 16, 2)
    assert (found.raters, found.labels, found.threshold, found.augment) == (2, "gaussian", 0.3, True)
    tapos = settings_of(recipe, "--data", "tapos")
    assert (tapos.epochs, tapos.raters, tapos.labels, tapos.threshold) == (10, 1, "cut", 0.2)
    assert tapos.sliced and tapos.mask and not found.sliced
    adamw = settings_of(recipe, "--optimizer", "adamw")
    assert (adamw.lr, adamw.weight_decay, adamw.warmup_epochs, adamw.milestones) == (1e-4, 0.05, 1.0, None)
    mini = recipe.fill_in(recipe.Boundaries())
    assert (mini.data, mini.variant, mini.weights, mini.optimizer) == ("mini", "mini", "random", "adamw")
    assert (mini.lr, mini.weight_decay, mini.chunk_frames) == (3e-3, 0.05, 0)


def test_the_steps_are_those_of_eight_processes(recipe):
    for processes, batch_size, accumulate in ((8, 2, 1), (1, 2, 8), (16, 1, 1)):
        loop = recipe.plan_steps(settings_of(recipe), 1600, processes)
        assert (loop.steps, loop.batch_size, loop.accumulate) == (1500, batch_size, accumulate)
        assert (loop.evaluate_every, loop.save_every, loop.unit) == (100, 100, "frames")
        found = [loop.rate(step, 1e-2) for step in (0, 599, 600, 800, 1200)]
        assert found == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4, 1e-5])
        assert loop.clip_norm == float("inf")
        (group,) = loop.optimizer([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.1}]).param_groups
        assert group["momentum"] == 0.9
    short = recipe.plan_steps(settings_of(recipe, "--steps", "150"), 1600, 8)
    assert [short.rate(step, 1.0) for step in (59, 60, 80)] == pytest.approx([1.0, 0.1, 0.01])
    adamw = recipe.plan_steps(settings_of(recipe, "--optimizer", "adamw"), 1600, 8)
    assert adamw.rate(99, 1.0) == 1.0 and adamw.rate(1499, 1.0) < 1e-5 and adamw.clip_norm == 1.0


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"optimizer": "lion"}, "optimizer is 'lion'; it must be one of sgd, adamw"),
        ({"variant": "r18"}, "variant is 'r18'; it must be one of r50, mini"),
        ({"data": "soccernet"}, "data is 'soccernet'; it must be one of kinetics_gebd, tapos, json, mini"),
        ({"root": None}, "name the folder of its annotation and clips with --root"),
        ({"milestones": "8,6"}, "milestones is '8,6'; write rising epochs as '6,8,12'"),
        ({"optimizer": "adamw", "milestones": "6"}, "milestones is 6 with optimizer 'adamw'; sgd alone has"),
        ({"optimizer": "adamw", "warmup_epochs": 15}, "warmup_epochs is 15; it must be below epochs, 15"),
        ({"raters": 3}, "raters is 3; it must be one of 1, 2"),
        ({"labels": "soft"}, "labels is 'soft'; it must be one of gaussian, cut, hard"),
        ({"clip_norm": -1}, "clip_norm is -1.0; it must be at least 0"),
        ({"temporal_layers": "5"}, "stage 5; the ResNet of 'mini' has stages 1 to 4"),
        ({"weights": "pretrained"}, "there are no pretrained weights of the ResNet of 'mini'"),
        ({"temporal_options": "{depth: 3}"}, "'moss' cannot be built with temporal_options '{depth: 3}'"),
        ({"threshold": 3}, "threshold is 3.0; it must be from 0 to 1"),
        ({"cache_gib": 1}, "cache_gib limits what is added to cache, which is not given"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_the_run(run, tmp_path, settings, told):
    with pytest.raises(ValueError, match=told.replace("(", r"\(")):
        run(**settings)
    assert not (tmp_path / "run").exists()


def test_an_annotation_of_one_split_is_refused(run, root, tmp_path):
    file = root / "k400_mr345_train_min_change_duration0.3.pkl"
    with pytest.raises(ValueError, match="of one split; name the folder with the files of both"):
        run(annotation=file)
    assert run(annotation=root, steps=1) is not None


# ---- the embedded default


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_boundaries(tmp_path_factory.mktemp("world") / "boundaries", BoundariesSize(3, 2))


@pytest.mark.parametrize("one_frame", [False, True])
def test_the_miniature_trains_on_what_is_drawn_here(recipe, drawn, tmp_path, capsys, one_frame):
    out = tmp_path / "run"
    words = as_flags({"root": drawn, "out": out, "steps": 2, "workers": 0, "tracker": "none"})
    recipe.main([*words, *(["--one-frame"] if one_frame else [])])
    printed = " ".join(capsys.readouterr().out.split())
    assert "mini train: kept 3 of 3 clips, 0 missing" in printed and "(paper)" not in printed
    assert "BasicGEBD mini; moss after stage 2" in printed and "adamw: 1 epochs of warm-up" in printed
    loaded = checkpoint.load(out / "best")
    assert loaded.model.one_frame is one_frame and loaded.run["data"] == "mini"
    stored = read_answers(out / "test" / "answers", BOUNDARY_SCHEMA)
    assert list(stored.answers) == ["mini1000001", "mini1000002"]
    if one_frame:  # all frames but those near an end have the same score
        assert {
            len({round(score, 5) for score in answer["scores"][12:-12]}) for answer in stored.answers.values()
        } == {1}
