"""Owns: a test of a classifier resumes wherever its checkpoint lies now, and no other checkpoint's does."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from action_layouts import SSV_NAMES, write_layout
from launching import load_script
from safetensors.torch import load_file, save_file

from moss_vllm.core import presets
from moss_vllm.recognition import checkpoint
from moss_vllm.recognition.build import build_classifier

VIEWS = {"frames": 2, "sampling": "uniform", "clips": 1, "crops": 1, "size_px": 28}
WITH_MOSS = {"temporal": "moss", "temporal_options": {"window": [1, 3, 3], "d_hidden": 8, "d_similarity": 8}}
WITHOUT = {"temporal": "none"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    write_layout("list", root)
    return root


@pytest.fixture(params=[WITH_MOSS, WITHOUT], ids=["MOSS", "none"])
def tested(request, clips, tmp_path):
    """A checkpoint, a call that tests it, and its store after a kill: one of two clips is stored."""
    arguments = {"variant": "mini", "classes": 4, "weights": "random", "frames": 2, "image_size": 28}
    arguments |= request.param
    torch.manual_seed(0)
    model = build_classifier(**arguments)
    run = {
        "model": arguments,
        "classes": sorted(name.replace(",", "") for name in SSV_NAMES),
        "data": "list",
        "protocol": "paper",
        "views": VIEWS,
        "settings": {"root": str(clips), "annotation": None},
        "step": 3,
        "command": "recipes/action_recog.py",
    }
    folder, script = tmp_path / "run" / "best", load_script("eval/action_recog.py")
    checkpoint.save(folder, model, run, state=model.trained_state())

    def test(folder, *more):
        return script.main(["--ckpt", str(folder), "--workers", "0", "--device", "cpu", *more])

    test(folder)
    store = next((tmp_path / "run" / "best-test-1x1" / "answers").glob("*.jsonl"))
    whole = store.read_text()
    store.write_text("".join(whole.splitlines(keepends=True)[:2]))
    return folder, test, store, whole


def lines(text):
    """What a store holds beside its header: the clips, and the answers to them."""
    return [json.loads(line) for line in text.splitlines()[1:]]


def out_of(store):
    return "--out", str(store.parents[1])


def refusal(test, copy, store):
    """What the test of a copy ends with, in the folder of the first."""
    with pytest.raises(SystemExit) as caught:
        test(copy, *out_of(store))
    return str(caught.value)


def edit_run(folder, **model):
    run = json.loads((folder / "run.json").read_text())
    run["model"] |= model
    (folder / "run.json").write_text(json.dumps(run))


def test_a_moved_checkpoint_resumes_its_test(tested, tmp_path):
    folder, test, store, whole = tested
    moved = (tmp_path / "run").rename(tmp_path / "moved") / "best"
    store = tmp_path / "moved" / store.relative_to(tmp_path / "run")
    killed = store.read_text()
    accuracy = test(moved)
    assert store.read_text().startswith(killed) and lines(store.read_text()) == lines(whole)
    assert accuracy.pending == 0 and len(accuracy.rows) == 2


def test_a_copy_resumes_the_test_of_the_first(tested, tmp_path):
    folder, test, store, whole = tested
    shutil.copytree(folder, tmp_path / "copy")
    test(tmp_path / "copy", *out_of(store))
    assert lines(store.read_text()) == lines(whole)


def test_other_weights_are_refused_by_name(tested, tmp_path):
    folder, test, store, _ = tested
    killed = store.read_text()
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    weights = load_file(copy / checkpoint.WEIGHTS_FILE)
    save_file(
        {**weights, "ladder.norm.bias": weights["ladder.norm.bias"] + 1}, copy / checkpoint.WEIGHTS_FILE
    )
    message = refusal(test, copy, store)
    assert f"checkpoint was {folder}, is {copy}" in message and "weights was " in message
    assert "model_settings" not in message and store.read_text() == killed


def test_other_settings_of_the_same_weights_are_refused(tested, tmp_path, monkeypatch):
    folder, test, store, _ = tested
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    if "ladder.moss.order1.uv_proj.linear.weight" in load_file(copy / checkpoint.WEIGHTS_FILE):
        edit_run(copy, temporal_options={**WITH_MOSS["temporal_options"], "window": [1, 9, 1]})
    else:  # another version of the package, whose preset has other attention heads
        monkeypatch.setattr(presets, "MINI", dataclasses.replace(presets.MINI, heads=1))
    message = refusal(test, copy, store)
    assert "model_settings was " in message and "weights was " not in message


def as_earlier(store):
    """The store as versions without `model_settings` wrote it."""
    first, *rest = store.read_text().splitlines(keepends=True)
    header = json.loads(first)["header"]
    assert header.pop("model_settings")
    store.write_text("".join([json.dumps({"header": header}) + "\n", *rest]))


def test_a_store_of_earlier_versions_resumes_where_its_checkpoint_was(tested, tmp_path):
    folder, test, store, whole = tested
    as_earlier(store)
    killed = store.read_text()
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert f"checkpoint was {folder}, is {copy}" in refusal(test, copy, store)
    test(folder)
    assert store.read_text().startswith(killed) and lines(store.read_text()) == lines(whole)


def test_where_the_encoders_weights_lie_is_no_setting(tested, tmp_path):
    folder, *_ = tested
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    edit_run(copy, weights="pretrained")  # of the miniature, the same
    digests = [checkpoint.load(place).settings_digest() for place in (folder, copy)]
    assert digests[0] == digests[1]
    edit_run(copy, image_size=28, frames=5)
    assert checkpoint.load(copy).settings_digest() != digests[0]
