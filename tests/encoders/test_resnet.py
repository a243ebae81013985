"""Owns: the ResNet equals torchvision's, its weights are whole or refused, and its norms never change."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import resnet50
from torchvision.ops import FrozenBatchNorm2d

from moss_vllm.encoders.resnet import FrozenNorm, ResNet, ResNetEncoder, open_resnet

SMALL = {"stem": 8, "planes": (4, 4, 8, 8), "blocks": (1, 2, 1, 1)}


def pixels(frames=6, height=40, width=48, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, frames, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def weights():
    """torchvision's ResNet-50 with moved norms, and a file of its weights."""
    torch.manual_seed(0)
    model = resnet50()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.4, 0.8)
    return model.eval()


def test_it_is_torchvisions_resnet50(weights, tmp_path):
    save_file(weights.state_dict(), tmp_path / "resnet50.safetensors")
    encoder = open_resnet(weights=tmp_path / "resnet50.safetensors")
    clips = pixels(2, 64, 96, batch=1)
    frames = clips[0] / 255
    frames = (frames - torch.tensor(encoder.mean)[:, None, None]) / torch.tensor(encoder.std)[:, None, None]
    stages = []
    for number in (1, 2, 3, 4):
        weights.get_submodule(f"layer{number}").register_forward_hook(lambda *parts: stages.append(parts[2]))
    with torch.no_grad():
        weights(frames)
        own = []
        pooled = encoder(clips, {n: lambda grid: own.append(grid) or grid for n in (1, 2, 3, 4)})
        torch.testing.assert_close(encoder(frames[None]), pooled)  # floats are taken as normalised
    for expected, grid in zip(stages, own, strict=True):
        torch.testing.assert_close(grid[0].permute(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pooled[0], stages[-1].mean((2, 3)), rtol=1e-4, atol=1e-4)
    assert encoder.widths == (256, 512, 1024, 2048)
    assert encoder.loaded.describe("ResNet") == (
        f"ResNet: all 265 tensors from {tmp_path / 'resnet50.safetensors'}, 55 beside the layers left out"
    )


def test_frozen_norms_are_torchvisions_in_the_type_of_their_input():
    torch.manual_seed(0)
    norm, theirs = FrozenNorm(5), FrozenBatchNorm2d(5)
    for buffer in norm.buffers():
        buffer.uniform_(0.5, 1.5)
    theirs.load_state_dict(norm.state_dict())
    x = torch.randn(2, 5, 3, 4, requires_grad=True)
    torch.testing.assert_close(norm(x), theirs(x))
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    assert not list(norm.parameters())


def test_random_weights_are_the_same_each_time_and_keep_the_size_of_features():
    first, second = open_resnet(weights="random"), open_resnet(weights="random")
    state = second.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in first.state_dict().items())
    assert first.loaded.describe("ResNet") == "ResNet: random weights"
    sizes = []
    with torch.no_grad():
        after = {
            n: lambda grid: sizes.append(grid.square().mean().sqrt().item()) or grid for n in (1, 2, 3, 4)
        }
        first(pixels(1, 64, 64, 1), after)
    assert all(0.3 < size < 6 for size in sizes)


def test_norms_set_by_clips_centre_and_scale_what_these_clips_give():
    encoder = open_resnet(SMALL, weights="random", chunk_frames=2)
    clips, seen = pixels(8, 64, 64), {}
    encoder.set_norms(clips)
    for name, module in encoder.model.named_modules():
        if isinstance(module, FrozenNorm) and name != "bn1":  # its output is changed in place
            module.register_forward_hook(
                lambda m, _, y, name=name: seen.update({name: (y / m.weight[:, None, None])})
            )
    encoder.chunk_frames = None
    with torch.no_grad():
        encoder(clips)
    for name, y in seen.items():
        variance, mean = torch.var_mean(y, (0, 2, 3))
        assert mean.abs().max() < 1e-3 and (variance - 1).abs().max() < 1e-2, name
    assert seen and not any(hooked._forward_pre_hooks for hooked in encoder.modules())


def test_a_single_value_sets_no_norm():
    encoder = open_resnet(SMALL, weights="random")
    encoder.set_norms(pixels(1, 32, 32, 1))  # the last stage has a grid of 1 x 1
    assert all(value.isfinite().all() for value in encoder.state_dict().values())
    assert (
        encoder.model.layer4[0].bn3.running_var.eq(1).all() and not encoder.model.bn1.running_var.eq(1).any()
    )


def test_training_changes_no_norm_and_not_the_first_convolution():
    encoder = open_resnet(SMALL, weights="random").train()
    encoder(pixels()).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == ["model.conv1.weight"]
    assert all(not p.requires_grad for p in encoder.model.conv1.parameters())
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder(pixels())
    assert before and all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())


class MostFrames(TorchDispatchMode):
    """The largest number of frames that a convolution reads."""

    frames = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.convolution:
            self.frames = max(self.frames, args[0].shape[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("train", [False, True])
def test_no_more_frames_than_a_chunk_are_computed_at_once(train):
    encoder = open_resnet(SMALL, weights="random", chunk_frames=5)
    with MostFrames() as most, torch.set_grad_enabled(train):
        features = encoder(pixels(), {2: lambda grid: grid * 2})
        if train:
            features.sum().backward()
    assert most.frames == 5
    with MostFrames() as most, torch.no_grad():
        whole = ResNetEncoder(encoder.model, chunk_frames=None)(pixels(), {2: lambda grid: grid * 2})
    assert most.frames == 12
    torch.testing.assert_close(features, whole)


def test_what_is_refused_names_the_remedy(tmp_path):
    state = ResNet(**SMALL).state_dict()
    del state["bn1.bias"]
    save_file({**state, "layer9.weight": torch.ones(1), "fc.bias": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"1 missing: bn1\.bias; 1 unknown: layer9\.weight\. Is it"):
        open_resnet(SMALL, weights=tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="no pretrained weights of small; pass 'random' or"):
        open_resnet(SMALL, name="small")
    with pytest.raises(ValueError, match="neither 'pretrained', 'random' nor a .safetensors file"):
        open_resnet(weights=tmp_path / "a.pth")
    with pytest.raises(FileNotFoundError):
        open_resnet(weights=tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="chunk_frames=0; give 1 or more"):
        open_resnet(SMALL, weights="random", chunk_frames=0)
    encoder = open_resnet(SMALL, weights="random")
    with pytest.raises(ValueError, match=r"clips of shape \(B, T, 3, H, W\), got \(2, 3, 40, 48\)"):
        encoder(pixels()[:, 0])
    with pytest.raises(ValueError, match="uint8 pixels or normalised floats, got torch.int64"):
        encoder(pixels().long())


def test_without_a_network_pretrained_weights_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(
        "urllib.request.OpenerDirector.open", lambda *_, **__: (_ for _ in ()).throw(OSError("no route"))
    )
    with pytest.raises(OSError, match=r"resnet50-0676ba61\.pth .* pass 'random' to try things out"):
        open_resnet()
