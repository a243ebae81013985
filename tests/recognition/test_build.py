"""Owns: classifiers build by name, run a frozen encoder and a trained ladder, and save what they train."""

import dataclasses

import pytest
import torch
from kept_for_backward import KeptForBackward
from torch import nn

from moss_vllm.core import presets
from moss_vllm.core.presets import MOSS_L, MOSS_S, LadderPreset, build_ladder
from moss_vllm.encoders.image import open_encoder
from moss_vllm.recognition.build import HOSTS, build_classifier, find_preset
from moss_vllm.recognition.hosts.ladder import LadderClassifier
from moss_vllm.training import optim

PRESET = LadderPreset("test_vit", 64, 16, (1, 2, 4), 16, 2, (2,), (3, 3, 3), 8, 4, None)


def small(**options):
    torch.manual_seed(0)
    options = {"variant": PRESET, "classes": 5, "weights": "random", "image_size": 32, **options}
    return build_classifier(**options)


def clip(batch=2, frames=3, height=32, width=32):
    return torch.randn(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "variant, thousands", [("s", 5_601), ("B", 22_233), ("MOSS-M", 24_427), ("moss_l", 82_279)]
)
def test_variants_by_name(variant, thousands):
    with torch.device("meta"):
        model = build_classifier(variant=variant, classes=174, weights="random")
    assert round(sum(p.numel() for p in model.parameters() if p.requires_grad) / 1000) == thousands
    assert model.encoder.d_in == find_preset(variant).d_in
    assert model.encoder_name == find_preset(variant).backbone


def test_presets_are_found_by_name_and_new_ones_too(monkeypatch):
    assert find_preset("s") is find_preset("S") is find_preset("MOSS-S") is MOSS_S
    assert find_preset(PRESET) is PRESET
    monkeypatch.setattr(presets, "MOSS_TINY", PRESET, raising=False)
    assert find_preset("tiny") is PRESET
    with pytest.raises(ValueError, match="unknown variant 'xl'; choose one of s, b, m, l"):
        find_preset("xl")


def test_scores_are_the_ladders_on_the_encoders_layers():
    model, video = small().eval(), clip()
    taps = model.encoder(video.flatten(0, 1))
    expected = model.ladder([tap.view(2, 3, 5, 64) for tap in taps], video)
    assert torch.equal(model(video), expected) and expected.shape == (2, 5)


@pytest.mark.parametrize("frames, height, width", [(1, 32, 32), (5, 32, 32), (3, 16, 80), (2, 64, 48)])
def test_any_frame_count_and_grid(frames, height, width):
    model, video = small().eval(), clip(2, frames, height, width)
    scores = model(video)
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(model(video[1:]), scores[1:])


def test_the_ladder_trains_and_the_encoder_does_not():
    model = small().train()
    assert model.ladder.training and not model.encoder.training and not model.encoder.vit.training
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    groups = optim.parameter_groups(model, model.rate_table(1e-2, 0.15))
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("moss", 1e-2, 0.15),
        ("host", 1e-2, 0.15),
    ]  # biases and norms decay too
    nn.functional.cross_entropy(model(clip()), torch.tensor([0, 1])).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        name for name, _ in model.named_parameters() if name.startswith("ladder.")
    }
    torch.optim.AdamW(groups).step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == set(model.trained_names())
    assert (
        "ladder.stem.batch_norm.running_var" in moved
        and "ladder.moss.order1.fuse.batch_norm.running_mean" in moved
    )


def test_without_a_module_there_is_no_row_for_it():
    model = small(temporal="none")
    groups = optim.parameter_groups(model, model.rate_table(1e-2, 0.15))
    assert {group["name"] for group in groups} == {"host"}
    with pytest.raises(ValueError, match="layer_decay=0.7 scales"):
        model.rate_table(1e-2, layer_decay=0.7)


def test_backward_keeps_of_the_encoder_only_the_layers_it_hands_over():
    model, video = small(), clip(4, 4)
    taps = []
    with KeptForBackward(model, [video]) as kept:
        model.encoder.register_forward_hook(lambda module, frames, out: taps.extend(out))
        model(video)
    with KeptForBackward(model.ladder, [video, *taps]) as of_ladder:
        model.ladder([tap.unflatten(0, (4, 4)) for tap in taps], video)
    assert kept.total_bytes() - of_ladder.total_bytes() <= sum(tap.nbytes for tap in taps)


def test_temporal_modules_their_layers_and_options():
    model = small(temporal_layers=(1, 4), temporal_options={"orders": (1,), "window": (1, 3, 3)})
    assert model.ladder.temporal_names == {1: "moss", 4: "moss2"} and model.ladder.moss.orders == (1,)
    assert model.ladder.moss.order1.window == (1, 3, 3) and model.ladder.moss.order1.in_proj.out_features == 8
    aim = small(host="aim", temporal_layers=(6,))
    assert aim.temporal_names == {6: "moss"} and aim.attached_layers == (6,)
    assert model.attached_layers == (1, 4) and small(temporal="none").attached_layers == ()
    full = small(host="full", temporal="r2plus1d", temporal_options={"d_hidden": 8})
    assert full.moss.out_proj.weight.eq(0).all() and full.moss.in_proj.out_features == 8
    for host in HOSTS:
        with pytest.raises(ValueError, match="'none' has no options, got orders"):
            small(host=host, temporal="none", temporal_options={"orders": (1,)})
        with pytest.raises(ValueError, match="unknown temporal module 'mos'"):
            small(host=host, temporal="mos")


def test_another_encoder():
    model = small(backbone="eva02_tiny_patch14_224", image_size=28)
    assert (model.encoder.d_in, model.encoder.patch_size) == (192, 14)
    assert model(clip(height=28, width=42)).shape == (2, 5)
    with torch.device("meta"):
        model = build_classifier(variant="l", backbone="eva02_clip_l14", classes=48, weights="random")
        assert model.encoder_name == "eva02_large_patch14_clip_224.merged2b"
        with pytest.raises(ValueError, match="layers=.* which has 1 to 12"):
            build_classifier(variant=MOSS_L, backbone="clip_b16", classes=48, weights="random")
    no_class_token = dataclasses.replace(PRESET, backbone="test_vit3", layers=(2, 4))
    assert small(variant=no_class_token)(clip()).shape == (2, 5)


@pytest.mark.parametrize("host", HOSTS)
def test_a_new_head_and_what_the_pixels_should_be(host):
    model = small(host=host).double()
    model.reset_head(9)
    assert model(clip().double()).shape == (2, 9)
    assert model.encoder_name == "test_vit.r160_in1k" and model.mean == model.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("host", HOSTS)
def test_the_miniature_needs_no_download(host):
    torch.manual_seed(0)
    model = build_classifier(host=host, variant="mini", classes=2, image_size=28)
    model(clip(2, 2, 28, 28)).sum().backward()
    assert model.patch_size == 14 and model.attached_layers == (2,)
    assert model.encoder_name == "mini_vit"
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="unknown host 'lora'; choose one of ladder, full, aim, dist"):
        small(host="lora")
    with pytest.raises(ValueError, match="use 'vit_base_patch16_clip_quickgelu_224.openai'"):
        small(backbone="vit_base_patch16_clip_224.openai")
    encoder = open_encoder("test_vit", layers=(1, 2), weights="random", image_size=32)
    with pytest.raises(ValueError, match=r"hands over layers \(1, 2\).* ladder taps layers \(1, 2, 4\)"):
        LadderClassifier(encoder, build_ladder(PRESET, classes=2, image_size=32))
