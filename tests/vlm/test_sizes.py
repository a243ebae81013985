"""Owns: real sizes have the released models' parameter counts, cost no memory on "meta", and can be built."""

import copy

import pytest
import torch
from rich.console import Console

from moss_vllm.core.presets import VIDEO_LLM
from moss_vllm.vlm.adapter import attach_lora
from moss_vllm.vlm.shapes import SHAPES
from moss_vllm.vlm.sizes import (
    build_shape,
    config_of_shape,
    describe_shape,
    frame_of_shape,
    frames_per_step_of_shape,
    parameters_per_part,
)

VISION = 412_147_440
SMALL = {
    "model_type": "video_llama_3",
    "vision_config": {
        "hidden_size": 48,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "patch_size": 14,
    },
    "text_config": {
        **SHAPES["2b"]["text_config"],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 300,
        "pad_token_id": 0,
    },
    "image_token_id": 1,
    "video_token_id": 2,
    "tie_word_embeddings": True,
}


def linear(wide, high, bias=True):
    return wide * high + (high if bias else 0)


def moss_parameters(d_in, window, hidden, similarity, fuse):
    """MOSS of two orders with FC(F), layer by layer."""
    length, rows, columns = window
    counts = linear(d_in, d_in)
    for read in (d_in, fuse):
        counts += 2 * read + linear(read, hidden)
        counts += rows * columns * similarity + 2 * similarity
        counts += 2 * (9 * similarity**2 + 2 * similarity) + 9 * length * similarity * fuse + 2 * fuse
        counts += linear(fuse, d_in)
    return counts


def test_2b_has_its_parameters():
    model = build_shape("2b", moss=None)
    assert parameters_per_part(model) == {
        "MOSS": 0,
        "vision encoder": VISION,
        "projector": 4_131_840,
        "language model": 1_543_714_304,
        "head": 0,
    }
    assert sum(p.numel() for p in model.parameters()) == 1_959_993_584
    assert all(p.is_meta for p in model.parameters())


def test_7b_has_its_parameters():
    width, key, inner, vocabulary = 3584, 4 * 128, 18944, 152064
    attention = linear(width, width) + 2 * linear(width, key) + width * width
    layer = attention + 3 * width * inner + 2 * width
    assert parameters_per_part(build_shape("7b", moss=None)) == {
        "MOSS": 0,
        "vision encoder": VISION,
        "projector": linear(1152, width) + linear(width, width),
        "language model": 28 * layer + vocabulary * width + width,
        "head": vocabulary * width,
    }


def test_vision_encoder_by_hand():
    layer = 4 * linear(1152, 1152) + linear(1152, 4304) + linear(4304, 1152) + 4 * 1152
    assert linear(3 * 14 * 14, 1152) + 27 * layer + 2 * 1152 == VISION


