"""Owns: the memory estimate is that of real training steps, at every size, precision and batch tried.

Measured on the CPU: bytes of all tensors alive, after the forward pass and at the most.
"""

from contextlib import nullcontext

import pytest
import torch
from kept_for_backward import KeptForBackward
from rich.console import Console
from step_bytes import measure
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import VideoLlama3Config, VideoLlama3ForConditionalGeneration

from moss_vllm.core import MOSS, encoder
from moss_vllm.core.moss import checkpoint_moss
from moss_vllm.training.alive import AliveBytes
from moss_vllm.training.optim import parameter_groups
from moss_vllm.vlm.adapter import attach_lora
from moss_vllm.vlm.conversation import IGNORED
from moss_vllm.vlm.decoder_memory import layer_cast_weights, layer_kept, moss_kept
from moss_vllm.vlm.families import VIDEO_LLAMA3
from moss_vllm.vlm.lean_decoder import lean_mlps, leave_casts_to_autocast
from moss_vllm.vlm.memory import memory_table
from moss_vllm.vlm.sizes import build_shape
from moss_vllm.vlm.video_llama3.memory import TIME_TOKENS, estimate_training_memory
from moss_vllm.vlm.video_llama3.model import MossVideoLlama3ForConditionalGeneration, moss_config

SMALL = {
    "width": 128,
    "inner": 384,
    "layers": 2,
    "heads": 4,
    "key_heads": 2,
    "vocabulary": 512,
    "vision": 96,
    "rank": 8,
    "frames": 8,
    "wide": 84,
    "text": 20,
    "clips": 1,
    "moss": {},
    "half": False,
    "recompute": False,
    "frozen": torch.float32,
    "padded": False,
    "again": False,  # --checkpoint-moss
    "dropout": 0.0,
}
DEEP = {"layers": 6, "width": 192, "inner": 768, "heads": 6, "key_heads": 1}
HALF_FROZEN = {"half": True, "frozen": torch.bfloat16}
CASES = [
    {},
    {"half": True},
    {"recompute": True},
    {"recompute": True, "again": True, "frames": 16},
    {"half": True, "again": True, "moss": {"moss_orders": [1, 2, 3]}},
    {"moss": None},
    {"moss": None, "half": True},
    {"moss": None, "recompute": True},
    HALF_FROZEN,
    {**HALF_FROZEN, "recompute": True},
    {"dropout": 0.05},
    {**HALF_FROZEN, "dropout": 0.05},
    {**HALF_FROZEN, "recompute": True, "again": True, "dropout": 0.05},
    {"clips": 3, "padded": True},
    {"clips": 3, "padded": True, "half": True, "recompute": True},
    {"frames": 24, "wide": 112, "half": True, "recompute": True},
    DEEP,
    {**DEEP, "half": True, "recompute": True},
    {"vocabulary": 4096, "text": 60, "half": True},
    {"vision": 160, "rank": 32, "moss": {"moss_orders": [1, 2, 3], "moss_window": [5, 7, 7]}, "half": True},
    {"vision": 160, "frames": 16, "moss": {"moss_orders": [1, 3], "moss_input_fc": False}},
]


def build(size):
    config = VideoLlama3Config(
        vision_config={
            "hidden_size": size["vision"],
            "intermediate_size": 2 * size["vision"],
            "num_hidden_layers": 7,
            "num_attention_heads": 4,
            "patch_size": 14,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": size["width"],
            "intermediate_size": size["inner"],
            "num_hidden_layers": size["layers"],
            "num_attention_heads": size["heads"],
            "num_key_value_heads": size["key_heads"],
            "vocab_size": size["vocabulary"],
            "tie_word_embeddings": True,
        },
        image_token_id=1,
        video_token_id=2,
        tie_word_embeddings=True,
    )
    kind, rates = VideoLlama3ForConditionalGeneration, list(VIDEO_LLAMA3.rates)
    if size["moss"] is None:
        rates = [row for row in rates if row.name != "moss"]
    else:
        small = {
            "moss_window": [3, 5, 5],
            "moss_d_hidden": 32,
            "moss_d_similarity": 32,
            "moss_d_fuse": 64,
        }
        kind, config = MossVideoLlama3ForConditionalGeneration, moss_config(config, **small | size["moss"])
    model = attach_lora(kind(config).to(size["frozen"]), rank=size["rank"], alpha=8, dropout=size["dropout"])
    parameter_groups(model, rates)
    checkpoint_moss(model, size["again"])
    if size["recompute"]:
        language_model = model.get_base_model().model.language_model
        enable = getattr(language_model, "activation_checkpointing_enable", None)
        (enable or language_model.gradient_checkpointing_enable)({"use_reentrant": False})
    return model.train()


