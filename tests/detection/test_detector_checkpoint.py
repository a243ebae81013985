"""Owns: a detector's checkpoint holds what was trained and its average, not the encoder, or is refused."""

import json
import re
import shutil

import pytest
import torch
from detection_layouts import CLASSES
from safetensors.torch import load_file, save_file
from tiny_detector import WITHOUT, arguments, detector, edit_run, write_checkpoint, write_encoder

from moss_vllm.detection import checkpoint
from moss_vllm.detection.checkpoint import AVERAGE_FILE, WEIGHTS_FILE, load
from moss_vllm.training.average import WeightAverage

FILES = (WEIGHTS_FILE, AVERAGE_FILE)


@pytest.fixture
def folder(thumos_root, encoder, tmp_path):
    return write_checkpoint(tmp_path / "run" / "step-000003", thumos_root, encoder)


def equal(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_average_is_opened_unless_the_last_weights_are_asked_for(folder):
    loaded = load(folder)
    assert not loaded.model.training and loaded.name == "step-000003" and loaded.classes == CLASSES
    assert equal(loaded.model.trained_state(), load_file(folder / AVERAGE_FILE))
    last = load(folder, average=False)
    assert equal(last.model.trained_state(), load_file(folder / WEIGHTS_FILE))
    moved = last.model.detector.head.cls_out.bias - loaded.model.detector.head.cls_out.bias
    torch.testing.assert_close(moved, torch.ones(3))
    again = load(shutil.copytree(folder, folder.parent / "best"))
    assert again.name == "run" and again.settings_digest() == loaded.settings_digest()


def test_both_files_have_what_trains_with_its_statistics_and_not_the_encoder(folder, encoder):
    expected = detector(encoder).state_dict()
    for file in FILES:
        weights = load_file(folder / file)
        assert weights.keys() == {name for name in expected if not name.startswith("encoder.")}
        assert {"loss.normaliser", "adapters.1.gamma", "moss.order1.fuse.batch_norm.running_var"} < set(
            weights
        )
        kinds = {value.dtype for name, value in weights.items() if "num_batches" not in name}
        assert kinds == {torch.float32}
    run = json.loads((folder / "run.json").read_text())
    assert run["step"] == 3 and set(run["versions"]) >= {"torch", "moss_vllm"}
    assert re.fullmatch("[0-9a-f]{16}", run["encoder_fingerprint"])


def test_the_keeper_restores_model_and_average_and_checks_what_is_on_disk(folder, encoder):
    model = detector(encoder)
    average = WeightAverage(model.trained_state)
    keeper = checkpoint.Keeper(model, {}, average)
    with torch.no_grad():
        for value in (*model.trained_state().values(), *average.average.values()):
            value.zero_()
    keeper.restore(folder)
    assert equal(model.trained_state(), load_file(folder / WEIGHTS_FILE))
    assert equal(average.average, load_file(folder / AVERAGE_FILE))
    state = keeper.state()
    keeper.check(folder, state)
    for name, file in (("adapters.0.gamma", WEIGHTS_FILE), ("average.adapters.0.gamma", AVERAGE_FILE)):
        with pytest.raises(RuntimeError, match=rf"{file} differs from .* in memory in adapters\.0\.gamma;"):
            keeper.check(folder, {**state, name: state[name] + 1})


@pytest.mark.parametrize(
    "change, told",
    [
        (
            {"classes": list(reversed(CLASSES))},
            "class 0 was CliffDiving, is Diving, class 2",
        ),
        ({"windows": {"stride": 4}}, "windows stride was 2, is 4; set it as it was"),
        ({"pixels": {"augment": False}}, "pixels augment was True, is False"),
        ({"model": {"one_frame": True}}, "one_frame was False, is True"),
    ],
)
def test_a_checkpoint_that_means_something_else_is_not_gone_on_from(folder, encoder, change, told):
    model = detector(encoder)
    before = {name: value.clone() for name, value in model.trained_state().items()}
    run = json.loads((folder / "run.json").read_text())
    for name, value in change.items():
        run[name] = {**run[name], **value} if isinstance(value, dict) else value
    keeper = checkpoint.Keeper(model, run, WeightAverage(model.trained_state))
    with pytest.raises(ValueError, match=told):
        keeper.restore(folder)
    assert equal(model.trained_state(), before)


def test_the_digest_names_what_decides_detections(folder, encoder):
    digest = load(folder).settings_digest()
    edit_run(folder, model={"in_chunks": True})
    assert load(folder).settings_digest() != digest


def test_an_encoder_that_has_moved_is_named(folder, encoder, tmp_path):
    moved = write_encoder(tmp_path / "moved")
    edit_run(folder, model={"encoder": str(tmp_path / "gone")})
    with pytest.raises((ValueError, OSError), match="gone"):
        load(folder)
    assert equal(load(folder, weights=str(moved)).model.trained_state(), load_file(folder / AVERAGE_FILE))


def change(folder, file, edit):
    weights = load_file(folder / file)
    edit(weights)
    save_file(weights, folder / file)


@pytest.mark.parametrize(
    "edit, told",
    [
        (lambda w: w.pop("loss.normaliser"), r"1 missing \(loss\.normaliser\)"),
        (lambda w: w.update(extra=torch.ones(1)), r"1 left over \(extra\)"),
        (lambda w: w["adapters.0.gamma"].fill_(torch.inf), r"1 not finite \(adapters\.0\.gamma\)"),
        (
            lambda w: w.update({"detector.head.cls_out.bias": torch.ones(4)}),
            r"1 of another shape \(detector\.head\.cls_out\.bias\)",
        ),
    ],
)
@pytest.mark.parametrize("file", FILES)
def test_weights_that_do_not_fit_are_refused(folder, file, edit, told):
    change(folder, file, edit)
    with pytest.raises(ValueError, match=rf"{file}: {told}; use a checkpoint of this detector, whole"):
        load(folder, average=file == AVERAGE_FILE)


def test_what_is_no_checkpoint_of_a_detector_is_refused(folder, encoder, tmp_path):
    for name in (*FILES, "run.json"):
        copy = shutil.copytree(folder, tmp_path / name)
        (copy / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"no {name}; name a folder that recipes/detection\.py"):
            load(copy)
    edit_run(folder, encoder_fingerprint="0123456789abcdef")
    with pytest.raises(ValueError, match=r"was trained beside other weights of .*pass those with --weights"):
        load(folder)
    edit_run(folder, model={"depth": 3})
    with pytest.raises(ValueError, match=r"run\.json: its model cannot be built \(.*'depth'\)"):
        load(folder)
    (folder / AVERAGE_FILE).write_bytes(b"cut")
    edit_run(folder, model=arguments(encoder))
    (folder / "run.json").write_text(json.dumps({"model": {}, "classes": []}))
    with pytest.raises(ValueError, match="has no encoder_fingerprint, windows, pixels, data; is it of a"):
        load(folder)


def test_without_moss_there_is_none_of_it(thumos_root, encoder, tmp_path):
    folder = write_checkpoint(tmp_path / "step-000003", thumos_root, encoder, **WITHOUT)
    assert not any(name.startswith("moss") for name in load_file(folder / WEIGHTS_FILE))
    assert load(folder).model.temporal_names == {}
