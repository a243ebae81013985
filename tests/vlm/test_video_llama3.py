"""Owns: MOSS attaches to an unmodified VideoLLaMA3, which it starts equal to and can be detached from.

Also: a video's features do not depend on what else is in the batch, a frozen encoder keeps no activation, and
gradients reach MOSS, projector and LoRA and nothing else.
"""

import copy

import pytest
import torch
from kept_for_backward import KeptForBackward
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Qwen2Config,
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
)

from moss_vllm.data.rows import Turn
from moss_vllm.training.optim import parameter_groups
from moss_vllm.vlm.adapter import attach_lora
from moss_vllm.vlm.base import load_base
from moss_vllm.vlm.families import VIDEO_LLAMA3
from moss_vllm.vlm.hosts.by_grid import blocks_to_grid, grid_to_blocks
from moss_vllm.vlm.loss import AnswerLoss
from moss_vllm.vlm.video_llama3.chat import collate, encode
from moss_vllm.vlm.video_llama3.model import (
    MossVideoLlama3ForConditionalGeneration,
    MossVideoLlama3VisionModel,
    moss_config,
)


@pytest.fixture
def base(tiny_base):
    return load_base(tiny_base)


@pytest.fixture
def attached(tiny_base, moss):
    torch.manual_seed(1)
    return load_base(tiny_base, moss=moss)


def wake(model):
    """Give MOSS something to say, its BatchNorms statistics of their own, and LoRA a second factor."""
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "moss." in name and name.endswith(("out_proj.weight", "input_fc.weight")):
            nn.init.normal_(parameter, std=0.3)
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


@pytest.fixture
def batch(processor, noise_clip):
    def make(*clips, compress=False, answer="The red circle moves left."):
        clips = clips or (noise_clip(0), noise_clip(1, frames=3, height=84))
        turn = Turn("What moves?", answer)
        examples = [encode(processor, clip, [turn], compress=compress) for clip in clips]
        return collate(examples, pad_id=processor.tokenizer.pad_token_id)

    return make


def patches(*sizes, seed=0):
    """Random patches of videos of (t, h, w, merge)."""
    torch.manual_seed(seed)
    grids = torch.tensor([size[:3] for size in sizes])
    pixels = torch.randn(int(grids.prod(1).sum()), 3 * 14 * 14)
    return {"pixel_values": pixels, "grid_thw": grids, "merge_sizes": torch.tensor([s[3] for s in sizes])}


# ---- attaching and detaching


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("compress", [False, True])
def test_starts_bit_identical_to_the_base(base, attached, batch, noise_clip, mode, compress):
    still = noise_clip(2)
    still.frames[2:] = still.frames[1]  # two frames for compression to drop
    inputs = batch(noise_clip(0), still, compress=compress)
    assert bool(inputs["video_compression_mask"].all()) is not compress
    for model in (base, attached):
        model.train(mode == "train")
    with torch.no_grad():
        assert torch.equal(attached(**inputs).logits, base(**inputs).logits)
    # MOSS did run: in train mode its BatchNorms have seen the batch.
    seen = {int(m.num_batches_tracked) for m in attached.modules() if isinstance(m, nn.BatchNorm2d)}
    assert seen == {1 if mode == "train" else 0}


def test_only_moss_is_missing_from_a_base_checkpoint(tiny_base, base, moss):
    config = moss_config(AutoConfig.from_pretrained(tiny_base), **moss)
    model, info = MossVideoLlama3ForConditionalGeneration.from_pretrained(
        tiny_base, config=config, output_loading_info=True
    )
    new = {name for name in model.state_dict() if name.startswith("model.vision_model.moss.")}
    assert len(new) > 40
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert {name for name in new if not name.endswith(buffers)} <= set(info["missing_keys"]) <= new
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    kept = {name: value for name, value in model.state_dict().items() if name not in new}
    assert list(kept) == list(base.state_dict())
    assert all(torch.equal(kept[name], value) for name, value in base.state_dict().items())


def test_only_the_last_linears_start_at_zero(attached):
    module = attached.model.vision_model.moss
    zero = {name for name, p in module.named_parameters() if p.dim() > 1 and not p.any()}
    assert zero == {"order1.out_proj.weight", "order2.out_proj.weight", "input_fc.weight"}


