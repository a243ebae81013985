"""Owns: what moss_vllm.save writes is opened whole by moss_vllm.load or not at all, and by nothing else."""

import json
import shutil

import pytest
import torch
from host_checks import attach, fresh, inputs_of, logits, wake, with_lora
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_hosts import TINY_HOSTS
from transformers import Qwen3VLForConditionalGeneration

import moss_vllm
from moss_vllm.runtime.quiet import quiet

QWEN3 = next(tiny for tiny in TINY_HOSTS if tiny.name == "qwen3_vl")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "qwen3"
    fresh(QWEN3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory):
    """A folder of each kind."""
    folders = {}
    for kind in ("alone", "peft"):
        model = attach(Qwen3VLForConditionalGeneration.from_pretrained(base))
        folders[kind] = tmp_path_factory.mktemp("saved") / kind
        moss_vllm.save(wake(with_lora(model) if kind == "peft" else model), folders[kind])
    return folders


@pytest.fixture(params=["alone", "peft"])
def folder(request, saved, tmp_path):
    """A copy of a folder, to be damaged."""
    return shutil.copytree(saved[request.param], tmp_path / request.param)


def edit(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def weights_of(folder):
    return next(file for file in folder.glob("*.safetensors"))


def test_a_folder_names_its_base_and_opens_where_the_base_has_moved_to(saved, base, tmp_path):
    record = json.loads((saved["alone"] / "moss.json").read_text())
    assert record["model_type"] == "qwen3_vl" and record["base_model"] == str(base.resolve())
    assert record["sizes"]["after_layer"] == 1 and record["sizes"]["window"] == [3, 3, 3]
    assert sorted(file.name for file in saved["alone"].iterdir()) == ["moss.json", "moss.safetensors"]
    edit(shutil.copytree(saved["alone"], tmp_path / "moved") / "moss.json", base_model=str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match=r"the base of .*moved is not there.*give its place: .*base="):
        moss_vllm.load(tmp_path / "moved")
    one, other = moss_vllm.load(tmp_path / "moved", base=base), moss_vllm.load(saved["alone"])
    assert torch.equal(logits(one, inputs_of(QWEN3)), logits(other, inputs_of(QWEN3))) and not one.training


def test_options_go_to_from_pretrained_and_moss_stays_in_full(saved):
    model = moss_vllm.load(saved["peft"], dtype=torch.bfloat16)
    assert model.get_base_model().lm_head.weight.dtype == torch.bfloat16
    assert {w.dtype for n, w in model.named_parameters() if ".moss." in n} == {torch.float32}


def test_peft_alone_refuses_the_adapter(saved, base):
    stock = Qwen3VLForConditionalGeneration.from_pretrained(base)
    with pytest.raises(
        (KeyError, ValueError), match="open it with moss_vllm.load; peft alone would leave MOSS out"
    ):
        PeftModel.from_pretrained(stock, saved["peft"])


@pytest.mark.parametrize("name", ["moss.json", "weights"])
def test_a_missing_or_cut_file_is_named(folder, name):
    file = folder / name if name != "weights" else weights_of(folder)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{file.name}: cannot be read as"):
        moss_vllm.load(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=f"{file.name} is not there"):
        moss_vllm.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_fingerprint": "0"}, r"is not the base of .*fingerprint .*give its place"),
        ({"base_model": 3}, "base_model=3 is not what moss_vllm.save writes"),
        ({"adapter": "yes"}, "adapter='yes' is not what"),
        ({"model_type": "smolvlm"}, r"is a qwen3_vl, and .*moss.json names 'smolvlm'"),
        ({"sizes": {"orders": [1, 99999]}}, r"moss_orders=\[1, 99999\], and the weights have orders 1 to 2"),
        ({"sizes": {"orders": [1, 2], "d_hidden": 10**9}}, "weights of MOSS do not fit its sizes|are wrong"),
        ({"sizes": {"orders": [1, 2], "depth": 3}}, "moss.json: unknown sizes depth"),
        ({"sizes": {"orders": [1, 2], "after_layer": 9}}, "moss.json: after_layer=9, but"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(folder, change, message):
    edit(folder / "moss.json", **change)
    with pytest.raises(ValueError, match=message):
        moss_vllm.load(folder)


@pytest.mark.parametrize("fault", ["left over", "missing", "not finite", "of another shape"])
def test_weights_that_do_not_fit_are_refused(folder, fault):
    file = weights_of(folder)
    weights = load_file(file)
    name = next(name for name in weights if ".merger." in name and weights[name].dim() == 1)
    if fault == "left over":
        weights["lm_head.weight"] = torch.zeros(2, 2)
    elif fault == "missing":
        del weights[name]
    else:
        weights[name] = weights[name] * float("nan") if fault == "not finite" else weights[name][:-1].clone()
    save_file(weights, file)
    with pytest.raises(ValueError, match=f"does not fit its base: of the weights 1 {fault}"):
        moss_vllm.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' is not LoRA"),
        ({"megatron_core": "os"}, "megatron_core='os' of peft's LoRA is not supported"),
        ({"modules_to_save": ["model.visual.moss"]}, "lacks MOSS or the projector"),
        ({"r": 3}, "does not fit its base: of the weights .* of another shape"),
        ({"r": "x"}, "peft cannot use it"),
    ],
)
def test_settings_of_an_adapter_that_do_not_fit_are_refused(saved, tmp_path, change, message):
    folder = shutil.copytree(saved["peft"], tmp_path / "peft")
    edit(folder / "adapter_config.json", **change)
    with pytest.raises(ValueError, match=message):
        moss_vllm.load(folder)