def batch(size):
    clips, frames, rows, columns = size["clips"], size["frames"], 6, size["wide"] // 14
    tokens = frames * rows * columns // 4
    spoken = torch.randint(3, 500, (clips, frames * TIME_TOKENS + size["text"]))
    ids = torch.cat([torch.full((clips, tokens), 2), spoken], dim=1)
    labels = ids.clone()
    labels[:, : -size["text"]] = IGNORED
    mask = torch.ones_like(ids)
    if size["padded"]:
        mask[1:, -3:] = 0
    return {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": mask,
        "pixel_values_videos": torch.randn(clips * frames * rows * columns, 588),
        "video_grid_thw": torch.tensor([[frames, rows, columns]] * clips),
        "video_merge_sizes": torch.full((clips,), 2),
    }


def estimate(model, size):
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return estimate_training_memory(
        model.get_base_model().config,
        lora_rank=size["rank"],
        frames=size["frames"],
        height_px=84,
        width_px=size["wide"],
        text_tokens=size["text"],
        batch_size=size["clips"],
        precision="bf16" if size["half"] else "fp32",
        checkpoint_llm=size["recompute"],
        trained_parameters=trained,
        frozen_parameters=sum(p.numel() for p in model.parameters()) - trained,
        frozen_dtype=size["frozen"],
        fused_stss=False,  # on the CPU it is not
        checkpoint_moss=size["again"],
        mask_bytes=4 if size["dropout"] else 0,
    )


def name_of(case):
    return " ".join(f"{name}={value}" for name, value in case.items()) or "small"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_estimate_is_what_a_step_takes(case):
    size = SMALL | case
    torch.manual_seed(0)
    model = build(size)
    kept, peak = measure(model, batch(size), half=size["half"])
    found = estimate(model, size)
    log_softmax = 4 * size["clips"] * size["text"] * size["vocabulary"]
    assert (found.kept + log_softmax) / kept == pytest.approx(1, abs=0.02)
    assert 1 <= found.total / peak <= 1.13  # gradients are counted that come later


