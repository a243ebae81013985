"""Owns: the memory estimate of the models that `attach` takes is that of real training steps.

Measured on the CPU: bytes of all tensors alive, after the forward pass and at the most.
"""

import re

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.utils import ModulesToSaveWrapper
from step_bytes import measure

from moss_vllm.runtime.quiet import quiet
from moss_vllm.vlm.attach import attach, attached, find_host, trained_modules
from moss_vllm.vlm.conversation import IGNORED
from moss_vllm.vlm.hosts.by_frame import INTERNVL, SMOLVLM
from moss_vllm.vlm.hosts.by_grid import QWEN2_VL, QWEN3_VL, QWEN25_VL
from moss_vllm.vlm.hosts.memory import TOWERS, estimate_memory_of, frame_sides

HOSTS = (QWEN2_VL, QWEN25_VL, QWEN3_VL, SMOLVLM)
TOWERS_OF = {model_type: TOWERS[host.title] for host in HOSTS for model_type in host.model_types}
VIDEO = 2  # the placeholder's token
KINDS = {"qwen2_vl": (84, 140), "qwen2_5_vl": (84, 140), "qwen3_vl": (96, 128), "smolvlm": (88, 88)}
USUAL = {
    "width": 192,
    "inner": 768,
    "layers": 4,
    "heads": 6,
    "key_heads": 2,
    "vocabulary": 512,
    "vision": 64,
    "rank": 8,
    "frames": 8,
    "text": 20,
    "clips": 1,
    "moss": True,
    "half": False,
    "recompute": False,
    "frozen": torch.float32,
}
HALF_FROZEN = {"half": True, "frozen": torch.bfloat16}
WIDE_TOWER = {"moss": False, "layers": 2, "width": 32, "inner": 64, "heads": 2, "key_heads": 1}
WIDE_TOWER |= {"vocabulary": 64, "text": 4, "vision": 128, "frames": 64}
CASES = {
    "float32": {},
    "half": {"half": True},
    "half, frozen half": HALF_FROZEN,
    "recomputed": {**HALF_FROZEN, "recompute": True},
    "without MOSS": {"moss": False, "half": True},
    "padded": {"clips": 3},
    "padded, recomputed": {"clips": 3, "half": True, "recompute": True},
    "tower at work": WIDE_TOWER,
    "tower at work, half": {**WIDE_TOWER, **HALF_FROZEN},
}


