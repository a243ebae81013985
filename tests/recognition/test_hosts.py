"""Owns: full fine-tuning, AIM and DiST have Table 10d's sizes, start unchanged, and train what they say."""

import pytest
import timm
import torch
from torch import nn

from moss_vllm.encoders.image import embed, open_encoder, open_vit
from moss_vllm.recognition.build import build_classifier
from moss_vllm.recognition.hosts.aim import AIM
from moss_vllm.recognition.hosts.dist import DiST
from moss_vllm.recognition.hosts.full import ClassTokenConv, FullFineTune
from moss_vllm.training import optim

HOSTS = ("full", "aim", "dist")
SMALL = "test_vit"  # 64 wide, 6 layers, patches of 16
MOSS = {"window": (3, 3, 3), "d_hidden": 8, "d_similarity": 4}


def small(host, temporal="moss", layers=(2,), frames=4, **options):
    torch.manual_seed(0)
    options = options or (MOSS if temporal == "moss" else {})
    named = {"temporal": temporal, "temporal_layers": layers, "temporal_options": options}
    return build_classifier(
        host=host, backbone=SMALL, classes=5, weights="random", frames=frames, image_size=32, **named
    )


def clip(batch=2, frames=4, height=32, width=32):
    return torch.randn(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(1))


def shaken(model):
    """The model with all that started as zero moved, so that every path matters."""
    torch.manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(
    "host, temporal, thousands",
    [
        ("full", "none", 86_356),  # Table 10d: 86.4 M
        ("full", "moss", 87_567),  # 87.6
        ("aim", "none", 14_343),  # 14.3
        ("aim", "moss", 15_555),  # 15.6
        ("dist", "none", 19_009),  # 19.0
        ("dist", "moss", 20_221),  # 20.3; 20.304 if order 2 read the FC's output
    ],
)
def test_trained_parameters_of_table_10d(host, temporal, thousands):
    with torch.device("meta"):
        model = build_classifier(host=host, temporal=temporal, classes=174, weights="random")
    assert round(sum(p.numel() for p in model.parameters() if p.requires_grad) / 1000) == thousands


@pytest.mark.parametrize("temporal", ["moss", "r2plus1d", "factorised_attention", "selfy"])
@pytest.mark.parametrize("host", HOSTS)
def test_inserting_a_module_leaves_the_host_bit_identical(host, temporal):
    plain, with_module = small(host, "none").eval(), small(host, temporal, layers=(2, 5)).eval()
    report = with_module.load_state_dict(plain.state_dict(), strict=False)
    assert not report.unexpected_keys
    assert {name.split(".")[0] for name in report.missing_keys} == {"moss", "moss2"}
    assert torch.equal(plain(clip()), with_module(clip()))
    nn.init.ones_(
        with_module.moss.get_parameter("order1.out_proj.bias" if temporal == "moss" else "out_proj.bias")
    )
    assert not torch.equal(plain(clip()), with_module(clip()))


@pytest.mark.parametrize("frames, height, width", [(1, 32, 32), (5, 32, 32), (2, 16, 48), (7, 48, 64)])
@pytest.mark.parametrize("host", HOSTS)
def test_any_frame_count_and_grid(host, frames, height, width):
    model, video = shaken(small(host)).eval(), clip(2, frames, height, width)
    scores = model(video)
    assert scores.shape == (2, 5) and torch.isfinite(scores).all()
    torch.testing.assert_close(model(video[1:]), scores[1:])