def test_save_auto_load_and_generate_round_trip(attached, batch, tmp_path):
    wake(attached).eval().save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert type(again) is MossVideoLlama3ForConditionalGeneration
    before, after = attached.config.vision_config, again.config.vision_config
    assert [after.moss_after_layer, list(after.moss_orders), list(after.moss_window)] == [
        6,
        [1, 2],
        [3, 3, 3],
    ]
    assert before.moss_d_fuse == after.moss_d_fuse == 12
    inputs = batch()
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, attached(**inputs).logits)
    prompt = batch(answer=None)
    prompt.pop("labels")
    said = [model.generate(**prompt, max_new_tokens=5, do_sample=False) for model in (attached, again)]
    assert torch.equal(*said) and said[0].shape[1] > prompt["input_ids"].shape[1]


def test_detaching_gives_the_base_back_after_training(tiny_base, base, attached, batch):
    inputs = batch()
    peft = attach_lora(attached, rank=4, alpha=4, dropout=0.0)
    groups = parameter_groups(peft, VIDEO_LLAMA3.rates)
    optimizer = torch.optim.AdamW([{**group, "lr": 0.01} for group in groups])
    for _ in range(2):
        AnswerLoss(peft.train())(**inputs).backward()
        optimizer.step()
        optimizer.zero_grad()
    for model in (peft, base):
        model.eval()
    with torch.no_grad():
        expected = base(**inputs).logits
        assert (peft(**inputs).logits - expected).abs().max() > 0.1
        with peft.disable_adapter():
            assert torch.equal(peft(**inputs).logits, expected)
        assert torch.equal(load_base(tiny_base).eval()(**inputs).logits, expected)


# ---- the grid


@pytest.mark.parametrize("merge", [1, 2])
def test_blocks_and_grid_are_inverse(merge):
    t, h, w = 3, 4, 6
    grid = torch.randn(t, h, w, 5)
    blocks = grid_to_blocks(grid, merge)
    assert torch.equal(blocks_to_grid(blocks, t, h, w, merge), grid)
    assert torch.equal(grid_to_blocks(blocks_to_grid(blocks, t, h, w, merge), merge), blocks)
    # The first merge * merge tokens are the top left block, row by row.
    assert torch.equal(blocks[: merge**2], grid[0, :merge, :merge].reshape(-1, 5))
    # The next block is its right neighbour.
    assert torch.equal(blocks[merge**2 : 2 * merge**2], grid[0, :merge, merge : 2 * merge].reshape(-1, 5))


def test_videos_in_one_batch_equal_each_alone(attached):
    sizes = [(3, 4, 6, 2), (2, 4, 4, 2), (1, 4, 4, 1), (3, 4, 6, 2), (4, 3, 5, 1), (1, 4, 6, 2)]
    tower = wake(attached).eval().model.vision_model
    together = patches(*sizes)
    counts = together["grid_thw"].prod(1).tolist()
    with torch.no_grad():
        whole = tower(**together).last_hidden_state
        alone = [
            tower(pixels, together["grid_thw"][i : i + 1], together["merge_sizes"][i : i + 1])
            for i, pixels in enumerate(together["pixel_values"].split(counts))
        ]
    parts = [one.last_hidden_state for one in alone]
    assert [len(part) for part in parts] == [18, 8, 16, 18, 60, 6]
    assert (parts[0] - parts[3]).abs().max() > 0.1
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-4, atol=1e-4)


def test_one_frame_gets_no_moss_and_leaves_zero_gradients(base, attached):
    tower, plain = wake(attached).model.vision_model, base.model.vision_model
    images = patches((1, 4, 6, 2), (1, 4, 4, 1))
    with torch.no_grad():
        assert torch.equal(tower(**images).last_hidden_state, plain(**images).last_hidden_state)
    tower(**images).last_hidden_state.sum().backward()
    gradients = {name: parameter.grad for name, parameter in tower.moss.named_parameters()}
    assert all(gradient is not None and not gradient.any() for gradient in gradients.values())
    # The control: with a second frame they are not zero.
    with torch.no_grad():
        clip = patches((2, 4, 6, 2))
        moved = tower(**clip).last_hidden_state - plain(**clip).last_hidden_state
    assert moved.abs().max() > 0.1


