"""Owns: VideoMAE on long clips is transformers' in each chunk, frozen, and opens with all weights or not."""

import re

import pytest
import torch
from golden_adatad import assert_near, read_golden
from kept_for_backward import KeptForBackward
from safetensors.torch import load_file, save_file
from timm.layers import DropPath
from torch import nn
from transformers import (
    BertConfig,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
)

from moss_vllm.core.detection_presets import DETECTORS
from moss_vllm.encoders.video import AfterLayer, VideoEncoder, sinusoid_table
from moss_vllm.encoders.videomae import MINI_VIDEOMAE, VIDEO_ENCODERS, open_video_encoder

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
SIZES |= {"image_size": 32, "layer_norm_eps": 1e-6}


def small(**options):
    torch.manual_seed(0)
    return VideoEncoder(VideoMAEModel(VideoMAEConfig(**SIZES)), native_px=32, **options)


def clip(batch=2, frames=32, height=32, width=32):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, frames, 3, height, width), dtype=torch.uint8, generator=generator)


def normalised(pixels):
    mean, std = (torch.tensor(value)[:, None, None] for value in (VideoEncoder.mean, VideoEncoder.std))
    return (pixels / 255 - mean) / std


# ---- what it computes


def test_golden_position_tables():
    golden, settings = read_golden("backbone")
    for name, height, width in (("native", 32, 32), ("resized", settings["height_px"], settings["width_px"])):
        table = small().positions(height // 16, width // 16)
        assert_near(table.flatten(0, 2)[None], golden[f"{name}.position_table"])


def test_each_chunk_is_what_transformers_computes():
    encoder = small().eval()
    pixels = clip(2, 48)
    features = encoder(pixels)
    chunks = normalised(pixels).unflatten(1, (3, 16)).flatten(0, 1)
    # Dropouts of rate 0 stand in place of drop-path, so that nothing of ours is left in it.
    with torch.no_grad():
        tokens = VideoMAEModel(VideoMAEConfig(**SIZES)).eval()
        tokens.load_state_dict(encoder.model.state_dict())
        tokens = tokens(chunks).last_hidden_state
    expected = tokens.view(2, 3 * 8, 4, 32).mean(dim=2).transpose(1, 2)
    assert_near(features, expected, 1e-5)
    assert_near(encoder(normalised(pixels)), expected, 1e-5)
    torch.testing.assert_close(encoder(pixels[1:, 16:32])[0], features[1, :, 8:16])


@pytest.mark.parametrize("height, width", [(16, 16), (48, 32), (16, 80)])
def test_any_size_of_whole_patches_and_any_length(height, width):
    encoder, pixels = small().eval(), clip(1, 16, height, width)
    seen = []
    features = encoder(pixels, {2: [AfterLayer(lambda grid: seen.append(grid.shape) or grid, [])]}, length=24)
    assert seen == [(1, 8, height // 16, width // 16, 32)] and features.shape == (1, 32, 24)
    expected = nn.functional.interpolate(encoder(pixels), size=24, mode="linear")
    assert torch.equal(features, expected)


def test_what_comes_after_a_layer_sees_the_whole_clip_in_order():
    encoder, order = small().eval(), []
    whole = encoder.embed(clip(1, 48))

    def add(name, value):
        return AfterLayer(lambda grid: order.append((name, grid.shape[1])) or grid + value, [])

    changed = encoder(clip(1, 48), {1: [add("a", 1), add("b", 2)], 3: [add("c", 0)]})
    assert whole.shape == (1, 24, 2, 2, 32) and order == [("a", 24), ("b", 24), ("c", 24)]
    assert_near(changed, encoder(clip(1, 48), {1: [add("d", 3)]}), 1e-6)
    assert (changed - encoder(clip(1, 48))).abs().max() > 0.1


# ---- frozen


def test_it_is_frozen_and_stays_in_evaluation_mode_but_for_drop_path():
    encoder = small(drop_path=0.4)
    outer = nn.Sequential(encoder).train()
    modes = {name: module.training for name, module in outer.named_modules() if name}
    dropped = {name for name, module in outer.named_modules() if isinstance(module, DropPath)}
    assert {name for name, training in modes.items() if training} == dropped and len(dropped) == 2 * 3
    rates = [module.drop_prob for module in encoder.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0, 0, 0.2, 0.2, 0.4, 0.4])
    assert not torch.equal(outer(clip(8)), outer(clip(8)))
    assert not any(module.training for module in outer.eval().modules())
    assert torch.equal(outer(clip()), outer(clip()))
    assert not any(tensor.requires_grad for tensor in [*encoder.parameters(), outer(clip())])
    never = small(drop_path=0.0)
    assert torch.equal(never.train()(clip()), never.eval()(clip()))


def test_checkpointing_gives_equal_gradients_and_moves_statistics_once():
    gradients, runs, statistics = {}, {}, {}
    for checkpointing in (False, True):
        encoder = small(drop_path=0.5, checkpointing=checkpointing).train()
        torch.manual_seed(2)
        again, normed = nn.Linear(32, 32), nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32))
        counts = runs[checkpointing] = {"again": 0, "normed": 0}
        for name, module in (("again", again), ("normed", normed)):
            module.register_forward_pre_hook(  # recomputing stops before the end of what it needs no more
                lambda *_, name=name, counts=counts: counts.update({name: counts[name] + 1})
            )

        def norm(grid, normed=normed):
            return normed(grid.flatten(0, -2)).view(grid.shape)

        after = {1: [AfterLayer(norm, [normed]), AfterLayer(again, [again])], 2: [AfterLayer(again, [again])]}
        torch.manual_seed(3)  # of drop-path
        encoder(clip(), after).square().sum().backward()
        gradients[checkpointing] = [p.grad for p in (*again.parameters(), *normed.parameters())]
        statistics[checkpointing] = list(normed.buffers())
        assert all(gradient.any() for gradient in gradients[checkpointing])
    assert all(torch.equal(*pair) for pair in zip(*gradients.values(), strict=True))
    assert all(torch.equal(*pair) for pair in zip(*statistics.values(), strict=True))
    assert runs == {False: {"again": 2, "normed": 1}, True: {"again": 4, "normed": 2}}


