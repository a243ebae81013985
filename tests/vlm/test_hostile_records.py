"""Owns: records and weights that lie are one message, before anything of the size they name is made."""

import shutil

import pytest
import torch
from checkpoint_edits import edit_json, refused
from safetensors.torch import load_file, save_file

from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.base import moss_to_train

DEEP = "[" * 200_000
WITH_MOSS = pytest.mark.parametrize("saved", ["moss"], indirect=True)


@pytest.fixture
def base(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "base")


@WITH_MOSS
@pytest.mark.parametrize(
    "file, values, message",
    [
        ("adapter_config.json", {"r": 10**6}, "r=1000000, and the rank of the weights beside it is 4"),
        ("adapter_config.json", {"r": 10**400}, r"r=1000.*\.\.\., and the rank"),
        ("adapter_config.json", {"r": True}, "r=True, .* are not a rank from 1"),
        ("adapter_config.json", {"lora_alpha": float("inf")}, "lora_alpha=inf.* are not"),
        ("adapter_config.json", {"lora_alpha": True}, "lora_alpha=True.* are not"),
        ("adapter_config.json", {"r": 0}, "r=0, lora_alpha=8, lora_dropout=0.1 are not a rank from 1"),
        ("adapter_config.json", {"lora_alpha": "8"}, "lora_alpha='8'"),
        ("adapter_config.json", {"lora_dropout": 2}, "lora_dropout=2 are not"),
        ("adapter_config.json", {"use_dora": True}, "use_dora=True is not what this package trains with"),
        ("adapter_config.json", {"use_rslora": True}, "use_rslora=True is not what"),
        ("adapter_config.json", {"peft_type": "IA3"}, "peft_type='IA3' is not what"),
        ("adapter_config.json", {"target_modules": ["q_proj"]}, r"target_modules=\['q_proj'\] is not what"),
        ("adapter_config.json", {"new_thing": {"a": 1}}, "new_thing={'a': 1} is not what"),
        ("run.json", {"base_model": 3}, "base_model=3 is not text"),
        ("run.json", {"base_revision": []}, r"base_revision=\[\] is not text"),
        ("run.json", {"protocol": None}, "run.json: protocol=None is not names with numbers"),
        ("run.json", {"protocol": [2.0]}, "run.json: protocol=.* is not names with numbers"),
        ("run.json", {"protocol": {"sample_fps": "2"}}, "run.json: protocol=.* is not names with numbers"),
        ("run.json", {"moss": None}, "holds MOSS and its base was opened without; the setting moss"),
        ("run.json", {"moss": [1]}, r"moss=\[1\] is not names with values, or null"),
        ("run.json", {"moss": {}}, r"run\.json: moss has no moss_after_layer, .*; write there what it was"),
        ("run.json", {"moss__moss_after_layer": 0}, "the encoder has layers 1 to 7"),
        ("run.json", {"moss__moss_orders": [*range(1, 100_000)]}, "and the weights have orders 1 to 2"),
        ("run.json", {"moss__moss_orders": [1, 10**9]}, r"moss_orders=\[1, 1000000000\], and the weights"),
        ("run.json", {"moss__moss_orders": []}, r"moss_orders=\[\], and the weights"),
        ("run.json", {"moss__moss_orders": "12"}, "moss_orders='12', and the weights"),
        ("run.json", {"moss__moss_d_hidden": 10**9}, r"of another shape \(vision_model\.moss\.order1"),
        ("run.json", {"moss__moss_d_hidden": 10**30}, r"run\.json: MOSS settings .* are wrong \("),
        ("run.json", {"moss__moss_d_hidden": -5}, r"run\.json: MOSS settings .* are wrong \(RuntimeError"),
        ("run.json", {"moss__moss_d_hidden": "8"}, r"run\.json: MOSS settings .* are wrong .*expected int"),
        ("run.json", {"moss__moss_window": [10**6 + 1] * 3}, "of another shape|are wrong"),
        ("run.json", {"moss__moss_window": [3]}, r"run\.json: MOSS settings .* are wrong \("),
        ("run.json", {"moss__moss_after_layer": 8}, "moss_after_layer=8, but the encoder has layers 1 to 7"),
        ("run.json", {"moss__moss_after_layer": 10**9}, "the encoder has layers 1 to 7"),
        (
            "processor_config.json",
            {"processor_class": "LlavaProcessor"},
            "processor is a LlavaProcessor, of none of the families",
        ),
        ("processor_config.json", {"image_processor__patch_size": -1}, "processor has patch_size -1, the mo"),
        ("processor_config.json", {"image_processor": 5}, "its processor cannot be read"),
    ],
)
def test_what_a_checkpoint_says_is_compared_with_its_weights(copy, file, values, message):
    edit_json(copy / file, **values)
    refused(copy, message)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"text_config__num_hidden_layers": 10**9}, "num_hidden_layers=1000000000, its weights have 4"),
        ({"vision_config__num_hidden_layers": -1}, "num_hidden_layers=-1, its weights have 7"),
        ({"text_config__vocab_size": 10**9}, r"do not fit its config\.json: .*of another shape"),
        ({"text_config__vocab_size": 10**30}, r"no model can be made of its config\.json"),
        ({"text_config__hidden_size": -4}, r"no model can be made of its config\.json"),
        ({"text_config__hidden_act": "os.system"}, r"no model .* config\.json \(KeyError: 'os\.system'"),
        ({"vision_config__head_dim": 10**9}, r"asks for .*inv_freq of 250,000,000 numbers"),
        ({"vision_config__patch_size": 10**6}, r"do not fit its config\.json"),
        ({"num_labels": 10**9}, "num_labels=1000000000"),
        ({"text_config": [1]}, r"config\.json cannot be used"),
        ({"image_token_id": 4}, "its processor has image_token_id 3, the model's is 4"),
    ],
)
def test_what_a_base_says_is_compared_with_its_weights(base, values, message):
    edit_json(base / "config.json", **values)
    refused(base, message)


