"""A ResNet on the frames of clips, with functions of the host after its stages.

    frame -> convolution -> stage 1 -> after[1] -> stage 2 -> after[2] -> ... -> stage 4 -> mean over H and W

A stage sees each frame alone. A function after a stage reads the whole clip.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange, reduce
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import ResNet50_Weights
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from moss_vllm.encoders.opening import LoadedWeights, always_the_same, load_whole, weights_file
from moss_vllm.encoders.pixels import check_clips, normalise_pixels

EXPANSION = 4  # of a bottleneck block: channels that it returns, as a multiple of those inside
RESNET50: Mapping[str, Any] = {"stem": 64, "planes": (64, 128, 256, 512), "blocks": (3, 4, 6, 3)}
# What a file of weights may hold beside: the classifier, counters that frozen norms do not have.
BESIDE_THE_STAGES = re.compile(r"^fc\.|\.num_batches_tracked$")


class FrozenNorm(FrozenBatchNorm2d):
    """BatchNorm that is never updated, computed in the type of its input.

    torchvision's own returns float32 under autocast, and each activation would be kept in both types.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift each channel."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x.mul(scale.to(x)[:, None, None]).add_(shift.to(x)[:, None, None])


class ResNet(nn.Module):
    """The stages of torchvision's ResNet, with its names, for any width; norms are frozen.

    Args:
        stem: channels of the first convolution.
        planes: channels inside the blocks of each stage; a stage returns `EXPANSION` times as many.
        blocks: bottleneck blocks of each stage.
    """

    def __init__(self, *, stem: int, planes: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = FrozenNorm(stem)
        widths = (stem, *(EXPANSION * inside for inside in planes))
        for number, (ends, inside, depth) in enumerate(zip(pairwise(widths), planes, blocks, strict=True), 1):
            self.add_module(f"layer{number}", _stage(*ends, inside, depth, stride=1 if number == 1 else 2))

    def begin(self, frames: Tensor) -> Tensor:
        """What precedes stage 1."""
        with torch.no_grad():
            x = self.bn1(self.conv1(frames)).relu_()
            return nn.functional.max_pool2d(x, 3, stride=2, padding=1)


def _stage(d_in: int, d_out: int, inside: int, depth: int, *, stride: int) -> nn.Sequential:
    shortcut = nn.Sequential(nn.Conv2d(d_in, d_out, 1, stride=stride, bias=False), FrozenNorm(d_out))
    first = Bottleneck(d_in, inside, stride, shortcut, norm_layer=FrozenNorm)
    return nn.Sequential(first, *(Bottleneck(d_out, inside, norm_layer=FrozenNorm) for _ in range(depth - 1)))


class ResNetEncoder(nn.Module):
    """A ResNet on clips. All of it trains but for the first convolution and the norms.

    Its parameters keep their names in torchvision below `model.`.

    Shape:
        (B, T, 3, H', W') uint8 RGB, or pixels normalised with `mean` and `std` -> (B, T, C), averaged over
        the grid; any T, H' and W'.

    Args:
        model: its stages.
        chunk_frames: keep only what enters and leaves the stages between two functions of the host, and
            compute the rest again in backward, so many frames at a time; None keeps everything.
        name: how errors call it.
        loaded: where its weights come from.

    Raises:
        ValueError: in `forward`, a clip of other axes or types, or a stage that it does not have.

    Reference: BasicGEBD (Zheng et al., 2024) freezes these parts.
    """

    mean = (0.485, 0.456, 0.406)  # of pixels in RGB of 0 to 1
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        model: ResNet,
        *,
        chunk_frames: int | None = 10,
        name: str = "resnet50",
        loaded: LoadedWeights | None = None,
    ) -> None:
        super().__init__()
        if chunk_frames is not None and chunk_frames < 1:
            raise ValueError(f"chunk_frames={chunk_frames}; give 1 or more, or None to compute nothing again")
        self.model, self.chunk_frames, self.name = model, chunk_frames, name
        self.loaded = loaded or LoadedWeights("given", 0)
        self.stages = [stage for stage, _ in model.named_children() if stage.startswith("layer")]
        self.widths: tuple[int, ...] = tuple(
            cast(Any, model.get_submodule(stage))[0].conv3.out_channels for stage in self.stages
        )
        model.conv1.requires_grad_(False)

    def width_after(self, stage: int) -> int:
        """Channels after a stage, counted from 1; ValueError for one that it does not have."""
        if not 1 <= stage <= len(self.widths):
            raise ValueError(f"a module after stage {stage}; {self.name} has stages 1 to {len(self.widths)}")
        return self.widths[stage - 1]

    def forward(self, clips: Tensor, after: Mapping[int, Callable[[Tensor], Tensor]] | None = None) -> Tensor:
        """Features of each frame; `after` has functions (B, T, H, W, C) -> the same by stage, from 1."""
        after = after or {}
        for stage in after:
            self.width_after(stage)
        check_clips(clips, self.name)
        maps = rearrange(clips, "b t c h w -> (b t) c h w")
        for start, end in pairwise(sorted({0, *after, len(self.stages)})):
            maps = self._run_stages(maps, start, end)
            if end in after:
                grid = after[end](rearrange(maps, "(b t) c h w -> b t h w c", b=len(clips)))
                maps = rearrange(grid, "b t h w c -> (b t) c h w")
        return reduce(maps, "(b t) c h w -> b t c", "mean", b=len(clips))

    @torch.no_grad()
    def set_norms(self, clips: Tensor) -> None:
        """Set the frozen norms by these clips, one after another, as pictures set those of trained weights.

        For random weights. Norms that do nothing leave what all frames have in common, and features resemble
        each other to 0.99.

        Shape:
            (B, T, 3, H', W'), as in `forward`.
        """
        norms = [module for module in self.model.modules() if isinstance(module, FrozenNorm)]
        hooks = [norm.register_forward_pre_hook(_measure) for norm in norms]
        chunked, self.chunk_frames = self.chunk_frames, None
        try:
            self(clips)
        finally:
            self.chunk_frames = chunked
            for hook in hooks:
                hook.remove()

    def _run_stages(self, frames: Tensor, start: int, end: int) -> Tensor:
        """Stages `start` + 1 to `end`, a chunk of frames at a time."""

        def run(x: Tensor) -> Tensor:
            if start == 0:
                # What follows computes with channels last, so that the host's functions copy nothing.
                x = normalise_pixels(x, self.mean, self.std).contiguous(memory_format=torch.channels_last)
                x = self.model.begin(x)
            for stage in self.stages[start:end]:
                x = self.model.get_submodule(stage)(x)
            return x

        if self.chunk_frames is None:
            return run(frames)
        chunks = frames.split(self.chunk_frames)
        if not torch.is_grad_enabled():
            return torch.cat([run(chunk) for chunk in chunks])
        # The stages draw no random numbers.
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        return torch.cat([cast(Tensor, checkpoint(run, chunk, **options)) for chunk in chunks])


