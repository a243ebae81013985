"""Owns: a base whose files or settings contradict each other is refused, never opened to something else."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_processors import tiny_model, tiny_processor

from moss_vllm.commands.recipes.favor_lora import FavorLora
from moss_vllm.vlm.base import load_base
from moss_vllm.vlm.places import MINIATURES
from moss_vllm.vlm.processor import check_processor, load_processor
from moss_vllm.vlm.settings import fit_clips, preset_name


def write_base(folder, model_type):
    model, processor = tiny_model(model_type)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def edit_vision(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= values
    (folder / "config.json").write_text(json.dumps(config))


def test_moss_that_the_config_does_not_describe_is_refused(tmp_path, moss):
    folder = write_base(tmp_path / "base", "qwen2_5_vl")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "model.visual.moss.order1.w": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="does not describe"):
        load_base(folder, moss=moss)


@pytest.mark.parametrize("layer", [0, 99, "6"])
def test_a_described_moss_is_after_a_layer_of_the_tower(tmp_path, moss, layer):
    folder = write_base(tmp_path / "base", "qwen2_5_vl")
    load_base(folder, moss=moss).save_pretrained(folder)
    edit_vision(folder, moss_after_layer=layer)
    with pytest.raises(ValueError, match=r"moss_after_layer=.* layers 1 to"):
        load_base(folder)


def test_a_projector_that_reads_another_layer_is_refused(tmp_path, moss):
    folder = write_base(tmp_path / "base", "llava_onevision")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vision_feature_layer": -2}))
    with pytest.raises(ValueError, match="vision_feature_layer=-2"):
        load_base(folder, moss=moss)


def test_the_processor_is_of_the_models_own_family(tmp_path):
    model, _ = tiny_model("qwen2_5_vl")
    with pytest.raises(ValueError, match=r"its processor is Qwen2-VL's, the model is a Qwen2.5-VL"):
        check_processor("folder", tiny_processor("qwen2_vl"), model.config)


@pytest.mark.parametrize("model_type", ["glm4v", "internvl", "llava_onevision", "perception_lm"])
def test_every_family_has_a_preset(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert preset_name(str(tmp_path), None)


def test_clips_of_a_family_that_takes_equal_ones_come_one_by_one():
    settings, processor = FavorLora(batch_size=2, short_side_px=224), tiny_processor("llava_onevision")
    with pytest.raises(ValueError, match="give batch_size 1"):
        fit_clips(settings, processor, ())
    fitted = fit_clips(dataclasses.replace(settings, batch_size=1, compress_tokens=True), processor, ())
    sides = (fitted.short_side_px, fitted.compress_tokens)
    assert sides == (int(processor.video_processor.size["height"]), False)


@pytest.mark.parametrize("name, least", [("miniature", 2), ("miniature_qwen2_5_vl", 4)])
def test_moss_on_clips_of_one_step_of_time_is_refused(name, least):
    processor = load_processor(MINIATURES[name])
    settings = FavorLora(model=name, max_frames=least - 1)
    with pytest.raises(
        ValueError, match=f"max_frames is {least - 1}, and MOSS learns .*: give {least} or more"
    ):
        fit_clips(settings, processor, ())
    assert fit_clips(dataclasses.replace(settings, use_moss=False), processor, ()).max_frames == least - 1
    assert fit_clips(dataclasses.replace(settings, max_frames=least), processor, ()).max_frames == least
