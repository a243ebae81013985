"""Owns: image encoders are timm's, frozen whatever happens around them, and only fitting weights get in."""

import pickle

import pytest
import timm
import torch
from kept_for_backward import KeptForBackward
from safetensors.torch import save_file
from timm.layers.activations import QuickGELU
from torch import nn

from moss_vllm.encoders import image, opening
from moss_vllm.encoders.image import add_to_patches, full_name, open_encoder, open_vit, to_grid
from moss_vllm.training.alive import AliveBytes

SMALL = "test_vit"  # 64 wide, 6 layers, patches of 16


def test_a_hub_out_of_reach_is_said_at_once(monkeypatch, tmp_path):
    """timm asks for two files, six times each: 54 seconds."""
    asked = []

    class Unreachable(Exception):
        """As of an HTTP client; no OSError."""

    def ask(url):
        asked.append(url)
        raise Unreachable("name resolution")

    monkeypatch.setattr(opening, "get_hf_file_metadata", ask)
    monkeypatch.setattr(opening, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm was let wait"))
    with pytest.raises(
        OSError, match=r"could not be loaded from huggingface.co/timm/vit_.*\(ConnectionError\)"
    ):
        image.open_encoder("clip_b16", layers=[2])
    assert len(asked) == 1 and asked[0].endswith("model.safetensors")
    monkeypatch.setattr(opening, "try_to_load_from_cache", lambda *_, **__: str(tmp_path))  # no need to ask
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: "of the cache")
    assert image._create("vit_base_patch16_224.mae", pretrained=True, image_size=224) == "of the cache"
    assert len(asked) == 1


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with all that timm's small model holds, its classifier too; and what it holds."""
    torch.manual_seed(3)
    state = timm.create_model(SMALL, img_size=32).state_dict()
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(state, path)
    return path, state


def by_hooks(name, frames, layers, **options):
    """What a forward hook on each layer of timm's own model sees, with the weights of `open_encoder`."""
    model = opening.always_the_same(lambda: timm.create_model(name, num_classes=0, **options)).eval()
    seen = {}
    for layer in layers:
        model.blocks[layer - 1].register_forward_hook(lambda *run, layer=layer: seen.update({layer: run[2]}))
    with torch.no_grad():
        model(frames)
    return [seen[layer] for layer in layers], model