def test_checkpointing_keeps_the_input_of_each_layer():
    kept = {}
    for checkpointing in (False, True):
        encoder, module = small(checkpointing=checkpointing).train(), nn.Linear(32, 32)
        pixels = clip()
        with KeptForBackward(encoder, [pixels]) as memory:
            encoder(pixels, {layer: [AfterLayer(module, [module])] for layer in (1, 2, 3)})
        kept[checkpointing] = memory.total_bytes()
    assert kept[True] == 3 * encoder.embed(pixels).nbytes < kept[False] / 6


@pytest.mark.parametrize(
    "clips, message",
    [
        (clip(1, 24), "24 frames is not whole chunks of 16; repeat its last frame up to 32 frames"),
        (clip(1, 16, 40), "40 x 32 pixels are not whole patches of 16; resize or crop"),
        (clip(1, 16).transpose(1, 2), r"shape \(B, T, 3, H, W\), got \(1, 3, 16, 32, 32\); move or add"),
        (clip(1, 16)[0], "move or add the axis"),
        (clip(1, 16).int(), "uint8 pixels or normalised floats, got torch.int32; convert"),
    ],
)
def test_clips_that_do_not_fit(clips, message):
    with pytest.raises(ValueError, match=message):
        small()(clips)


def test_a_layer_it_does_not_have():
    with pytest.raises(ValueError, match=r"modules after layers \[0, 4\]; videomae has 1 to 3"):
        small()(clip(), {0: [], 4: []})


