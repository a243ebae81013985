"""Owns: a checkpoint with a missing, damaged, foreign or harmful part is refused by name."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_edits import change_adapter, change_run, change_settings
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config

from moss_vllm.runtime.provenance import RUN_FILE
from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.adapter import ADAPTER_CONFIG, ADAPTER_FILE, trained_state
from moss_vllm.vlm.base import load_base, moss_to_train
from moss_vllm.vlm.processor import load_processor


def test_a_missing_adapter_file_is_refused(copy):
    (copy / ADAPTER_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=f"{ADAPTER_FILE} is missing; the checkpoint is incomplete"):
        checkpoint.load(copy)


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
@pytest.mark.parametrize("kept_bytes", [0, 5, 2000, -1])
def test_an_adapter_file_cut_short_is_refused(copy, kept_bytes):
    file = copy / ADAPTER_FILE
    file.write_bytes(file.read_bytes()[:kept_bytes])
    with pytest.raises(ValueError, match=rf"{ADAPTER_FILE}: cannot be read .*; the file is cut short"):
        checkpoint.load(copy)


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
@pytest.mark.parametrize("lost", ["order1.fuse.conv.weight", "order2.block1.batch_norm.running_mean"])
def test_a_missing_moss_weight_or_statistic_is_refused(copy, lost):
    name = f"vision_model.moss.{lost}"
    change_adapter(copy, lambda weights: weights.pop(f"base_model.model.model.{name}"))
    with pytest.raises(
        ValueError,
        match=rf"does not fit the base model: of its weights 1 missing \({name}\); check base_model",
    ):
        checkpoint.load(copy)


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
def test_an_adapter_with_moss_and_a_run_without_is_refused(copy):
    change_run(copy, moss=None)
    with pytest.raises(
        ValueError, match=r"holds MOSS and its base was opened without; the setting moss \(in run\.json"
    ):
        checkpoint.load(copy)


@pytest.mark.parametrize("saved", ["plain"], indirect=True)
def test_an_adapter_without_moss_and_a_run_with_it_is_refused(copy, tiny_base):
    change_run(copy, moss=moss_to_train(tiny_base))
    with pytest.raises(ValueError, match=r"holds no MOSS and its base was opened with MOSS; the setting"):
        checkpoint.load(copy)


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
def test_moss_of_another_size_is_refused(copy):
    change_run(copy, moss={**checkpoint.read_run_file(copy)["moss"], "moss_d_fuse": 16})
    with pytest.raises(
        ValueError, match=r"does not fit the base model: .* of another shape \(.*order1\.fuse"
    ):
        checkpoint.load(copy)


def test_a_projector_of_another_shape_is_refused(copy):
    name = "base_model.model.model.projector.readout.0.bias"
    change_adapter(copy, lambda weights: weights.update({name: torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"1 of another shape \(projector\.readout\.0\.bias\); check"):
        checkpoint.load(copy)


@pytest.mark.parametrize("lost", ["base_model", "base_revision", "base_fingerprint", "moss"])
def test_a_run_file_without_a_name_it_needs_is_refused(copy, lost):
    run = json.loads((copy / RUN_FILE).read_text())
    run.pop(lost)
    (copy / RUN_FILE).write_text(json.dumps(run))
    with pytest.raises(ValueError, match=rf"run\.json: .*{lost}"):
        checkpoint.load(copy)


def test_a_broken_run_file_is_named(copy):
    (copy / RUN_FILE).write_text('{"base_model": ')
    with pytest.raises(ValueError, match=r"run\.json"):
        checkpoint.load(copy)


@pytest.mark.parametrize("protocol", [None, [2.0], {"sample_fps": "2"}])
def test_a_protocol_that_is_none_is_named(copy, protocol):
    change_run(copy, protocol=protocol)
    with pytest.raises(ValueError, match="run.json: protocol=.* is not names with numbers"):
        checkpoint.load(copy)


def test_a_base_that_is_gone_is_named(copy, tmp_path):
    change_run(copy, base_model=str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match="gone: no config.json there"):
        checkpoint.load(copy)


def test_another_kind_of_model_is_refused(tmp_path):
    Qwen2Config(hidden_size=8).save_pretrained(tmp_path)
    for opened in (checkpoint.load, load_base, load_processor):
        with pytest.raises(
            ValueError,
            match=r"model_type 'qwen2' is of none of the families .* VideoLLaMA3 \('video_llama_3'\); give",
        ):
            opened(tmp_path)


def test_the_authors_remote_code_release_is_refused(tmp_path):
    auto_map = {"AutoConfig": "configuration_videollama3.Videollama3Qwen2Config"}
    config = {"model_type": "videollama3_qwen2", "auto_map": auto_map}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError,
        match=r"'videollama3_qwen2' is of none .*: python scripts/convert_videollama3.py SOURCE OUT",
    ):
        checkpoint.load(tmp_path)


def test_a_base_without_some_of_its_weights_is_refused(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    lost = weights.pop("model.projector.readout.0.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"weights missing or left over: model\.projector\.readout\.0\.weight"
    ):
        checkpoint.load(folder)
    assert lost.any()


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
@pytest.mark.parametrize(
    "name, value, fault",
    [
        ("vision_model.moss.order1.fuse.conv.weight", torch.empty(0), "empty"),
        ("vision_model.moss.order2.block1.batch_norm.running_var", float("inf"), "not finite"),
        ("language_model.layers.1.mlp.up_proj.lora_B.weight", float("nan"), "not finite"),
    ],
)
def test_empty_and_not_finite_weights_are_refused(copy, name, value, fault):
    def damage(weights):
        key = f"base_model.model.model.{name}"
        weights[key] = value if isinstance(value, torch.Tensor) else torch.full_like(weights[key], value)

    change_adapter(copy, damage)
    with pytest.raises(ValueError, match=rf"of its weights 1 {fault} \({name}\); check"):
        checkpoint.load(copy)


def test_a_weight_too_many_is_refused(copy):
    change_adapter(copy, lambda weights: weights.update({"base_model.model.lm_head.weight": torch.ones(1)}))
    with pytest.raises(ValueError, match=r"1 left over \(base_model\.model\.lm_head\.weight\)"):
        checkpoint.load(copy)


class Harm:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
@pytest.mark.parametrize("alone", [True, False])
def test_a_pickled_adapter_is_refused_and_not_opened(copy, tmp_path, alone):
    (copy / "adapter_model.bin").write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    if alone:
        (copy / ADAPTER_FILE).unlink()
    with pytest.raises(ValueError, match=r"adapter_model\.bin is a pickle, which can run code when opened"):
        checkpoint.load(copy)
    assert not (tmp_path / "harm").exists()


def test_the_adapters_settings_cannot_name_code_or_another_base(saved, copy, tmp_path, monkeypatch):
    (tmp_path / "harmful.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\nclass Model: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    change_settings(
        copy,
        auto_mapping={"base_model_class": "Model", "parent_library": "harmful"},
        base_model_name_or_path=str(tmp_path / "gone"),
        revision="elsewhere",
    )
    before, after = (trained_state(checkpoint.load(folder).model) for folder in (saved[1], copy))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not (tmp_path / "harm").exists() and "harmful" not in sys.modules


@pytest.mark.parametrize("saved", ["plain"], indirect=True)
@pytest.mark.parametrize(
    "values, message",
    [
        ({"use_dora": True}, "use_dora=True is not what this package trains with"),
        ({"use_rslora": True}, "use_rslora=True is not what"),
        ({"peft_type": "IA3"}, "peft_type='IA3' is not what"),
        ({"target_modules": ["q_proj"]}, r"target_modules=\['q_proj'\] is not what"),
        ({"new_thing": {"a": 1}}, "new_thing={'a': 1} is not what"),
        ({"r": 0}, "r=0, lora_alpha=8, lora_dropout=0.1 are not a rank from 1"),
        ({"lora_alpha": "8"}, "lora_alpha='8'"),
        ({"lora_dropout": 2}, "lora_dropout=2 are not"),
        ({"r": 8}, "r=8, and the rank of the weights beside it is 4"),
    ],
)
def test_settings_that_are_not_this_packages_are_refused(copy, values, message):
    change_settings(copy, **values)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(copy)


@pytest.mark.parametrize("saved", ["plain"], indirect=True)
def test_settings_that_cannot_be_read_are_named(copy):
    (copy / ADAPTER_CONFIG).write_text("[1]")
    with pytest.raises(ValueError, match=r"adapter_config\.json: cannot be read as JSON \(it holds a list"):
        checkpoint.load(copy)
    (copy / ADAPTER_CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json is missing; the checkpoint is incom"):
        checkpoint.load(copy)


@pytest.mark.parametrize("saved", ["plain"], indirect=True)
def test_an_adapter_without_its_run_file_is_named(copy):
    (copy / RUN_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no run\.json, which names the base model"):
        checkpoint.load(copy)


@pytest.mark.parametrize("saved", ["plain"], indirect=True)
@pytest.mark.parametrize(
    "values, message",
    [
        ({"base_model": 3}, "base_model=3 is not text"),
        ({"base_revision": []}, r"base_revision=\[\] is not text"),
        ({"moss": [1]}, r"moss=\[1\] is not names with values, or null"),
        ({"moss": {}}, r"run\.json: moss has no moss_after_layer, .*; write there what it was trained"),
        ({"moss": {"d_fuse": 12}}, r"unknown MOSS settings \['d_fuse'\]; known are"),
    ],
)
def test_a_run_file_with_wrong_values_is_named(copy, values, message):
    change_run(copy, **values)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(copy)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_named(tiny_base, device):
    with pytest.raises(ValueError, match=rf"device='{device}' is not available here \(.*\); use 'cpu'"):
        checkpoint.load(tiny_base, device=device)
