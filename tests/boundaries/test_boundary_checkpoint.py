"""Owns: a boundary model's checkpoint holds all of it and reloads alone, or is refused by name."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_boundaries import CLIPS, MOSS, WITHOUT, gebd
from tiny_detector import edit_run

from moss_vllm.boundaries import checkpoint
from moss_vllm.boundaries.checkpoint import WEIGHTS_FILE, Keeper, load

SETTINGS = dict.fromkeys(("root", "annotation", "videos", "subset"))
RUN = {
    "clips": dataclasses.asdict(CLIPS),
    "data": "kinetics_gebd",
    "settings": {**SETTINGS, "threshold": 0.3},
}


def keeper_of(model, **options):
    arguments = {"variant": "mini", "weights": "random", "chunk_frames": None, **MOSS, **options}
    return Keeper(model, {**RUN, "model": arguments})


@pytest.fixture
def folder(tmp_path):
    keeper = keeper_of(gebd())
    keeper.save(tmp_path / "run" / "step-000003", keeper.state(), 3)
    return tmp_path / "run" / "step-000003"


def equal(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_it_reloads_alone_with_every_tensor(folder):
    edit_run(folder, model={"weights": "/gone/resnet50.safetensors"})  # which the checkpoint does not need
    loaded = load(folder)
    assert not loaded.model.training and loaded.name == "step-000003"
    assert loaded.clips == CLIPS and loaded.settings["threshold"] == 0.3
    assert equal(loaded.model.state_dict(), gebd().state_dict())
    weights = load_file(folder / WEIGHTS_FILE)
    assert weights.keys() == gebd().state_dict().keys()
    assert {"encoder.model.conv1.weight", "moss.order1.fuse.batch_norm.running_var"} < set(weights)
    clip = torch.randint(256, (1, 20, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        model = gebd()
        model.encoder.chunk_frames = None  # as the record has it; other chunks round otherwise
        assert torch.equal(loaded.model(clip), model(clip))
    assert load(shutil.copytree(folder, folder.parent / "best")).name == "run"


def test_the_keeper_restores_and_checks_what_is_on_disk(folder):
    model = gebd()
    keeper = keeper_of(model)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    keeper.restore(folder)
    assert equal(keeper.state(), gebd().state_dict())
    keeper.check(folder, keeper.state())
    name = "head.project.bias"
    with pytest.raises(
        RuntimeError, match=r"boundaries\.safetensors differs from .* in head\.project\.bias;"
    ):
        keeper.check(folder, {**keeper.state(), name: keeper.state()[name] + 1})


@pytest.mark.parametrize(
    "change, told",
    [
        ({"clips": {"sliced": True}}, "clips sliced was False, is True; set it as it was"),
        ({"clips": {"frames": 40, "size_px": 48}}, "clips frames was 20, is 40, clips size_px was 32, is 48"),
        ({"model": {"one_frame": True}}, "one_frame was False, is True"),
        ({"settings": {"labels": "hard", "lr": 3.0}}, "labels was None, is hard; set"),  # a rate may change
    ],
)
def test_a_checkpoint_that_means_something_else_is_not_gone_on_from(folder, change, told):
    keeper = keeper_of(gebd())
    run = {name: {**keeper.run[name], **change.get(name, {})} for name in ("clips", "model", "settings")}
    with pytest.raises(ValueError, match=told):
        Keeper(keeper.model, {**keeper.run, **run}).restore(folder)


def test_the_digest_names_what_decides_scores(folder):
    digest = load(folder).settings_digest()
    edit_run(folder, model={"chunk_frames": 3, "weights": "elsewhere.safetensors"})
    assert load(folder).settings_digest() == digest
    edit_run(folder, model={"one_frame": True})
    assert load(folder).settings_digest() != digest and load(folder).model.one_frame


@pytest.mark.parametrize(
    "edit, told",
    [
        (lambda w: w.pop("head.project.bias"), r"1 missing \(head\.project\.bias\)"),
        (lambda w: w.update(extra=torch.ones(1)), r"1 left over \(extra\)"),
        (lambda w: w["head.project.bias"].fill_(torch.inf), r"1 not finite \(head\.project\.bias\)"),
        (lambda w: w.update({"head.project.bias": torch.ones(4)}), r"1 of another shape \(head\.project"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder, edit, told):
    weights = load_file(folder / WEIGHTS_FILE)
    edit(weights)
    save_file(weights, folder / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=rf"{WEIGHTS_FILE}: {told}.*; use a checkpoint of this model, whole"):
        load(folder)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"model": {"depth": 3}}, r"its model cannot be built \(.*'depth'\)"),
        ({"clips": {"frames": 0}}, r"its clips cannot be made \(frames is 0; it must be at least 1\)"),
        ({"clips": {"stride": 4}}, r"its clips cannot be made \(.*'stride'\)"),
        ({"settings": {"root": 3}}, "root is 3, not a text"),
        ({"clips": []}, r"clips is \[\], not a dict"),
    ],
)
def test_a_record_that_cannot_be_is_refused(folder, change, told):
    edit_run(folder, **change)
    with pytest.raises(ValueError, match=rf"run\.json: {told}; use a whole checkpoint"):
        load(folder)


def test_what_is_no_checkpoint_of_a_boundary_model_is_refused(folder, tmp_path):
    for name in (WEIGHTS_FILE, "run.json"):
        copy = shutil.copytree(folder, tmp_path / name)
        (copy / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"no {name}; name a folder that recipes/boundaries\.py"):
            load(copy)
    edit_run(tmp_path / WEIGHTS_FILE, command="recipes/detection.py --steps 3")
    with pytest.raises(
        FileNotFoundError, match=r"tensors \(it is a checkpoint of recipes/detection\.py\); name"
    ):
        load(tmp_path / WEIGHTS_FILE)
    (folder / "run.json").write_text(json.dumps({"model": {}}))
    with pytest.raises(ValueError, match="has no clips, data; is it of a boundary model"):
        load(folder)


def test_without_moss_there_is_none_of_it(tmp_path):
    keeper = keeper_of(gebd(**WITHOUT), **WITHOUT)
    keeper.save(tmp_path / "step-000001", keeper.state(), 1)
    assert not any(name.startswith("moss") for name in load_file(tmp_path / "step-000001" / WEIGHTS_FILE))
    assert checkpoint.load(tmp_path / "step-000001").model.temporal_names == {}