# ---- opening


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A classifier's folder, with names of a norm and a classifier that the encoder has no need of."""
    torch.manual_seed(5)
    config = VideoMAEConfig(**{**SIZES, "layer_norm_eps": 1e-12})
    return save(VideoMAEForVideoClassification(config), tmp_path_factory.mktemp("videomae"))


def save(model, folder):
    """As on the hub, where the biases have older names; transformers' own saving takes seconds."""
    state = {
        re.sub(r"(query|value)\.bias$", old_name, key): value for key, value in model.state_dict().items()
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    return folder


def old_name(part):
    return f"{part[1][0]}_bias"


def test_a_folder_of_a_classifier_or_of_pre_training(saved, tmp_path, capfd):
    encoder = open_video_encoder(saved)
    assert capfd.readouterr() == ("", "")
    state = load_file(saved / "model.safetensors")
    assert encoder.loaded.tensors == len(encoder.state_dict()) == 2 + 3 * 15
    beside = ("classifier.bias", "classifier.weight", "fc_norm.bias", "fc_norm.weight")
    assert encoder.loaded.left_out == beside
    assert encoder.loaded.describe() == (
        f"video encoder: all 47 tensors from {saved}, 4 beside the layers left out"
    )
    layer = encoder.model.encoder.layer[2]
    assert torch.equal(
        layer.attention.attention.query.bias, state["videomae.encoder.layer.2.attention.attention.q_bias"]
    )
    assert layer.layernorm_after.eps == 1e-6 and encoder.position_table.shape == (8, 2, 2, 32)
    torch.manual_seed(6)
    sizes = {"decoder_hidden_size": 8, "decoder_num_attention_heads": 1, "decoder_intermediate_size": 8}
    mae = VideoMAEForPreTraining(VideoMAEConfig(**SIZES, **sizes, use_mean_pooling=False))
    save(mae, tmp_path)
    weights = {name: value for name, value in mae.videomae.state_dict().items() if "layernorm." not in name}
    opened = open_video_encoder(tmp_path).model.state_dict()
    assert all(torch.equal(opened[name], value) for name, value in weights.items())
    assert opened.keys() == weights.keys()


def test_a_file_with_mmactions_names(tmp_path, saved):
    golden, _ = read_golden("backbone")
    weights = {
        "backbone." + name.removeprefix("weights."): value
        for name, value in golden.items()
        if name.startswith("weights.") and ".adapter." not in name
    }
    weights |= {"cls_head.fc_cls.weight": torch.ones(3, 32), "backbone.fc_norm.weight": torch.ones(32)}
    for part in range(3):  # the folder's MLP is 64 wide
        for name, rows in ((f"{part}.mlp.layers.0.0.weight", 64), (f"{part}.mlp.layers.0.0.bias", 64)):
            weights[f"backbone.blocks.{name}"] = weights[f"backbone.blocks.{name}"][:rows].clone()
        name = f"backbone.blocks.{part}.mlp.layers.1.weight"
        weights[name] = weights[name][:, :64].clone()
    save_file(weights, tmp_path / "vit.safetensors")
    encoder = open_video_encoder(saved, weights=tmp_path / "vit.safetensors")
    attention = encoder.model.encoder.layer[1].attention.attention
    qkv = golden["weights.blocks.1.attn.qkv.weight"]
    for rows, part in zip(qkv.chunk(3), (attention.query, attention.key, attention.value), strict=True):
        assert torch.equal(part.weight, rows)
    assert torch.equal(attention.value.bias, golden["weights.blocks.1.attn.v_bias"])
    assert encoder.loaded.tensors == 47
    assert encoder.loaded.left_out == ("cls_head.fc_cls.weight", "fc_norm.weight", "pos_embed")


def test_partial_weights_are_refused_by_name(saved, tmp_path):
    state = load_file(saved / "model.safetensors")
    del state["videomae.encoder.layer.1.output.dense.bias"]
    state["videomae.encoder.layer.3.output.dense.bias"] = torch.ones(32)
    state["videomae.encoder.layer.0.output.dense.bias"] = torch.ones(3)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    for options in ({}, {"weights": tmp_path / "model.safetensors"}):
        with pytest.raises(ValueError) as error:
            open_video_encoder(tmp_path, **options)
        for part in (
            "1 missing: encoder.layer.1.output.dense.bias",
            "1 unknown: videomae.encoder.layer.3.output.dense.bias",
            "1 of another shape: encoder.layer.0.output.dense.bias (3,) for (32,)",
        ):
            assert part in str(error.value)


def test_random_weights_are_always_the_same_and_leave_the_generator_alone(saved):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = open_video_encoder(saved, weights="random")
    assert torch.equal(torch.rand(3), expected)
    again = open_video_encoder(saved, weights="random").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.state_dict().items())
    assert first.loaded.describe() == "video encoder: random weights"