def open_resnet(
    sizes: Mapping[str, Any] = RESNET50,
    *,
    weights: str | Path = "pretrained",
    chunk_frames: int | None = 10,
    name: str = "resnet50",
) -> ResNetEncoder:
    """A ResNet with all its weights.

    Args:
        sizes: keyword arguments of `ResNet`.
        weights: "pretrained" (torchvision's first ones, of ImageNet-1k, for ResNet-50 alone), "random"
            (always the same numbers), or a .safetensors file with torchvision's names.
        chunk_frames: as in `ResNetEncoder`.
        name: as in `ResNetEncoder`.

    Raises:
        ValueError: pretrained weights of other sizes than ResNet-50's, a file that is not .safetensors, or
            weights that are missing, unknown or of another shape.
        OSError: weights that cannot be downloaded or read.
    """
    file = weights_file(weights)
    if weights == "pretrained" and dict(sizes) != dict(RESNET50):
        raise ValueError(f"there are no pretrained weights of {name}; pass 'random' or a .safetensors file")
    model = always_the_same(lambda: start_randomly(ResNet(**sizes)))
    loaded = LoadedWeights("random", 0)
    if weights != "random":
        state = _download() if file is None else load_file(file)
        source = "ImageNet-1k (torchvision's IMAGENET1K_V1)" if file is None else str(file)
        beside = load_whole(model, state, source, lambda key: bool(BESIDE_THE_STAGES.search(key)))
        loaded = LoadedWeights(source, len(model.state_dict()), beside)
    return ResNetEncoder(model, chunk_frames=chunk_frames, name=name, loaded=loaded)


@torch.no_grad()
def start_randomly(model: ResNet) -> ResNet:
    """Random convolutions that keep the size of what passes through all blocks.

    Frozen norms cannot correct it: with 1 as the scale of each, it would triple in every block.
    """
    blocks = [module for module in model.modules() if isinstance(module, Bottleneck)]
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    for block in blocks:
        block.bn3.weight.fill_((2 * len(blocks)) ** -0.5)
    return model


def _measure(norm: nn.Module, inputs: tuple[Tensor]) -> None:
    """Set a norm by what it is about to normalise; by one value a channel, which has no variance, not."""
    if inputs[0].numel() == inputs[0].shape[1]:
        return
    variance, mean = torch.var_mean(inputs[0], (0, 2, 3))
    cast(Tensor, norm.running_mean).copy_(mean)
    cast(Tensor, norm.running_var).copy_(variance)


def _download() -> dict[str, Tensor]:
    """torchvision's weights, from the hub or its local cache."""
    chosen = ResNet50_Weights.IMAGENET1K_V1
    try:
        return cast(
            dict[str, Tensor], chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
        )
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"the weights of resnet50 could not be loaded from {chosen.url} or the local cache "
            f"({type(error).__name__}). Where there is a network, download that file and convert it: "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), new); and pass the new file as "
            "weights; or pass 'random' to try things out"
        ) from error