@pytest.mark.parametrize("host", HOSTS)
def test_what_the_table_trains_gets_gradients_and_nothing_else_moves(host):
    model = shaken(small(host)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    groups = optim.parameter_groups(model, model.rate_table(1e-2, 0.1))
    assert {group["name"] for group in groups} >= {"moss"}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    nn.functional.cross_entropy(model(clip()), torch.tensor([0, 1])).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trained
    torch.optim.AdamW(groups).step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved - set(model.trained_names()) == set()
    assert any("running_mean" in name for name in moved)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("frames", [2, 4])
def test_bfloat16_autocast_is_near_float32(host, frames):
    model, video = shaken(small(host)).eval(), clip(frames=frames)
    expected = model(video)
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(video)
    assert (scores - expected).abs().max() < 0.1 * expected.abs().max()
    scores.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("host", HOSTS)
def test_a_layer_the_encoder_does_not_have(host):
    with pytest.raises(ValueError, match=r"temporal modules at layers \[7\]"):
        small(host, layers=(2, 7))


@pytest.mark.parametrize("name", ["test_vit3", "eva02_tiny_patch14_224"])
def test_encoders_that_cannot_be_worked_in(name):
    with torch.device("meta"):
        vit = open_vit(name, weights="random", image_size=28)
        for host in (FullFineTune, AIM):
            with pytest.raises(ValueError, match=f"{name}: this host works between .* 'ladder' and 'dist'"):
                host(vit, name=name, classes=2)


def test_class_token_starts_shifted_and_patches_pass():
    conv, tokens = ClassTokenConv(8), torch.randn(2 * 3, 1 + 4, 8)
    before, after = tokens.view(2, 3, 5, 8), conv(tokens, frames=3).view(2, 3, 5, 8)
    assert torch.equal(after[:, :, 1:], before[:, :, 1:])
    first, changed = before[:, :, 0], after[:, :, 0]
    assert torch.equal(changed[:, :-1, :2], first[:, 1:, :2]) and not changed[:, -1, :2].any()
    assert torch.equal(changed[:, 1:, 2:4], first[:, :-1, 2:4]) and not changed[:, 0, 2:4].any()
    assert torch.equal(changed[:, :, 4:], first[:, :, 4:])


def test_class_token_conv_is_a_depthwise_convolution():
    conv, tokens = shaken(ClassTokenConv(8)), torch.randn(2 * 5, 1, 8)
    expected = nn.functional.conv1d(
        tokens.view(2, 5, 8).mT, conv.weight.T.unsqueeze(1), conv.bias, padding=1, groups=8
    )
    torch.testing.assert_close(conv(tokens, frames=5).view(2, 5, 8), expected.mT)


def test_full_fine_tuning_without_its_convolutions_is_timms_encoder():
    model = small("full", "none").eval()
    for conv in model.time_convs.modules():
        if isinstance(conv, ClassTokenConv):
            conv.weight.data = torch.tensor([0.0, 1.0, 0.0])[:, None].expand(3, 64).clone()
    video = clip(height=48)
    expected = model.vit.forward_features(video.flatten(0, 1))[:, 0].unflatten(0, (2, 4)).mean(dim=1)
    torch.testing.assert_close(model(video), model.head(expected))


def test_full_fine_tuning_uses_clips_projection():
    with torch.device("meta"):
        model = build_classifier(host="full", classes=7, weights="random")
        assert model.head.in_features == 512 and model.vit.head.out_features == 512
        assert (
            build_classifier(host="full", backbone="dino_b16", classes=7, weights="random").head.in_features
            == 768
        )


def test_layer_decay_of_full_fine_tuning():
    model = small("full")
    groups = optim.parameter_groups(model, model.rate_table(1.0, 0.05, layer_decay=0.5))
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates.pop("moss") == rates.pop("head") == 1.0
    assert rates.pop("tables") == rates.pop("embedding") == 0.5**7
    assert rates == {f"layer {n}": 0.5 ** (7 - n) for n in range(1, 7)}
    assert {g["weight_decay"] for g in groups if g["name"] == "tables"} == {0.0}
    flat = optim.parameter_groups(model, model.rate_table(1.0, 0.05))
    assert {group["lr"] for group in flat} == {1.0}
    with pytest.raises(ValueError, match="layer_decay=1.5 should be above 0"):
        model.rate_table(1.0, layer_decay=1.5)
    with pytest.raises(ValueError, match="layer_decay=0.7 scales .* that of AIM is frozen"):
        small("aim").rate_table(1.0, layer_decay=0.7)


def test_aim_starts_as_its_encoder_averaged_over_frames():
    model, video = small("aim", "none").eval(), clip(height=48)
    expected = model.vit.forward_features(video.flatten(0, 1))[:, 0].unflatten(0, (2, 4)).mean(dim=1)
    torch.testing.assert_close(model(video), model.head(expected))


def test_aim_attends_over_time_at_each_place_with_the_layers_own_weights():
    model = small("aim", "none").eval()
    adapters, block = model.adapters[0], model.vit.blocks[0]
    tokens = torch.randn(2 * 3, 5, 64)
    with torch.no_grad():
        for adapter in (adapters.time_in, adapters.time_out):
            adapter.up.weight.normal_(std=0.1)
        changed = tokens.clone()
        for place in range(5):
            over_time = block.norm1(tokens).view(2, 3, 5, 64)[:, :, place]
            over_time = adapters.time_out(block.attn(over_time + adapters.time_in(over_time)))
            changed.view(2, 3, 5, 64)[:, :, place] += over_time
        assert not torch.allclose(changed, tokens, atol=1e-2)
        torch.testing.assert_close(adapters(tokens, block, frames=3), block(changed))


def test_aims_temporal_embedding_is_resized_and_trains_without_decay():
    model = small("aim", frames=4)
    model.temporal_embedding.data = torch.arange(4.0)[:, None].expand(4, 64).clone()
    assert model._at(4) is model.temporal_embedding
    assert model._at(8)[:, 0].tolist() == [0.0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]
    groups = optim.parameter_groups(model, model.rate_table(1e-3, 0.05))
    assert [g["weight_decay"] for g in groups if g["name"] == "temporal embedding"] == [0.0]


def test_aim_drops_adapters_in_training_only_and_more_in_later_layers():
    model = small("aim", "none")
    rates = [adapters.drop_path.drop_prob for adapters in model.adapters]
    assert rates[0] == 0 and rates[-1] == 0.2 and rates == sorted(rates)
    shaken(model).eval()
    assert torch.equal(model(clip()), model(clip()))
    assert not torch.equal(model.train()(clip()), model(clip()))


def test_dist_shows_its_encoder_every_second_frame_and_an_odd_last_one():
    model = shaken(small("dist")).eval()
    shown = []
    model.encoder.register_forward_hook(lambda module, frames, taps: shown.append(frames[0]))
    video = clip(1, 5)
    scores = model(video)
    assert torch.equal(shown[0], video[0, ::2])
    torch.testing.assert_close(model(torch.cat([video, video[:, 4:]], dim=1)), scores)
    video[:, 1] += 1  # a frame that only the temporal branch sees
    assert not torch.allclose(model(video), scores, atol=1e-4)


def test_dist_adds_motion_for_the_integration_only():
    model, video = shaken(small("dist", layers=(3,))).eval(), clip()
    read = {}
    for index, layer in enumerate(model.integration_layers):
        layer.register_forward_hook(lambda module, seen, out, index=index: read.update({index: seen[0]}))
    model(video)
    taps = model.encoder(video[:, ::2].flatten(0, 1))
    same = [torch.equal(read[index], tap) for index, tap in enumerate(taps)]
    assert same == [True, True, False, True, True, True]
    assert torch.equal(read[2][:, 0], taps[2][:, 0])  # the class token stays


def test_dist_on_an_encoder_without_class_token_or_with_some_layers_only():
    encoder = open_encoder("test_vit3", layers=(3, 6), weights="random", image_size=32)
    model = DiST(encoder, classes=4, d_out=64, d_time=8)
    assert model(clip()).shape == (2, 4) and len(model.integration_layers) == 2
    with pytest.raises(ValueError, match=r"layers \[4\] would never run"):
        DiST(encoder, classes=4, d_out=64, temporal={4: nn.Identity()})


def test_embedding_is_timms():
    vit = timm.create_model(SMALL, num_classes=0, img_size=32).eval()
    expected = []
    vit.blocks[0].register_forward_pre_hook(lambda module, tokens: expected.append(tokens[0]))
    frames = torch.randn(2, 3, 32, 32)
    vit(frames)
    assert torch.equal(vit.norm_pre(embed(vit, frames)), expected[0])