def test_other_folders_and_pickles_are_refused(saved, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(
        ValueError, match="checkpoint of a recipe: open it with moss_vllm.vlm.checkpoint.load"
    ):
        moss_vllm.load(tmp_path)
    folder = shutil.copytree(saved["peft"], tmp_path / "peft")
    (folder / "adapter_model.bin").touch()
    with pytest.raises(ValueError, match="is a pickle, which can run code"):
        moss_vllm.load(folder)


def opened(base):
    return attach(Qwen3VLForConditionalGeneration.from_pretrained(base))


def test_what_a_folder_would_not_hold_is_not_saved(base, tmp_path):
    with pytest.raises(ValueError, match="base of this model has no name to open it by again"):
        moss_vllm.save(attach(fresh(QWEN3)), tmp_path / "x")
    model = opened(base)
    model.lm_head.weight.data += 1e-3
    with pytest.raises(
        ValueError, match=r"1 weights beside MOSS and projector have changed .*lm_head.weight"
    ):
        moss_vllm.save(model, tmp_path / "x")
    model = opened(base)
    model.model.visual.moss.order1.in_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="is not written: of the trained weights 1 not finite"):
        moss_vllm.save(model, tmp_path / "x")
    with quiet():
        model = get_peft_model(opened(base), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(
        ValueError, match=r"peft does not hold .*moss.*modules_to_save=moss_vllm.trained_modules"
    ):
        moss_vllm.save(model, tmp_path / "x")
    model = opened(base)
    whole = moss_vllm.trained_modules(model)
    settings = LoraConfig(target_modules=["q_proj"], modules_to_save=whole, init_lora_weights="gaussian")
    with quiet():
        model = get_peft_model(model, settings)
    with pytest.raises(ValueError, match="init_lora_weights='gaussian' of peft's LoRA is not supported"):
        moss_vllm.save(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_weights_that_peft_merges_into_the_base_are_not_lost_in_silence(base, tmp_path):
    model = wake(with_lora(opened(base))).merge_and_unload()
    with pytest.raises(ValueError, match="have changed since MOSS was attached"):
        moss_vllm.save(model, tmp_path / "x")