def test_compression_drops_tokens_after_moss(attached, batch, noise_clip):
    still = noise_clip(2)
    still.frames[2:] = still.frames[1]
    model = wake(attached).eval()
    whole, compressed = batch(still, compress=False), batch(still, compress=True)
    mask = compressed["video_compression_mask"]
    # 4 tokens a frame; frames 2 and 3 repeat frame 1, and each frame keeps one token at least.
    assert mask.tolist() == [True] * 8 + [True, False, False, False] * 2
    shown = [int((b["input_ids"] == model.config.video_token_id).sum()) for b in (whole, compressed)]
    assert shown == [16, 10]
    seen = []
    model.model.projector.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    with torch.no_grad():
        model(**whole)
        model(**compressed)
    torch.testing.assert_close(seen[0], seen[1])  # MOSS saw all four frames in both


# ---- what is trained, what is kept


def test_gradients_reach_moss_projector_and_lora_and_nothing_else(attached, batch):
    peft = attach_lora(attached, rank=4, alpha=4, dropout=0.0)
    parameter_groups(peft, VIDEO_LLAMA3.rates)
    AnswerLoss(wake(peft).train())(**batch()).backward()
    reached = {name for name, parameter in peft.named_parameters() if parameter.grad is not None}
    expected = {
        name
        for name, _ in peft.named_parameters()
        if ".moss.modules_to_save." in name or ".projector.modules_to_save." in name or ".lora_" in name
    }
    assert reached == expected and len([n for n in reached if ".lora_" in n]) == 4 * 7 * 2
    silent = [n for n, p in peft.named_parameters() if n in reached and not p.grad.any()]
    assert silent == []
    assert not any("vision_model.encoder" in name for name in reached)


def bytes_for_backward(tiny_base, moss, *, layers, frozen):
    config = moss_config(AutoConfig.from_pretrained(tiny_base), **moss).vision_config
    config.num_hidden_layers = layers
    torch.manual_seed(0)
    tower = MossVideoLlama3VisionModel(config).train()
    for name, parameter in tower.named_parameters():
        parameter.requires_grad_(name.startswith("moss.") or not frozen)
    inputs = patches((4, 6, 6, 2))
    inputs["pixel_values"].requires_grad_()  # as peft makes inputs for gradient checkpointing
    with KeptForBackward(tower, []) as kept:
        assert tower(**inputs).last_hidden_state.requires_grad
    return kept.total_bytes()


def test_a_frozen_encoder_keeps_no_activation(tiny_base, moss):
    seven, fourteen = (bytes_for_backward(tiny_base, moss, layers=n, frozen=True) for n in (7, 14))
    assert seven == fourteen > 0
    trained_7, trained_14 = (bytes_for_backward(tiny_base, moss, layers=n, frozen=False) for n in (7, 14))
    tokens, width = 4 * 6 * 6, 96
    assert trained_14 - trained_7 > 7 * 4 * tokens * width * 4  # at least four float32 activations a layer
    assert trained_7 - seven > 7 * 4 * tokens * width * 4


# ---- wrong settings


@pytest.mark.parametrize("after_layer", [1, 6, 7])
def test_moss_reads_the_layer_it_is_said_to(tiny_base, moss, after_layer):
    model = load_base(tiny_base, moss={**moss, "moss_after_layer": after_layer})
    tower, seen = model.model.vision_model, []
    layer = tower.encoder.layers[after_layer - 1]  # "after the 6th layer" counts from 1
    for module in (layer, tower.moss):
        module.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        tower(**patches((2, 4, 6, 2)))
    (_, written), (read, _) = seen
    assert torch.equal(read, blocks_to_grid(written.squeeze(0), 2, 4, 6, 2).flatten(0, 2))


def test_another_kind_of_model_and_an_unknown_setting_are_named():
    with pytest.raises(ValueError, match=r"unknown MOSS settings \['moss_depth'\]; known are .*moss_window"):
        moss_config(VideoLlama3Config(), moss_depth=3)
    with pytest.raises(ValueError, match="'video_llama_3', this checkpoint is 'qwen2'"):
        moss_config(Qwen2Config())


def test_the_base_config_is_left_alone(base, moss):
    before = copy.deepcopy(base.config.to_dict())
    changed = moss_config(base.config, **moss)
    assert base.config.to_dict() == before and isinstance(base, VideoLlama3ForConditionalGeneration)
    assert changed.text_config.to_dict() == base.config.text_config.to_dict()
    assert changed.video_token_id == base.config.video_token_id
