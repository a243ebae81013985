"""Owns: the second miniature in the package is a real, small Qwen2.5-VL that reads appearance."""

import copy
import json
from pathlib import Path

import make_miniature
import numpy as np
import pytest
import torch
from miniature_families import FAMILIES
from miniature_sights import Matches, draw_pictures, first_miniature
from miniature_take_over import take_over
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.vision_utils import get_vision_window_index

from moss_vllm.data.world import appearance
from moss_vllm.vlm.attach import attach
from moss_vllm.vlm.hosts.miniature import VISION_TOKENS, add_vision_tokens, build_qwen
from moss_vllm.vlm.places import MINIATURES
from moss_vllm.vlm.video_llama3.miniature import MINIATURE_MOSS

FOLDER = MINIATURES["miniature_qwen2_5_vl"]
FIRST, OWN = FAMILIES["video_llama_3"], FAMILIES["qwen2_5_vl"]
MADE_HERE = ("transformers_version", "dtype", "architectures", "_name_or_path")  # by saving


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32).eval()


def settings(config):
    """A config without what saving adds."""
    return {
        key: settings(value) if isinstance(value, dict) else value
        for key, value in (config if isinstance(config, dict) else config.to_dict()).items()
        if key not in MADE_HERE
    }


def test_plain_transformers_opens_it(model, processor):
    assert type(model) is Qwen2_5_VLForConditionalGeneration
    assert type(processor) is Qwen2_5_VLProcessor
    assert settings(model.config) == settings(build_qwen(processor.tokenizer).config)
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert sum(files.values()) < 3.6e6
    assert {Path(name).suffix for name in files} <= {".json", ".jsonl", ".jinja", ".safetensors"}


def test_the_tokenizer_is_the_firsts_with_two_tokens_more(processor):
    first, own = first_miniature().processor.tokenizer, processor.tokenizer
    text = "The red circle moves left slowly.<|im_end|>\n"
    assert own(text)["input_ids"] == first(text)["input_ids"]
    assert own.convert_tokens_to_ids(list(VISION_TOKENS)) == [len(first), len(first) + 1] == [619, 620]


def test_the_layout_is_qwens(processor):
    video, text = {"type": "video"}, {"type": "text", "text": "What moves?"}
    messages = [{"role": "user", "content": [video, text]}]
    assert processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>What moves?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_windows_sort_the_tokens_of_a_step(model):
    config = model.config.vision_config
    order, _ = get_vision_window_index(
        torch.tensor([[1, 6, 6]]),
        spatial_merge_size=config.spatial_merge_size,
        window_size=config.window_size,
        patch_size=config.patch_size,
    )
    assert order.tolist() == [0, 1, 3, 4, 2, 5, 6, 7, 8]
    assert set(config.fullatt_block_indexes) < set(range(config.depth))


def test_taken_over_it_is_the_first(processor):
    """With as many hidden units and attention to the whole step; the gates are not quite a GELU."""
    first = first_miniature()
    config = build_qwen(processor.tokenizer).config
    config.vision_config.intermediate_size = first.model.config.vision_config.intermediate_size
    config.vision_config.fullatt_block_indexes = list(range(config.vision_config.depth))
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    pictures = draw_pictures(0, 8)
    shown = FIRST.show(first.processor, pictures)
    take_over(model, first.model, shown)
    with torch.no_grad():
        expected = FIRST.see(first.model, **shown)
        found = OWN.see(model, **OWN.show(processor, pictures))
        ids = processor.tokenizer("What does the red circle do?", return_tensors="pt")["input_ids"]
        said, says = first.model(ids).logits, model(ids).logits
    assert (found - expected).norm() < 0.06 * expected.norm()
    torch.testing.assert_close(says[..., : said.shape[-1]], said)


def test_what_it_learns_to_match_are_the_firsts_tokens(processor):
    make = Matches(OWN, FIRST, processor, batch_size=4)
    shown, tokens = make(np.random.default_rng(3))
    assert shown["grid_thw"].tolist() == [[1, 6, 6], [1, 6, 6], [8, 6, 6]]
    assert tokens.shape == (90, 128)
    rng = np.random.default_rng(3)
    clips = [appearance.draw_sight(rng, frames=n, fps=4.0).frames for n in (1, 1, 16)]
    first = first_miniature()
    with torch.no_grad():
        frames = FIRST.see(first.model, **FIRST.show(first.processor, [clips[2][2:4]]))
    torch.testing.assert_close(tokens[27:36], (frames[:9] + frames[9:]) / 2)


def test_the_record_has_what_recipes_need():
    record = json.loads((FOLDER / "miniature.json").read_text())
    assert record["protocol"] == {
        "sample_fps": 4.0,
        "short_side_px": 84,
        "max_frames": 360,
        "compress_tokens": False,
    }
    assert record["moss"] == {**MINIATURE_MOSS, "moss_window": [5, 5, 5]}
    assert record["command"].startswith("python experiments/make_miniature.py --family qwen2_5_vl ")


def test_moss_is_attached_after_the_second_block(model, processor):
    sizes = {name.removeprefix("moss_"): size for name, size in MINIATURE_MOSS.items()}
    attached = attach(copy.deepcopy(model), **sizes)
    assert attached.model.visual.moss_sizes["after_layer"] == 2
    clip = appearance.draw_sight(np.random.default_rng(0), frames=8, fps=4.0).frames
    shown = OWN.show(processor, [clip])
    with torch.no_grad():
        assert torch.equal(OWN.see(attached, **shown), OWN.see(model, **shown))


def test_logits_are_finite_and_depend_on_the_picture(model, processor):
    text = "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>What?<|im_end|>\n"
    logits = []
    for picture in draw_pictures(1, 2):
        inputs = processor(
            text=[text], videos=[picture], do_resize=False, do_sample_frames=False, return_tensors="pt"
        )
        with torch.no_grad():
            logits.append(model(**inputs).logits)
    assert all(torch.isfinite(each).all() for each in logits)
    assert (logits[0] - logits[1]).abs().max() > 0.1


def test_it_reads_signs(model, processor):
    """On a few held-out sights; guessing gives 20 to 33 %."""
    found = make_miniature.measure(model, processor, OWN, sights=16, seed=123)
    assert found["sign"] > 60 and found["no option"] < 30


@pytest.mark.slow
def test_appearance_accuracy_is_what_the_record_says(model, processor):
    """On fewer and other sights than the record's: within four standard errors."""
    recorded = json.loads((FOLDER / "miniature.json").read_text())["appearance_accuracy_percent"]
    found = make_miniature.measure(model, processor, OWN, sights=40, seed=124)
    assert abs(found["all"] - recorded["all"]) < 4 * 100 * np.sqrt(0.25 / (40 * 3))


def test_tokens_are_added_to_a_copy():
    tokenizer = first_miniature().processor.tokenizer
    before = len(tokenizer)
    assert len(add_vision_tokens(tokenizer)) == before + 2 and len(tokenizer) == before
