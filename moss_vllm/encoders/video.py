"""A frozen VideoMAE on long clips, with functions of the host after its layers.

    clip -> patches -> layer 1 -> after[1] -> layer 2 -> after[2] -> ... -> layer 12 -> mean over H and W

A layer's attention stays inside a chunk of 16 frames: the chunks lie on the batch axis. A function after a
layer reads the whole clip, its chunks joined again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from timm.layers import DropPath
from torch import Tensor, nn
from transformers import VideoMAEModel

from moss_vllm.core.recompute import recomputed
from moss_vllm.encoders.opening import LoadedWeights
from moss_vllm.encoders.pixels import check_clips, normalise_pixels


class AfterLayer(NamedTuple):
    """A function (B, T/2, H, W, C) -> the same that runs after a layer, and the modules that it calls.

    Activation checkpointing runs it a second time, in the mode of the first; running statistics move once.
    """

    run: Callable[[Tensor], Tensor]
    layers: Sequence[nn.Module]


class VideoEncoder(nn.Module):
    """A frozen VideoMAE on clips of many chunks.

    It stays in evaluation mode when the model around it trains, but for drop-path: AdaTAD's layers, though
    frozen, are dropped in training. Its parameters keep their names in transformers below `model.`.

    Shape:
        (B, T, 3, H', W') uint8 RGB, or pixels normalised with `mean` and `std` -> (B, C, T/2), or (B, C,
        `length`). T is a multiple of `chunk_frames`, H' and W' are multiples of `patch_size`.

    Args:
        model: its `embeddings` and `encoder` are used; no norm after the last layer.
        native_px: side of the frames that its position table is laid out for; for others it is resized.
        drop_path: rate at the last layer in training; it rises linearly from 0 at the first layer.
        checkpointing: keep only each layer's input for backward and compute the rest again.
        one_frame: show one frame of each chunk instead of all: a control, which tells what needs no motion.
        name: how errors call it.
        loaded: where its weights come from.

    Raises:
        ValueError: in `forward`, a clip of other sizes or types.

    Reference: VideoMAE (Tong et al., 2022) as AdaTAD (Liu et al., 2024c) uses it.
    """

    mean = (0.485, 0.456, 0.406)  # of pixels in RGB of 0 to 1
    std = (0.229, 0.224, 0.225)

    def __init__(
        self,
        model: VideoMAEModel,
        *,
        native_px: int,
        drop_path: float = 0.1,
        checkpointing: bool = True,
        one_frame: bool = False,
        name: str = "videomae",
        loaded: LoadedWeights | None = None,
    ) -> None:
        super().__init__()
        config: Any = model.config
        self.d_in: int = config.hidden_size
        self.depth: int = config.num_hidden_layers
        self.patch_size: int = config.patch_size
        self.chunk_frames: int = config.num_frames
        self.chunk_steps: int = config.num_frames // config.tubelet_size
        self.checkpointing, self.one_frame, self.name = checkpointing, one_frame, name
        self.loaded = loaded or LoadedWeights("given", 0)
        self.model = model
        layers: Any = model.encoder.layer
        for index, layer in enumerate(layers):
            # transformers has a dropout, of rate 0, before each of a layer's two sums.
            rate = drop_path * index / max(1, self.depth - 1)
            layer.attention.output.dropout, layer.output.dropout = DropPath(rate), DropPath(rate)
        side = native_px // self.patch_size
        table = sinusoid_table(self.chunk_steps * side * side, self.d_in)
        self.position_table: Tensor
        self.register_buffer(
            "position_table", table.view(self.chunk_steps, side, side, self.d_in), persistent=False
        )
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "VideoEncoder":
        """Only drop-path follows `mode`."""
        super().train(False)
        for module in self.modules():
            if isinstance(module, DropPath):
                module.train(mode)
        return self

    def forward(
        self,
        clips: Tensor,
        after: Mapping[int, Sequence[AfterLayer]] | None = None,
        length: int | None = None,
    ) -> Tensor:
        """Features over time, averaged over the grid; `after` has what runs after a layer, counted from 1."""
        after = after or {}
        if outside := [layer for layer in after if not 1 <= layer <= self.depth]:
            raise ValueError(f"modules after layers {sorted(outside)}; {self.name} has 1 to {self.depth}")
        grid = self.embed(clips)
        for layer, block in enumerate(self.model.encoder.layer, start=1):
            steps = [AfterLayer(_in_chunks(block, self.chunk_steps), [block]), *after.get(layer, ())]
            if self.checkpointing:
                layers = [one for step in steps for one in step.layers]
                grid = recomputed(_chain, grid, steps, layers=layers)
            else:
                grid = _chain(grid, steps)
        features = reduce(grid, "b t h w c -> b c t", "mean")
        if length is None or length == features.shape[2]:
            return features
        return F.interpolate(features, size=length, mode="linear", align_corners=False)

    @torch.no_grad()
    def embed(self, clips: Tensor) -> Tensor:
        """Patches with their positions, before the first layer.

        Shape:
            (B, T, 3, H', W') -> (B, T/2, H, W, C).
        """
        self._check(clips)
        clips = normalise_pixels(clips, self.mean, self.std)
        chunks = rearrange(clips, "b (n f) c h w -> (b n) c f h w", f=self.chunk_frames)
        if self.one_frame:
            chunks = chunks[:, :, [self.chunk_frames // 2]].expand_as(chunks)
        patches = self.model.embeddings.patch_embeddings.projection(chunks)
        grid = rearrange(patches, "(b n) c t h w -> b (n t) h w c", b=len(clips))
        table = self.positions(grid.shape[2], grid.shape[3])
        return cast(Tensor, grid + repeat(table, "t h w c -> (n t) h w c", n=grid.shape[1] // len(table)))

    def positions(self, height: int, width: int) -> Tensor:
        """The position table of one chunk; each step's square is resized where the grid is another.

        Shape:
            (T, H, W, C).
        """
        if (height, width) == self.position_table.shape[1:3]:
            return self.position_table
        steps = rearrange(self.position_table, "t h w c -> t c h w")
        resized = F.interpolate(steps, size=(height, width), mode="bicubic", align_corners=False)
        return rearrange(resized, "t c h w -> t h w c")

    def _check(self, clips: Tensor) -> None:
        check_clips(clips, self.name)
        frames, _, height, width = clips.shape[1:]
        if frames % self.chunk_frames:
            raise ValueError(
                f"a clip of {frames} frames is not whole chunks of {self.chunk_frames}; repeat its last "
                f"frame up to {-(-frames // self.chunk_frames) * self.chunk_frames} frames"
            )
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"frames of {height} x {width} pixels are not whole patches of {self.patch_size}; resize or "
                "crop them to multiples of it"
            )


def sinusoid_table(positions: int, channels: int) -> Tensor:
    """VideoMAE's fixed position table: even channels are sines, odd ones cosines, of falling frequency.

    Shape:
        (positions, channels), float32.
    """
    channel = torch.arange(channels, dtype=torch.float64)
    rate = 10_000 ** (-2 * (channel // 2) / channels)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] * rate
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


def _in_chunks(block: nn.Module, steps: int) -> Callable[[Tensor], Tensor]:
    """The layer on a whole clip's grid (B, T/2, H, W, C), chunk by chunk."""

    def run(grid: Tensor) -> Tensor:
        tokens = rearrange(grid, "b (n t) h w c -> (b n) (t h w) c", t=steps)
        return cast(Tensor, block(tokens).view(grid.shape))

    return run


def _chain(grid: Tensor, steps: Sequence[AfterLayer]) -> Tensor:
    for step in steps:
        grid = step.run(grid)
    return grid