PUBLISHED = {  # parameters as people who opened the released checkpoints report them
    "qwen2_5_vl_3b": 3_754_622_976,
    "qwen2_5_vl_7b": 8_292_166_656,
    "qwen3_vl_2b": 2_127_532_032,
    "qwen3_vl_4b": 4_437_815_808,
    "smolvlm2_2_2b": 2_246_784_880,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_other_models_have_their_parameters(name):
    counts = parameters_per_part(build_shape(name, moss=None))
    assert sum(counts.values()) == PUBLISHED[name]
    assert counts["MOSS"] == 0 and bool(counts["head"]) != SHAPES[name]["tie_word_embeddings"]


def merger(width, out, *, norm=0):
    return norm + linear(4 * width, 4 * width) + linear(4 * width, out)


@pytest.mark.parametrize(
    "name, projector",
    [
        ("qwen2_5_vl_3b", merger(1280, 2048, norm=1280)),
        ("qwen2_5_vl_7b", merger(1280, 3584, norm=1280)),
        # Three deepstack mergers, whose norms read four patches as one.
        ("qwen3_vl_2b", merger(1024, 2048, norm=2 * 1024) + 3 * merger(1024, 2048, norm=8 * 1024)),
        ("qwen3_vl_4b", merger(1024, 2560, norm=2 * 1024) + 3 * merger(1024, 2560, norm=8 * 1024)),
        ("smolvlm2_2_2b", 9 * 1152 * 2048),
    ],
)
def test_projectors_by_hand(name, projector):
    assert parameters_per_part(build_shape(name, moss=None))["projector"] == projector


TOWERS = {"2b": 1152, "7b": 1152, "qwen2_5_vl_3b": 1280, "qwen2_5_vl_7b": 1280}
TOWERS |= {"qwen3_vl_2b": 1024, "qwen3_vl_4b": 1024, "smolvlm2_2_2b": 1152}


@pytest.mark.parametrize("name", SHAPES)
def test_moss_adds_its_parameters_and_nothing_else(name):
    plain, chosen = (
        parameters_per_part(build_shape(name, moss=None)),
        parameters_per_part(build_shape(name, moss={})),
    )
    assert chosen.pop("MOSS") == moss_parameters(
        TOWERS[name], VIDEO_LLM.window, VIDEO_LLM.d_hidden, VIDEO_LLM.d_similarity, VIDEO_LLM.d_fuse
    )
    del plain["MOSS"]
    assert chosen == plain
    smaller = parameters_per_part(build_shape(name, moss={"moss_window": [3, 5, 5], "moss_d_fuse": 64}))
    assert smaller["MOSS"] == moss_parameters(
        TOWERS[name], (3, 5, 5), VIDEO_LLM.d_hidden, VIDEO_LLM.d_similarity, 64
    )


@pytest.mark.parametrize(
    "name, after",
    [("2b", 6), ("qwen2_5_vl_3b", 7), ("qwen3_vl_2b", 5), ("qwen3_vl_4b", 5), ("smolvlm2_2_2b", 6)],
)
def test_moss_stands_after_the_papers_layer_in_proportion(name, after):
    assert build_shape(name, moss={}).config.vision_config.moss_after_layer == after


@pytest.mark.parametrize(
    "name, per_step, frame",
    [
        ("7b", 1, (224, 392)),
        ("qwen2_5_vl_7b", 2, (224, 392)),
        ("qwen3_vl_4b", 2, (224, 384)),
        ("smolvlm2_2_2b", 1, (384, 384)),
    ],
)
def test_frames_of_a_shape(name, per_step, frame):
    assert frames_per_step_of_shape(name) == per_step
    assert frame_of_shape(config_of_shape(name), 224) == frame


def test_shapes_stay_as_written():
    before = copy.deepcopy(SHAPES)
    build_shape("2b", moss={})
    build_shape("qwen3_vl_2b", moss={})
    assert before == SHAPES


def test_unknown_names_and_adapted_models_are_refused():
    with pytest.raises(ValueError, match="unknown shape '3b'; choose one of 2b, 7b"):
        build_shape("3b", moss=None)
    adapted = attach_lora(build_shape("2b", moss=None), rank=2, alpha=2, dropout=0.0)
    with pytest.raises(ValueError, match="count before LoRA"):
        parameters_per_part(adapted)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_random_weights_are_those_of_the_class(monkeypatch, moss, dtype):
    monkeypatch.setitem(SHAPES, "small", SMALL)
    model = build_shape("small", moss=moss, device="cpu", dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype or torch.float32}
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    embeddings = model.model.language_model.embed_tokens.weight.detach()
    assert embeddings[1:].float().std() == pytest.approx(0.02, rel=0.05) and not embeddings[0].any()
    assert (model.model.language_model.norm.weight == 1).all()
    assert (model.model.vision_model.post_layernorm.weight == 1).all()
    for layer in model.model.vision_model.moss.last_linears():
        assert not layer.weight.any() and not layer.bias.any()
    norm = model.model.vision_model.moss.order1.fuse.batch_norm
    assert not norm.running_mean.any() and (norm.running_var == 1).all() and norm.num_batches_tracked == 0
    for rotary in (model.model.vision_model.rotary_pos_emb, model.model.language_model.rotary_emb):
        assert rotary.inv_freq[0] == 1 and rotary.inv_freq.isfinite().all()

    inputs = {
        "input_ids": torch.tensor([[2] * 8 + [5, 6, 7]]),
        "pixel_values_videos": torch.randn(32, 588, dtype=dtype),
        "video_grid_thw": torch.tensor([[2, 4, 4]]),
        "video_merge_sizes": torch.tensor([2]),
    }
    with torch.no_grad():
        assert model(**inputs).logits.isfinite().all()


def test_describe_prints_parameters_groups_and_memory():
    console = Console(width=140, record=True)
    found = describe_shape("7b", moss={}, frames=(4,), console=console)
    text = console.export_text()
    lora = 28 * 16 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944))
    for expected in ("MOSS", "7,070,619,136", "544,997,376", "12,967,040", "llm lora", f"{lora:,}", "1e-05"):
        assert expected in text
    assert list(found) == ["4 frames", "4 frames, recomputed"]
    assert f"{found['4 frames'].total / 2**30:.2f}" in text
    trained = lora + 12_967_040 + 16_980_992
    assert found["4 frames"].adam_states == 8 * trained
    # peft keeps the released projector and a MOSS as made beside those that train.
    assert found["4 frames"].frozen_weights == 4 * (8_044_744_944 + 12_967_040)


def test_describe_other_models():
    console = Console(width=140, record=True)
    found = describe_shape("qwen3_vl_2b", moss={}, frames=(8,), lora_rank=8, console=console)
    text = console.export_text()
    lora = 28 * 8 * (2 * (2048 + 2048) + 2 * (2048 + 1024) + 3 * (2048 + 6144))
    moss, projector = 12_589_568, 100_714_496
    for expected in ("parameters of Qwen3-VL-2B", "2,127,532,032", "2,140,121,600", f"{lora:,}", "224 x 384"):
        assert expected in text
    assert found["8 frames"].adam_states == 8 * (lora + moss + projector)
    assert found["8 frames"].frozen_weights == 4 * (2_127_532_032 + moss)


@pytest.mark.parametrize("name", ["qwen2_5_vl_3b", "smolvlm2_2_2b"])
def test_describe_other_models_without_moss(name, capsys):
    found = describe_shape(name, moss=None, frames=(4,), lora_rank=8)
    assert all(memory.moss == 0 and memory.projector > 0 for memory in found.values())
    groups = capsys.readouterr().out.split("what trains")[1]
    assert "moss" not in groups.split("memory")[0]


def test_describe_without_moss(capsys):
    found = describe_shape("2b", moss=None, frames=(4,), lora_rank=8)
    assert all(memory.moss == 0 for memory in found.values())
    groups = capsys.readouterr().out.split("what trains")[1]
    assert "moss" not in groups.split("memory")[0]
