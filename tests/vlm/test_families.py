"""Owns: a model's family is found by its model_type or processor, and other models are refused by name."""

import pytest
import tiny_hosts
from huggingface_hub.errors import StrictDataclassError
from tiny_processors import tiny_model
from transformers import Qwen2Config

from moss_vllm.commands.recipes import favor_lora
from moss_vllm.training.settings import parse
from moss_vllm.vlm import families
from moss_vllm.vlm.families import (
    MOSS_SETTINGS,
    VIDEO_LLAMA3,
    VIDEO_LLM_FAMILIES,
    family_of,
    family_with,
    find_family,
)
from moss_vllm.vlm.places import MINIATURE
from moss_vllm.vlm.processor import load_processor
from moss_vllm.vlm.settings import borrower


def released(family):
    """A config; Perception-LM's own default does not say how many layers its tower has."""
    return tiny_hosts.perception_lm() if family.title == "Perception-LM" else family.config()


@pytest.mark.parametrize("depth", [None, 0, "3", 10**6])
def test_a_tower_of_no_sensible_depth_is_refused(depth):
    family, config = find_family("perception_lm", "x"), tiny_hosts.perception_lm()
    config.vision_config.model_args = {"depth": depth} if depth is not None else None
    with pytest.raises(ValueError, match=r"vision_config.model_args.depth=.* no number of layers from 1 to"):
        family.add_moss(config)


@pytest.mark.parametrize("family", VIDEO_LLM_FAMILIES, ids=lambda family: family.title)
def test_a_family_is_found_with_and_without_moss(family):
    plain, with_moss = released(family), family.add_moss(released(family))
    assert family_of(plain) is family_of(with_moss) is family
    assert not family.has_moss(plain) and family.has_moss(with_moss)
    assert find_family(plain.model_type, "x") is find_family(with_moss.model_type, "x") is family


@pytest.mark.parametrize("family", VIDEO_LLM_FAMILIES, ids=lambda family: family.title)
def test_moss_has_the_papers_settings_where_none_are_given(family):
    with_moss = family.add_moss(released(family))
    settings = {name: list(v) if isinstance(v, tuple) else v for name, v in MOSS_SETTINGS.items()}
    layers = family.moss_model.host.layers(with_moss) if family.opens_stock_classes else 27
    if family.opens_stock_classes:  # the paper's layer in proportion; VideoLLaMA3's config has other defaults
        settings["moss_after_layer"] = max(1, round(6 / 27 * layers))
    assert family.moss_settings(with_moss) == settings and family.moss_settings(released(family)) is None


@pytest.mark.parametrize("family", VIDEO_LLM_FAMILIES, ids=lambda family: family.title)
def test_wrong_settings_of_moss_are_refused(family):
    with pytest.raises(ValueError, match=r"unknown MOSS settings \['moss_depth'\]; known are"):
        family.add_moss(released(family), moss_depth=3)
    with pytest.raises(StrictDataclassError):
        family.add_moss(released(family), moss_window="wide")
    if family.opens_stock_classes:
        layers = family.moss_model.host.layers(released(family))
        with pytest.raises(ValueError, match=f"has layers 1 to {layers}; the paper's 6 of 27 is"):
            family.add_moss(released(family), moss_after_layer=layers + 1)


@pytest.mark.parametrize("model_type", ["qwen2", None, ["video_llama_3"], 3])
def test_another_model_type_is_refused_with_the_families_there_are(model_type):
    with pytest.raises(
        ValueError, match=r"^here: model_type .* VideoLLaMA3 \('video_llama_3'\), .*; give a folder"
    ):
        find_family(model_type, "here")
    with pytest.raises(ValueError, match="this model: model_type 'qwen2' is of none of the families"):
        family_of(Qwen2Config())


def test_a_processor_has_the_family_of_its_class():
    assert family_with(load_processor(MINIATURE)) is VIDEO_LLAMA3
    with pytest.raises(ValueError, match="its processor is a str, of none of the families VideoLLaMA3"):
        family_with("processor")


def test_every_family_has_a_rate_for_moss_and_freezes_the_originals_first():
    for family in families.VIDEO_LLM_FAMILIES:
        names = [row.name for row in family.rates]
        assert names[0] == "originals" and "moss" in names and family.rates[0].lr is None


def test_a_family_without_a_preset_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for model_type, wanted in (
        ("glm4v", "runs/favor_glm4v"),
        ("internvl", "runs/favor_internvl"),
        ("qwen3_vl", None),
    ):
        folder = tmp_path / model_type
        tiny_model(model_type)[0].save_pretrained(folder)
        assert borrower(str(folder), None) == (model_type if wanted else None)
        settings, flags = parse(favor_lora.FavorLora, ["--model", str(folder)], "", favor_lora.preset)
        own = favor_lora.name_own_out(settings, flags.layers)
        assert own.out == (wanted or settings.out) and "videollama3" not in own.out
        settings, flags = parse(
            favor_lora.FavorLora, ["--model", str(folder), "--out", "mine"], "", favor_lora.preset
        )
        assert favor_lora.name_own_out(settings, flags.layers).out == "mine"