@pytest.mark.parametrize("variant, millions", [("s", 21.9), ("b", 86.2), ("l", 303.9)])
def test_short_names_have_the_presets_sizes(variant, millions):
    preset = DETECTORS[variant]
    with torch.device("meta"):
        encoder = open_video_encoder(preset.encoder, weights="random")
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e6, 1) == millions
    assert (encoder.d_in, encoder.depth) == (preset.d_in, 24 if variant == "l" else 12)
    assert encoder.position_table.shape == (8, 14, 14, preset.d_in) and encoder.patch_size == 16


def test_the_table_of_224_pixels_is_transformers():
    config = VideoMAEConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    table = VideoMAEModel(config).embeddings.position_embeddings
    torch.testing.assert_close(sinusoid_table(8 * 14 * 14, 8), table[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "name, error, message",
    [
        (
            "videomae_h",
            ValueError,
            "no video encoder; choose one of videomae_s, .*, videomae_l, videomae_mini, a hub",
        ),
        ("videomae_mini", ValueError, "videomae_mini was never trained; pass weights 'random' or a file"),
        (
            "videomae_b",
            OSError,
            "opened from MCG-NJU/videomae-base-finetuned-kinetics .* hf download",
        ),
        ("some/where", OSError, "'some/where' could not be opened .* or pass weights 'random'"),
    ],
)
def test_names_that_cannot_be_opened(name, error, message):
    with pytest.raises(error, match=message):
        open_video_encoder(name)


def test_other_models_and_pickles(tmp_path, saved):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a model of type 'bert'; give a VideoMAE"):
        open_video_encoder(tmp_path)
    with pytest.raises(ValueError, match="vit.pth: neither 'pretrained', 'random' nor a .safetensors file"):
        open_video_encoder(saved, weights="vit.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="could not be opened from .*empty"):
        open_video_encoder(tmp_path / "empty", weights="random")
    assert {*VIDEO_ENCODERS, MINI_VIDEOMAE} == {preset.encoder for preset in DETECTORS.values()}


def test_the_miniature_sees_the_pixels_of_a_patch_more_than_its_place():
    encoder = open_video_encoder("videomae_mini", weights="random")
    assert (encoder.d_in, encoder.depth, encoder.patch_size, encoder.chunk_frames) == (64, 2, 16, 16)
    assert encoder.position_table.shape == (8, 4, 4, DETECTORS["mini"].d_in)
    tokens = encoder.embed(clip(1, 16, 64, 64))
    assert (tokens - encoder.position_table).std() > 3 * encoder.position_table.std()


def test_one_frame_of_each_chunk_is_all_that_the_control_sees():
    encoder, pixels = small(one_frame=True).eval(), clip(1, 48)
    middle = torch.arange(48) // 16 * 16 + 8
    expected = small().eval()(pixels[:, middle])
    assert_near(encoder(pixels), expected, 1e-6)
    other = clip(1, 48).roll(1, dims=1)
    other[:, 8::16] = pixels[:, 8::16]
    assert torch.equal(encoder(other), encoder(pixels))