@pytest.mark.parametrize("name", [SMALL, "eva02_tiny_patch14_224"])
def test_taps_are_what_hooks_and_forward_intermediates_see(name):
    encoder = open_encoder(name, layers=(2, 3, 5), weights="random", image_size=56 if "eva" in name else 64)
    side = 4 * encoder.patch_size
    frames = torch.randn(2, 3, side, side)
    taps = encoder(frames)
    hooked, model = by_hooks(full_name(name), frames, (2, 3, 5), img_size=side)
    found = model.forward_intermediates(
        frames, indices=[1, 2, 4], return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    for tap, hook, (patches, prefix) in zip(taps, hooked, found, strict=True):
        assert tap.shape == (2, 17, encoder.d_in)
        assert torch.equal(tap, hook) and torch.equal(tap, torch.cat([prefix, patches], dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clips_activation_makes_one_tensor_of_the_same_bits(dtype):
    encoder = image.ImageEncoder(timm.create_model(SMALL, act_layer=QuickGELU), layers=[2, 6], name=SMALL)
    ours = encoder.vit.blocks[0].mlp.act
    assert not any(type(module) is QuickGELU for module in encoder.modules())
    x = torch.randn(4, 50).to(dtype)
    expected = QuickGELU()(x)
    with AliveBytes(x) as alive, torch.no_grad():
        assert torch.equal(ours(x), expected)
    assert alive.peak == x.nbytes


def test_without_a_class_token_the_mean_of_the_patches_stands_there_and_registers_are_left_out():
    frames = torch.randn(2, 3, 32, 32)
    encoder = open_encoder("test_vit3", layers=(4,), weights="random", image_size=32)  # a register only
    (tap,), (hooked,) = encoder(frames), by_hooks("test_vit3", frames, (4,), img_size=32)[0]
    assert hooked.shape[1] == 1 + 4
    assert torch.equal(tap[:, 1:], hooked[:, 1:])
    torch.testing.assert_close(tap[:, 0], hooked[:, 1:].mean(dim=1))


@pytest.mark.parametrize("height, width", [(32, 32), (48, 16), (16, 80)])
def test_any_size_of_whole_patches(height, width):
    encoder = open_encoder(SMALL, layers=(1, 6), weights="random", image_size=64)
    frames = torch.randn(1, 3, height, width)
    hooked, _ = by_hooks(SMALL, frames, (1, 6), img_size=64, dynamic_img_size=True)
    assert all(torch.equal(a, b) for a, b in zip(encoder(frames), hooked, strict=True))
    with pytest.raises(ValueError, match="48 x 40 pixels are not whole patches of 16"):
        encoder(torch.randn(1, 3, 48, 40))


def test_nothing_trains_keeps_a_graph_or_leaves_evaluation_mode():
    encoder = open_encoder(SMALL, layers=(2, 4), weights="random", image_size=32)
    assert len(encoder.vit.blocks) == 4 and encoder.depth == 6  # what no one reads is not there
    outer = nn.Sequential(encoder).train()
    assert outer.training and not any(module.training for module in encoder.modules())
    frames = torch.randn(2, 3, 32, 32, requires_grad=True)
    with KeptForBackward(outer, [frames]) as kept:
        taps = outer(frames)
    assert kept.total_bytes() == 0
    assert not any(tensor.requires_grad for tensor in [*taps, *encoder.parameters()])


def test_what_it_says_of_itself():
    encoder = open_encoder("vit_tiny_patch16_224.augreg_in21k", layers=None, weights="random", image_size=32)
    assert (encoder.d_in, encoder.depth, encoder.patch_size) == (192, 12, 16)
    assert encoder.layers == tuple(range(1, 13)) and encoder.mean == (0.5, 0.5, 0.5) == encoder.std
    assert encoder.name == "vit_tiny_patch16_224.augreg_in21k"
    with torch.device("meta"):
        clip = open_encoder("clip_l14", layers=(8,), weights="random")
    assert (clip.d_in, clip.depth, clip.patch_size) == (1024, 24, 14)
    assert clip.mean == (0.48145466, 0.4578275, 0.40821073)  # OpenAI's, not ImageNet's


def test_random_weights_are_always_the_same_and_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    for name in (SMALL, "mini_vit"):
        torch.manual_seed(5)
        first = open_encoder(name, layers=(2,), weights="random", image_size=32).state_dict()
        assert torch.equal(torch.rand(3), expected)
        again = open_encoder(name, layers=(2,), weights="random", image_size=32).state_dict()
        assert all(torch.equal(first[key], again[key]) for key in first)
    other_size = open_encoder("mini_vit", layers=(2,), image_size=224).state_dict()
    assert all(torch.equal(first[key], other_size[key]) for key in first)


def test_short_names_are_timms_and_a_missing_tag_is_filled_in():
    for name in image.BACKBONES.values():
        assert name in timm.list_pretrained() and full_name(name) == name
    assert full_name("vit_base_patch16_clip_quickgelu_224").count(".") == 1
    for name in ("vit_base_patch16_clip_224.laion2b", "vit_base_patch16_clip_224.openai_ft_in1k"):
        assert full_name(name) == name  # trained with plain GELU, and not refused


@pytest.mark.parametrize(
    "name, message",
    [
        ("vit_base_patch16_clip_224.openai", "use 'vit_base_patch16_clip_quickgelu_224.openai'"),
        ("vit_large_patch14_clip_224.openai", "use 'vit_large_patch14_clip_quickgelu_224.openai'"),
        ("clip_b32", "no vision transformer.* one of clip_b16"),
        ("vit_base_patch16_224.clip", "choose one of .*vit_base_patch16_224.mae"),
    ],
)
def test_names_that_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        full_name(name)
    with pytest.raises(ValueError, match=message):
        open_encoder(name, layers=(1,), weights="random")


@pytest.mark.parametrize("layers", [(), (0, 2), (2, 2), (3, 2), (2, 7)])
def test_layers_it_does_not_have(layers):
    with pytest.raises(ValueError, match="increasing layers of test_vit.r160_in1k, which has 1 to 6"):
        open_encoder(SMALL, layers=layers, weights="random", image_size=32)


def test_a_file_of_weights_also_under_open_clips_names(weights, tmp_path):
    path, state = weights
    frames = torch.randn(2, 3, 32, 32)
    model = timm.create_model(SMALL, img_size=32).eval()
    model.load_state_dict(state)
    expected = model.forward_intermediates(frames, indices=[3], output_fmt="NLC", intermediates_only=True)
    towers = {f"visual.trunk.{key}": value for key, value in state.items()} | {"text.x": torch.ones(2)}
    save_file(towers, tmp_path / "clip.safetensors")
    for file in (path, str(path), tmp_path / "clip.safetensors"):
        (tap,) = open_encoder(SMALL, layers=(4,), weights=file, image_size=32)(frames)
        torch.testing.assert_close(tap[:, 1:], expected[0])
    vit = open_vit(SMALL, weights=path, image_size=32)
    assert len(vit.blocks) == 6 and torch.equal(vit.norm.weight, state["norm.weight"])


def test_a_position_table_for_another_size_is_resized(weights):
    path, state = weights
    encoder = open_encoder(SMALL, layers=(1,), weights=path, image_size=64)
    assert state["pos_embed"].shape[1] == 1 + 4 and encoder.vit.pos_embed.shape[1] == 1 + 16


def test_weights_that_do_not_fit_are_named(weights, tmp_path):
    _, state = weights
    changed = {key: value for key, value in state.items() if key not in ("cls_token", "blocks.1.norm1.bias")}
    changed |= {"blocks.0.attn.extra": torch.ones(2), "blocks.0.mlp.fc1.bias": torch.ones(3)}
    save_file(changed, tmp_path / "changed.safetensors")
    with pytest.raises(ValueError) as error:
        open_encoder(SMALL, layers=(2,), weights=tmp_path / "changed.safetensors", image_size=32)
    for part in (
        "2 missing: blocks.1.norm1.bias, cls_token",
        "1 unknown: blocks.0.attn.extra",
        "1 of another shape: blocks.0.mlp.fc1.bias (3,) for (192,)",
        "changed.safetensors",
    ):
        assert part in str(error.value)
    # Layers that no one reads need not be there.
    save_file({k: v for k, v in state.items() if "blocks.5" not in k}, tmp_path / "fewer.safetensors")
    open_encoder(SMALL, layers=(2,), weights=tmp_path / "fewer.safetensors", image_size=32)


def test_a_pickle_is_not_read(tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"model.pt: neither .*save_file\(torch.load"):
        open_encoder(SMALL, layers=(1,), weights=path)


def test_weights_that_cannot_be_downloaded_name_their_place_and_what_to_do():
    with pytest.raises(OSError, match=r"huggingface.co/timm/test_vit.r160_in1k or the local.*'random'"):
        open_encoder(SMALL, layers=(1,), image_size=32)


def test_clips_projection_is_kept_and_other_classifiers_are_not():
    with torch.device("meta"):
        assert open_vit("clip_b16", weights="random").head.out_features == 512
        assert isinstance(
            open_vit("vit_base_patch16_clip_224.openai_ft_in1k", weights="random").head, nn.Identity
        )
    assert isinstance(open_vit(SMALL, weights="random", image_size=32).head, nn.Identity)


def test_grid_and_back():
    tokens = torch.randn(2 * 3, 1 + 4 * 5, 7)
    grid = to_grid(tokens, frames=3, grid=(4, 5))
    assert grid.shape == (2, 3, 4, 5, 7)
    assert torch.equal(grid[1, 2, 3, 1], tokens[1 * 3 + 2, 1 + 3 * 5 + 1])
    added = add_to_patches(tokens, grid)
    assert torch.equal(added[:, :1], tokens[:, :1]) and torch.equal(added[:, 1:], 2 * tokens[:, 1:])