@pytest.mark.parametrize("text", [DEEP, '{"a": ', "[1]"])
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "processor_config.json"]
)
def test_a_base_with_json_that_is_none(base, name, text):
    (base / name).write_text(text)
    refused(base, rf"{name}: cannot be read as JSON \(")


@WITH_MOSS
@pytest.mark.parametrize("name", ["run.json", "adapter_config.json", "tokenizer_config.json"])
def test_a_checkpoint_with_json_that_is_none(copy, name):
    for text, reason in ((DEEP, "is nested too deeply"), ("[1]", "holds a list")):
        (copy / name).write_text(text)
        refused(copy, rf"{name}: cannot be read as JSON \(it {reason}")


@pytest.mark.parametrize(
    "text", [DEEP, "{}", '{"weight_map": [1]}', '{"weight_map": {"a": "../x.safetensors"}}']
)
def test_an_index_that_names_no_files(base, text):
    (base / "model.safetensors").rename(base / "model-00001-of-00001.safetensors")
    (base / "model.safetensors.index.json").write_text(text)
    refused(base, r"model\.safetensors\.index\.json: ")


def test_a_record_of_a_base_that_is_none(base):
    (base / "miniature.json").write_text(DEEP)
    refused(base, r"miniature\.json: cannot be read as JSON \(it is nested too deeply\)")
    (base / "miniature.json").write_text('{"moss": [1]}')
    with pytest.raises(ValueError, match=r"its record has moss=\[1\], not names with values"):
        moss_to_train(base)


TYPES = {
    "int64": (lambda value: (value * 100).to(torch.int64), "of another type"),
    "bool": (lambda value: value > 0, "of another type"),
    "complex": (lambda value: value.float() + 0j, "of another type"),
    "float8": (lambda value: value.to(torch.float8_e4m3fn), "of another type"),
    "1e300": (lambda value: value.double() * 0 + 1e300, "not finite"),
}


@WITH_MOSS
@pytest.mark.parametrize("change_type, message", TYPES.values(), ids=TYPES)
def test_weights_of_another_type(copy, base, change_type, message):
    for file in (copy / "adapter_model.safetensors", base / "model.safetensors"):
        weights = load_file(file)
        name = next(name for name in sorted(weights) if "lora_A" in name or "up_proj" in name)
        save_file({**weights, name: change_type(weights[name])}, file, {"format": "pt"})
        short = name.removeprefix("base_model.model.model.").replace(".", r"\.")
        refused(file.parent, rf"1 {message} \({short}\)")


@WITH_MOSS
def test_halves_and_doubles_in_range_are_taken(copy):
    file = copy / "adapter_model.safetensors"
    for dtype in (torch.bfloat16, torch.float64):
        weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in load_file(file).items()}
        save_file(weights, file, {"format": "pt"})
        assert checkpoint.load(copy).run["step"] == 2