def test_equal_clips_take_less_than_padded_ones():
    size = SMALL | {"clips": 3}
    model = build(size)
    kept, _ = measure(model, batch(size), half=size["half"])
    found = estimate(model, size)
    masks = 3 * (8 * 9 + 8 * TIME_TOKENS + 20) ** 2
    repeated_keys = 2 * 2 * 3 * (8 * 9 + 8 * TIME_TOKENS + 20) * 64 * 4
    equal = found.kept - masks * (1 + 2 * 4) - repeated_keys
    assert (equal + 4 * 3 * 20 * 512) / kept == pytest.approx(1, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2b", "7b", "qwen2_5_vl_3b", "qwen3_vl_4b", "smolvlm2_2_2b"])
def test_a_layer_of_real_size_keeps_what_is_estimated(name):
    tokens, rank = 2640, 16
    model = build_shape(name, moss=None)
    leave_casts_to_autocast(attach_lora(model, rank=rank, alpha=rank, dropout=0.0))
    language_model = model.get_decoder()
    text = language_model.config
    shape = (3, 1, tokens) if "mrope_section" in text.rope_parameters else (1, tokens)
    with FakeTensorMode(
        allow_non_fake_inputs=True
    ):  # as "meta", but tensors say "cpu", which attention and autocast ask for
        layer = language_model.layers[0].to_empty(device="cpu")
        rotary = language_model.rotary_emb.to_empty(device="cpu")
        for bytes_each, half in ((4, nullcontext), (2, lambda: torch.autocast("cpu", torch.bfloat16))):
            hidden = torch.empty(1, tokens, text.hidden_size, requires_grad=True)
            positions = rotary(hidden, torch.arange(tokens).expand(shape))
            with AliveBytes(*layer.parameters(), *layer.buffers(), *positions) as alive:
                with half(), lean_mlps(layer):
                    output = layer(hidden.clone(), position_embeddings=positions)
            expected = layer_kept(text, 1, tokens, rank, bytes_each, 4, masked=False)
            expected += layer_cast_weights(text, rank, 4) if bytes_each == 2 else 0
            assert (alive.now - output.nbytes) / expected == pytest.approx(1, abs=0.002)


@pytest.mark.parametrize("path", ["fused", "banded"])
def test_moss_of_real_size_keeps_what_is_estimated(path, monkeypatch):
    monkeypatch.setattr(encoder, "stss_path", lambda *_: (path, "chosen by the test"))
    vision = build_shape("2b", moss={}).config.vision_config
    with FakeTensorMode():
        module = build_shape("2b", moss={}, device="cpu").model.vision_model.moss
        grid = torch.empty(1, 20, 16, 28, 1152)
        with KeptForBackward(module, []) as kept:
            MOSS.forward(module, grid)
    host = 20 * 16 * 28 * 1152 * 4  # the tapped layer, which MOSS does not see
    found = moss_kept(vision, 1152, 20 * 16 * 28, 4, tapped=8, fused=path == "fused")
    assert kept.total_bytes() / (found - host) == pytest.approx(1, abs=0.002)


def real(**changes):
    arguments = {
        "lora_rank": 16,
        "frames": 20,
        "height_px": 224,
        "width_px": 392,
        "text_tokens": 200,
        "batch_size": 1,
        "precision": "bf16",
        "checkpoint_llm": False,
        "trained_parameters": 100,
        "frozen_parameters": 1000,
    }
    return estimate_training_memory(build_shape("2b", moss={}).config, **arguments | changes)


def test_zero_divides_what_its_stage_says():
    def parts(stage, processes=4):
        found = real(zero_stage=stage, processes=processes)
        return found.frozen_weights, found.trained_weights, found.gradients, found.adam_states

    assert parts(0, processes=1) == (4000, 400, 400, 800)
    assert parts(0) == (4000, 400, 800, 800)  # DDP's buckets
    assert parts(1) == (4000, 400 + 100, 400, 200)
    assert parts(2) == (4000, 400 + 100, 100, 200)
    assert parts(3) == (1000, 100 + 100, 100, 200)


def test_masks_of_padded_clips_are_flash_attentions_gain():
    length = 20 * (112 + TIME_TOKENS) + 200
    gain = real(batch_size=2).kept - real(batch_size=2, attention="flash_attention_2").kept
    repeated_keys = 2 * (1536 - 256) * 2 * length * 2  # k and v, of each of 2 clips, 2 bytes
    assert gain == 2 * length**2 + 28 * (2 * 2 * length**2 + repeated_keys)


def test_table_shows_every_part():
    found = real(frozen_parameters=2**28)
    console = Console(width=100)
    with console.capture() as capture:
        console.print(memory_table({"20 frames": found}, title="memory"))
    lines = [line.split("│") for line in capture.get().splitlines() if line.startswith("│")]
    shown = {line[1].strip(): float(line[2]) for line in lines}
    assert shown["frozen weights"] == 1.0
    assert shown["total"] == pytest.approx(found.total / 2**30, abs=0.005)
    assert shown["earlier: encoder at work"] == pytest.approx(found.encoder_at_work / 2**30, abs=0.005)
    parts = sum(value for name, value in shown.items() if name not in ("total", "earlier: encoder at work"))
    assert parts == pytest.approx(shown["total"], abs=0.1)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"height_px": 225}, "multiples of 28"),
        ({"width_px": 14}, "multiples of 28"),
        ({"precision": "int8"}, "unknown precision 'int8'"),
        ({"attention": "eager"}, "no estimate for attention 'eager'"),
        ({"precision": "fp32", "frozen_dtype": torch.bfloat16}, "do not go with precision"),
        ({"zero_stage": 4}, "zero_stage=4"),
    ],
)
def test_what_has_no_estimate_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        real(**wrong)