def make_config(kind, size):
    """Small sizes of a kind of model, its head as wide as real ones are to the rest."""
    width, head, vision = size["width"], size["width"] // size["heads"], size["vision"]
    text = {
        "hidden_size": width,
        "intermediate_size": size["inner"],
        "num_hidden_layers": size["layers"],
        "num_attention_heads": size["heads"],
        "num_key_value_heads": size["key_heads"],
        "vocab_size": size["vocabulary"],
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    grid = {"hidden_size": vision, "intermediate_size": 2 * vision, "depth": 7, "num_heads": 4}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [head // 4, head // 8, head // 8]}
    tied = {"tie_word_embeddings": True}
    if kind == "smolvlm":
        tower = {"hidden_size": vision, "intermediate_size": 2 * vision, "num_hidden_layers": 7}
        tower |= {
            "num_attention_heads": 4,
            "patch_size": 14,
            "image_size": 88,
        }  # 6 patches, and 4 pixels more
        text |= {"model_type": "llama", "pad_token_id": 0}
        settings = {"image_token_id": VIDEO, "scale_factor": 3, **tied}
        return transformers.SmolVLMConfig(text_config=text, vision_config=tower, **settings)
    tokens = {"image_token_id": 1, "video_token_id": VIDEO, **tied}
    text["rope_parameters"] = rope
    if kind == "qwen2_vl":
        tower = {"embed_dim": vision, "hidden_size": width, "mlp_ratio": 2, "depth": 7, "num_heads": 4}
        return transformers.Qwen2VLConfig(text_config=text, vision_config=tower, **tokens)
    if kind == "qwen2_5_vl":
        tower = {**grid, "out_hidden_size": width, "fullatt_block_indexes": [6]}
        return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=tower, **tokens)
    tower = {**grid, "out_hidden_size": width, "num_position_embeddings": 64}
    text |= {"head_dim": head, "rope_parameters": {**rope, "mrope_interleaved": True}}
    tower["deepstack_visual_indexes"] = [3, 5]
    return transformers.Qwen3VLConfig(text_config=text, vision_config=tower, **tokens)


def build(kind, size):
    """A model with LoRA, and with MOSS if its size says so."""
    config = make_config(kind, size)
    model = transformers.AutoModelForImageTextToText.from_config(config).to(size["frozen"])
    host = find_host(model)
    whole = [name for name, _ in model.named_modules() if re.fullmatch(host.projector, name)]
    if size["moss"]:
        whole = trained_modules(attach(model, window=(3, 5, 5), d_hidden=32, d_similarity=32, d_fuse=64))
    targets = r".*\.(language_model|text_model)\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
    lora = LoraConfig(r=size["rank"], target_modules=targets, modules_to_save=whole)
    with quiet():  # peft 0.21 reads a name that transformers 5.23 calls deprecated
        adapted = get_peft_model(model, lora)
    for module in adapted.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.modules_to_save.float()
    if size["recompute"]:
        language_model = model.get_decoder()
        enable = getattr(language_model, "activation_checkpointing_enable", None)
        (enable or language_model.gradient_checkpointing_enable)({"use_reentrant": False})
    return adapted.train()


def batch(kind, model, size):
    """Clips of noise with the tokens that they get; of several, all but the first are padded."""
    config = model.get_base_model().config
    host, tower, (height, width) = find_host(model.get_base_model()), TOWERS_OF[kind](config), KINDS[kind]
    patch, per_step, clips = config.vision_config.patch_size, host.frames_per_step(config), size["clips"]
    rows, columns, steps = height // patch, width // patch, size["frames"] // per_step
    frame = [5] * tower.tokens_per_step + [VIDEO] * (rows * columns // tower.merge**2)
    ids = torch.tensor([frame * steps + [7] * size["text"]] * clips)
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[:, : -size["text"]] = IGNORED
    mask[1:, -3:] = 0
    inputs = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    if kind == "smolvlm":
        return inputs | {"pixel_values": torch.randn(clips, size["frames"], 3, height, width)}
    patches = clips * steps * rows * columns
    inputs["pixel_values_videos"] = torch.randn(patches, 3 * per_step * patch**2)
    inputs["video_grid_thw"] = torch.tensor([[steps, rows, columns]] * clips)
    return inputs | {"mm_token_type_ids": (ids == VIDEO).long() * 2}


def estimate(kind, model, size):
    base = model.get_base_model()
    if size["moss"]:
        for name, value in attached(model)[1].moss_sizes.items():
            setattr(base.config.vision_config, f"moss_{name}", value)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    height, width = KINDS[kind]
    return estimate_memory_of(find_host(base))(
        base.config,
        lora_rank=size["rank"],
        frames=size["frames"],
        height_px=height,
        width_px=width,
        text_tokens=size["text"],
        batch_size=size["clips"],
        precision="bf16" if size["half"] else "fp32",
        checkpoint_llm=size["recompute"],
        trained_parameters=trained,
        frozen_parameters=sum(p.numel() for p in model.parameters()) - trained,
        frozen_dtype=size["frozen"],
        fused_stss=False,  # on the CPU it is not
    )


def only_on_a_gpu(kind, model, size):
    """Bytes of LayerNorms' inputs in float32: autocast leaves them in half precision on a CPU."""
    config = model.get_base_model().config
    tower = TOWERS_OF[kind](config)
    if not (size["half"] and tower.layer_norm):
        return 0
    height, width = (side // config.vision_config.patch_size for side in KINDS[kind])
    steps = size["frames"] // find_host(model.get_base_model()).frames_per_step(config)
    return 2 * tower.mergers * size["clips"] * steps * height * width * tower.width


USUALLY = ("half, frozen half", "recomputed", "padded, recomputed")  # the others are slow


@pytest.mark.parametrize(
    "case", [case if case in USUALLY else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
@pytest.mark.parametrize("kind", KINDS)
def test_estimate_is_what_a_step_takes(kind, case):
    size = USUAL | CASES[case]
    in_two_formats = size["half"] and size["frozen"] == torch.float32
    if kind == "smolvlm" and in_two_formats and transformers.__version__.startswith("5.17."):
        pytest.skip("its SmolVLM puts tokens of one number format only among words")
    torch.manual_seed(0)
    model = build(kind, size)
    kept, peak = measure(model, batch(kind, model, size), half=size["half"])
    found = estimate(kind, model, size)
    log_softmax = 4 * size["clips"] * size["text"] * size["vocabulary"]
    expected = found.kept + log_softmax - only_on_a_gpu(kind, model, size)
    assert expected / kept == pytest.approx(1, abs=0.01)
    assert 1 <= found.total / peak <= 1.13  # gradients are counted that come later
    if case.startswith("tower"):
        assert found.encoder_at_work > found.kept + found.logits + found.layer_at_work


def test_frames_are_as_the_model_takes_them():
    size = USUAL | {"layers": 1}
    expected = {"qwen2_vl": (224, 392), "qwen2_5_vl": (224, 392), "qwen3_vl": (224, 384), "smolvlm": (88, 88)}
    for host, (kind, frame) in zip(HOSTS, expected.items(), strict=True):
        config = make_config(kind, size)
        assert frame_sides(host, config, 224) == frame
        if kind == "qwen3_vl":
            assert frame_sides(host, config, 20) == (32, 64)


def of_one_step(kind, host, **changes):
    config = make_config(kind, USUAL)
    height, width = KINDS[kind]
    arguments = {
        "lora_rank": 8,
        "frames": 7,
        "height_px": height,
        "width_px": width,
        "text_tokens": 20,
        "batch_size": 1,
        "precision": "fp32",
        "checkpoint_llm": False,
        "trained_parameters": 100,
        "frozen_parameters": 1000,
    }
    return estimate_memory_of(host)(config, **arguments | changes)


def test_an_odd_frame_is_a_step_of_its_own():
    assert of_one_step("qwen2_5_vl", QWEN25_VL) == of_one_step("qwen2_5_vl", QWEN25_VL, frames=8)
    assert of_one_step("smolvlm", SMOLVLM).kept < of_one_step("smolvlm", SMOLVLM, frames=8).kept


@pytest.mark.parametrize(
    ("kind", "host", "wrong", "message"),
    [
        ("qwen2_5_vl", QWEN25_VL, {"width_px": 96}, "84 x 96 .* multiples of 28, such as 224 x 392"),
        ("qwen3_vl", QWEN3_VL, {"height_px": 84}, "multiples of 32"),
        ("smolvlm", SMOLVLM, {"width_px": 176}, "88 x 176 .* squares of 88; give 88 x 88"),
        ("qwen3_vl", QWEN3_VL, {"attention": "eager"}, "no estimate for attention 'eager'"),
    ],
)
def test_frames_that_do_not_fit_are_refused(kind, host, wrong, message):
    with pytest.raises(ValueError, match=message):
        of_one_step(kind, host, **wrong)


def test_other_kinds_have_no_estimate():
    with pytest.raises(ValueError, match="training step of InternVL3 was not counted; that of Qwen2-VL, Q"):
        estimate_memory_of(INTERNVL)
