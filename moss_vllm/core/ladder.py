"""The ladder side-tuning classifier: a temporal encoder beside a frozen image encoder (Sec. 3.4, Fig. 4).

    frames -> image encoder, frozen:    layer 2 ----> layer 4 ------> ... layer 12        taps, F^i (Eq. 6)
                                           | FC          | FC + MOSS         | FC         G^i (Eq. 7)
    clip -> Tokeniser ----------------> block0 -----> block1 -------> ... block5          Y^i (Eq. 8-9)
                                                                             | norm, mean -> head

The image encoder itself is not part of the ladder: it runs without a graph and hands over its layers' tokens.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from moss_vllm.core.layers import TimeConv3d
from moss_vllm.core.lean import norm_linear
from moss_vllm.core.lean_ladder import norm_attention, norm_mlp, norm_time_conv
from moss_vllm.core.recompute import recomputed


class Tokeniser(nn.Module):
    """A clip to one token per patch, each made of its own frame and the two beside it.

    Shape:
        (B, T, 3, H', W') normalised pixels -> (B, T, H, W, d_out).

    Reference: Sec. 3.4, "tokenizes the input video X to video embeddings Y"; the sizes are Side4Video's.
    """

    def __init__(self, d_out: int, *, patch_size: int) -> None:
        super().__init__()
        self.conv = TimeConv3d(3, d_out, patch_size)
        self.batch_norm = nn.BatchNorm3d(d_out)

    def forward(self, video: Tensor) -> Tensor:
        """Tokenise."""
        tokens = self.conv(rearrange(video, "b t c h w -> b c t h w"))
        return rearrange(self.batch_norm(tokens), "b c t h w -> b t h w c")


class TemporalBlock(nn.Module):
    """One T-Block: the FC on a tapped layer, temporal convolution, spatial attention, MLP.

    Shape:
        y and motion (B, T, H, W, d_out), tap (B, T, 1 + H*W, d_in) class token first, position
        (H*W, d_out) -> (B, T, H, W, d_out).

    Reference: Eq. 7-9; Side4Video (Yao et al., 2023).
    """

    def __init__(self, d_in: int, d_out: int, *, heads: int) -> None:
        super().__init__()
        self.adapter_norm = nn.LayerNorm(d_in)
        self.adapter = nn.Linear(d_in, d_out)
        self.conv_norm = nn.BatchNorm3d(d_out)
        self.conv_in = nn.Conv3d(d_out, d_out, 1)
        self.conv_time = nn.Conv3d(d_out, d_out, (3, 1, 1), padding=(1, 0, 0), groups=d_out)
        self.conv_out = nn.Conv3d(d_out, d_out, 1)
        self.attn_norm = nn.LayerNorm(d_out)
        self.attn = nn.MultiheadAttention(d_out, heads, batch_first=True)
        self.mlp_norm = nn.BatchNorm3d(d_out)
        mlp_in, mlp_out = nn.Linear(d_out, 4 * d_out), nn.Linear(4 * d_out, d_out)
        self.mlp = nn.Sequential(OrderedDict({"in": mlp_in, "gelu": nn.GELU(), "out": mlp_out}))
        # CLIP's rule for a transformer of 12 layers; Side4Video keeps it whatever the ladder's depth. The
        # adapter keeps torch's default, as in the authors' models.
        into_residual = (2 * 12 * d_out) ** -0.5
        nn.init.normal_(self.attn.in_proj_weight, std=d_out**-0.5)
        nn.init.normal_(self.attn.out_proj.weight, std=into_residual)
        nn.init.normal_(mlp_in.weight, std=(2 * d_out) ** -0.5)
        nn.init.normal_(mlp_out.weight, std=into_residual)

    def forward(self, y: Tensor, tap: Tensor, position: Tensor, motion: Tensor | None = None) -> Tensor:
        """Y^i from Y^(i-1) and F^i."""
        adapted = norm_linear(tap, self.adapter_norm, self.adapter)
        # Eq. 8 is a plain sum; the authors' models average Y and FC(F), and add MOSS on top.
        y = 0.5 * (adapted[:, :, 1:].unflatten(2, y.shape[2:4]) + y)
        y = y if motion is None else y + motion
        y = y + norm_time_conv(y, self.conv_norm, self.conv_in, self.conv_time, self.conv_out)
        y = y + self._attend(y, shift_in_time(adapted[:, :, :1]), position)
        return y + norm_mlp(y, self.mlp_norm, self.mlp)

    def _attend(self, y: Tensor, class_token: Tensor, position: Tensor) -> Tensor:
        """Attention within a frame: its patches look at each other and at the shifted class token."""
        patches = rearrange(y, "b t h w c -> b t (h w) c") + position
        tokens = rearrange(torch.cat([class_token, patches], dim=2), "b t p c -> (b t) p c")
        return norm_attention(tokens, self.attn_norm, self.attn).view_as(y)


class Ladder(nn.Module):
    """Class scores of a clip from the tapped layers of a frozen image encoder. The whole ladder is trained.

    Layers are counted from 1. `block0` reads the first of `layers`, and so on. A temporal module (MOSS in the
    paper) maps (B, T, H, W, d_in) -> (B, T, H, W, d_out) without a residual and reads the patch tokens of its
    layer: `moss` is the one of the first such layer, `moss2` of the second (Table 10b).

    Args:
        d_in: channels of the image encoder.
        d_out: width of the ladder.
        heads: attention heads; the paper's are 64 wide.
        layers: the image encoder's layers that it taps.
        classes: scores of the head.
        patch_size: side of the image encoder's patches in pixels.
        grid: (H, W) for which the position table is learned; for another grid it is resized.
        temporal: the modules by layer; without any, the ladder is the baseline, Side4Video.

    Raises:
        ValueError: `layers` is empty or not increasing, or a temporal module sits at a layer that is not
            tapped; in `forward`, the taps do not fit the clip.

    Reference: Sec. 3.4; Table 6 for the sizes.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        heads: int,
        layers: Sequence[int],
        classes: int,
        patch_size: int,
        grid: tuple[int, int],
        temporal: Mapping[int, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        temporal = temporal or {}
        if not layers or sorted(set(layers)) != list(layers) or layers[0] < 1:
            raise ValueError(f"layers={layers} should be increasing layers counted from 1, such as (2, 4, 6)")
        if untapped := set(temporal) - set(layers):
            raise ValueError(
                f"temporal modules at layers {sorted(untapped)} would never run: the ladder taps layers "
                f"{tuple(layers)}"
            )
        self.layers = tuple(layers)
        self.checkpoint_blocks = False  # keep what enters each block, and compute the block again in backward
        self.grid = grid
        self.stem = Tokeniser(d_out, patch_size=patch_size)
        self.position_embedding = nn.Parameter(torch.empty(grid[0] * grid[1], d_out))
        nn.init.normal_(self.position_embedding, std=0.01)
        for index in range(len(layers)):
            self.add_module(f"block{index}", TemporalBlock(d_in, d_out, heads=heads))
        self.temporal_names = name_modules(temporal)
        for layer, name in self.temporal_names.items():
            self.add_module(name, temporal[layer])
        self.norm = nn.BatchNorm3d(d_out)
        self.head = nn.Linear(d_out, classes)

    def forward(self, taps: Sequence[Tensor] | Tensor, video: Tensor) -> Tensor:
        """Score each class.

        Shape:
            taps: one (B, T, 1 + H*W, d_in) for each of `layers`, class token first, as a list or stacked.
            video: (B, T, 3, H', W') pixels as the image encoder gets them.
            returns: (B, classes).
        """
        return cast(Tensor, self.head(self.pool(self.encode(taps, self.stem(video)))))

    def encode(self, taps: Sequence[Tensor] | Tensor, tokens: Tensor) -> Tensor:
        """The temporal encoder on a tokenised clip: Y after the last block (Eq. 8).

        Shape:
            taps as in `forward`, tokens (B, T, H, W, d_out) -> (B, T, H, W, d_out).
        """
        self._check(taps, tokens)
        grid = tokens.shape[2:4]
        position = self._position(grid[0], grid[1])
        y = tokens
        for index, (layer, tap) in enumerate(zip(self.layers, taps, strict=True)):
            module = self._modules.get(self.temporal_names.get(layer, ""))
            motion = None if module is None else module(tap[:, :, 1:].unflatten(2, grid))
            block, inputs = self.get_submodule(f"block{index}"), (y, tap, position, motion)
            y = recomputed(block, *inputs, layers=[block]) if self.checkpoint_blocks else block(*inputs)
        return y

    def pool(self, y: Tensor) -> Tensor:
        """Normalise and average over the clip.

        Shape:
            (B, T, H, W, d_out) -> (B, d_out).
        """
        return reduce(self.norm(rearrange(y, "b t h w c -> b c t h w")), "b c t h w -> b c", "mean")

    def _position(self, height: int, width: int) -> Tensor:
        if (height, width) == self.grid:
            return self.position_embedding
        table = rearrange(self.position_embedding, "(h w) c -> 1 c h w", h=self.grid[0])
        resized = F.interpolate(table, size=(height, width), mode="bicubic")
        return rearrange(resized, "1 c h w -> (h w) c")

    def _check(self, taps: Sequence[Tensor] | Tensor, tokens: Tensor) -> None:
        if len(taps) != len(self.layers):
            raise ValueError(
                f"got {len(taps)} taps; the ladder reads layers {self.layers}, one tap of each in this order"
            )
        batch, frames, height, width = tokens.shape[:4]
        expected = (batch, frames, 1 + height * width)
        for layer, tap in zip(self.layers, taps, strict=True):
            if tap.dim() != 4 or tap.shape[:3] != expected:
                raise ValueError(
                    f"the tap of layer {layer} has shape {tuple(tap.shape)}; this clip of {frames} frames of "
                    f"{height} x {width} patches needs {expected} and the encoder's channels"
                )


def name_modules(layers: Iterable[int]) -> dict[int, str]:
    """Names of temporal modules by layer: "moss" at the first layer, then "moss2", "moss3" and so on."""
    numbered = enumerate(sorted(layers), start=1)
    return {layer: "moss" if number == 1 else f"moss{number}" for number, layer in numbered}


def shift_in_time(token: Tensor) -> Tensor:
    """First half of the channels from the next frame, second half from the previous; zeros past the ends.

    Shape:
        (B, T, P, C) -> (B, T, P, C).

    Reference: TokShift (Zhang et al., 2021b) as Side4Video uses it.
    """
    half = token.shape[-1] // 2
    following = F.pad(token[:, 1:, :, :half], (0, 0, 0, 0, 0, 1))
    previous = F.pad(token[:, :-1, :, half:], (0, 0, 0, 0, 1, 0))
    return torch.cat([following, previous], dim=-1)
