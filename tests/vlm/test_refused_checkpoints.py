"""Owns: a checkpoint with a missing, damaged, foreign or harmful part is refused by name."""

import json
import pickle
import sys
from math import inf, nan
from pathlib import Path

import pytest
import torch
from checkpoint_edits import change_adapter, edit_json, refused
from transformers import Qwen2Config

from moss_vllm.runtime.provenance import RUN_FILE
from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.adapter import ADAPTER_CONFIG, ADAPTER_FILE, trained_state
from moss_vllm.vlm.base import load_base, moss_to_train
from moss_vllm.vlm.processor import load_processor

WITH_MOSS = pytest.mark.parametrize("saved", ["moss"], indirect=True)
WITHOUT_MOSS = pytest.mark.parametrize("saved", ["plain"], indirect=True)


@WITHOUT_MOSS
@pytest.mark.parametrize("name", [ADAPTER_FILE, ADAPTER_CONFIG])
def test_a_missing_file_of_the_adapter_is_refused(copy, name):
    (copy / name).unlink()
    refused(copy, f"{name} is missing; the checkpoint is incomplete", FileNotFoundError)


@WITH_MOSS
@pytest.mark.parametrize("kept_bytes", [0, 5, 2000, -1])
def test_an_adapter_file_cut_short_is_refused(copy, kept_bytes):
    file = copy / ADAPTER_FILE
    file.write_bytes(file.read_bytes()[:kept_bytes])
    refused(copy, rf"{ADAPTER_FILE}: cannot be read .*; the file is cut short")


@WITHOUT_MOSS
def test_an_adapter_without_moss_and_a_run_with_it_is_refused(copy, tiny_base):
    edit_json(copy / RUN_FILE, moss=moss_to_train(tiny_base))
    refused(copy, r"holds no MOSS and its base was opened with MOSS; the setting")


@WITHOUT_MOSS
@pytest.mark.parametrize("lost", ["base_model", "base_revision", "base_fingerprint", "moss"])
def test_a_run_file_without_a_name_it_needs_is_refused(copy, lost):
    run = json.loads((copy / RUN_FILE).read_text())
    run.pop(lost)
    (copy / RUN_FILE).write_text(json.dumps(run))
    refused(copy, rf"run\.json: .*{lost}")


def test_a_checkpoint_of_another_recipe_is_refused_by_its_name(tmp_path):
    (tmp_path / RUN_FILE).write_text(json.dumps({"model": {}, "command": "recipes/boundaries.py --steps 3"}))
    other = r"\(it is a checkpoint of recipes/boundaries\.py\); name one that recipes/favor_lora\.py wrote"
    with pytest.raises(ValueError, match=rf"run\.json: has no base_model, .* {other}"):
        checkpoint.load(tmp_path)


def test_another_kind_of_model_is_refused(tmp_path):
    Qwen2Config(hidden_size=8).save_pretrained(tmp_path)
    for opened in (checkpoint.load, load_base, load_processor):
        with pytest.raises(
            ValueError,
            match=r"model_type 'qwen2' is of none of the families .*VideoLLaMA3 \('video_llama_3'\),.*; give",
        ):
            opened(tmp_path)


@WITH_MOSS
@pytest.mark.parametrize(
    "name, change, fault",
    [
        ("vision_model.moss.order1.fuse.conv.weight", lambda tensor: None, "missing"),
        ("vision_model.moss.order2.block1.batch_norm.running_mean", lambda tensor: None, "missing"),
        ("vision_model.moss.order1.fuse.conv.weight", lambda tensor: tensor[:0], "empty"),
        ("vision_model.moss.order2.block1.batch_norm.running_var", lambda tensor: tensor * inf, "not finite"),
        ("language_model.layers.1.mlp.up_proj.lora_B.weight", lambda tensor: tensor * nan, "not finite"),
        ("projector.readout.0.bias", lambda tensor: torch.zeros(3), "of another shape"),
    ],
)
def test_a_weight_that_does_not_fit_is_refused(copy, name, change, fault):
    def damage(weights):
        changed = change(weights.pop(f"base_model.model.model.{name}"))
        weights |= {} if changed is None else {f"base_model.model.model.{name}": changed}

    change_adapter(copy, damage)
    refused(copy, rf"does not fit the base model: of its weights 1 {fault} \({name}\); check base_model")


@WITHOUT_MOSS
def test_a_weight_too_many_is_refused(copy):
    change_adapter(copy, lambda weights: weights.update({"base_model.model.lm_head.weight": torch.ones(1)}))
    refused(copy, r"1 left over \(base_model\.model\.lm_head\.weight\)")


class Harm:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@WITH_MOSS
@pytest.mark.parametrize("alone", [True, False])
def test_a_pickled_adapter_is_refused_and_not_opened(copy, tmp_path, alone):
    (copy / "adapter_model.bin").write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    if alone:
        (copy / ADAPTER_FILE).unlink()
    refused(copy, r"adapter_model\.bin is a pickle, which can run code when opened")
    assert not (tmp_path / "harm").exists()


def test_the_adapters_settings_cannot_name_code_or_another_base(saved, copy, tmp_path, monkeypatch):
    (tmp_path / "harmful.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\nclass Model: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    edit_json(
        copy / ADAPTER_CONFIG,
        auto_mapping={"base_model_class": "Model", "parent_library": "harmful"},
        base_model_name_or_path=str(tmp_path / "gone"),
        revision="elsewhere",
    )
    before, after = (trained_state(checkpoint.load(folder).model) for folder in (saved[1], copy))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not (tmp_path / "harm").exists() and "harmful" not in sys.modules


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_named(tiny_base, device):
    with pytest.raises(ValueError, match=rf"device='{device}' is not available here \(.*\); use 'cpu'"):
        checkpoint.load(tiny_base, device=device)
