"""ActionFormer: class scores and distances to both ends of an action, at each point of a temporal pyramid.

    features -> embed -> stem ---+---> branch ---+---> branch ---> ...    pyramid, each level half as long
                                 |               |
                               norm            norm                       neck, one for each level
                                 |               |
                               head            head                       one for all levels

Tensors are (B, C, T); a mask (B, T) is True on real steps. The features of padded steps are not zero, and
the neck's output is not masked: AdaTAD's authors' code does neither, and both show in its values.
"""

import math
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import DropPath
from torch import Tensor, nn

from moss_vllm.core.recompute import recomputed


class LevelOutput(NamedTuple):
    """Predictions of one level: `cls_logits` (B, classes, T), `distances` (B, 2, T), `mask` (B, T).

    Distances are those from a point to the start and to the end of its action, in strides of the level.
    Padded steps have predictions too; `mask` leaves them out.
    """

    cls_logits: Tensor
    distances: Tensor
    mask: Tensor


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, T)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ConvUnit(nn.Module):
    """Convolution over 3 steps, LayerNorm, ReLU; padded steps are zero.

    Shape:
        (B, d_in, T), mask (B, T) -> (B, d_out, T).
    """

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(d_in, d_out, 3, padding=1, bias=False)
        self.norm = ChannelNorm(d_out, eps=1e-6)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Convolve, normalise, activate."""
        return masked(F.relu(self.norm(masked(self.conv(x), mask))), mask)


class ReducedProjection(nn.Module):
    """Queries, keys or values: a depthwise convolution with a stride, LayerNorm, a linear layer.

    Shape:
        (B, C, T), mask (B, T/stride) -> (B, C, T/stride).
    """

    def __init__(self, dim: int, *, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, 3, stride=stride, padding=1, groups=dim, bias=False)
        self.norm = ChannelNorm(dim)
        self.linear = _linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Convolve, normalise, project."""
        return self.linear(self.norm(masked(self.conv(x), mask)))


class TemporalAttention(nn.Module):
    """Each step attends to all real steps of the window.

    Shape:
        (B, C, T), mask (B, T/stride) -> (B, C, T/stride).
    """

    def __init__(self, dim: int, *, heads: int, stride: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = ReducedProjection(dim, stride=stride)
        self.key = ReducedProjection(dim, stride=stride)
        self.value = ReducedProjection(dim, stride=stride)
        self.out_proj = _linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend."""
        query, key, value = (
            rearrange(project(x, mask), "b (n d) t -> b n t d", n=self.heads)
            for project in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        return masked(self.out_proj(rearrange(attended, "b n t d -> b (n d) t")), mask)


class ScaledDropPath(nn.Module):
    """A scale per channel that starts near zero, and drop-path in training."""

    def __init__(self, dim: int, rate: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), 1e-4))
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor) -> Tensor:
        """Scale (B, C, T), and drop it for some of the batch."""
        return self.drop_path(self.scale[:, None] * x)


class PyramidBlock(nn.Module):
    """A transformer block; with stride 2 it is the step to the next level.

    Shape:
        (B, C, T), mask (B, T) -> (B, C, T/stride), mask (B, T/stride).
    """

    def __init__(self, dim: int, *, heads: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.stride = stride
        self.attention_norm = ChannelNorm(dim)
        self.attention = TemporalAttention(dim, heads=heads, stride=stride)
        self.attention_scale = ScaledDropPath(dim, drop_path)
        self.mlp_norm = ChannelNorm(dim)
        self.mlp = nn.Sequential(_linear(dim, 4 * dim), nn.GELU(), _linear(4 * dim, dim))
        self.mlp_scale = ScaledDropPath(dim, drop_path)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Attention and MLP, each added to what it reads."""
        mask = mask[:, :: self.stride]
        attended = self.attention(self.attention_norm(x), mask)
        if self.stride > 1:
            x = F.max_pool1d(x, 3, stride=self.stride, padding=1)
        x = masked(x, mask) + self.attention_scale(attended)
        return x + self.mlp_scale(masked(self.mlp(self.mlp_norm(x)), mask)), mask


class Head(nn.Module):
    """Class scores and distances of one level; all levels share it, but for a scale of the distances.

    Shape:
        (B, C, T), mask (B, T) -> (B, classes, T), (B, 2, T).
    """

    def __init__(self, dim: int, *, classes: int, levels: int, prior: float) -> None:
        super().__init__()
        self.cls_units = nn.ModuleList(ConvUnit(dim, dim) for _ in range(2))
        self.cls_out = nn.Conv1d(dim, classes, 3, padding=1)
        self.distance_units = nn.ModuleList(ConvUnit(dim, dim) for _ in range(2))
        self.distance_out = nn.Conv1d(dim, 2, 3, padding=1)
        self.level_scales = nn.Parameter(torch.ones(levels))
        # Focal loss needs rare positives from the start (Lin et al., 2017).
        bias = cast(Tensor, self.cls_out.bias)
        nn.init.constant_(bias, -math.log((1 - prior) / prior))

    def forward(self, x: Tensor, mask: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Predict at every step of level `level`, counted from 0."""
        by_class, by_distance = x, x
        for unit in self.cls_units:
            by_class = unit(by_class, mask)
        for unit in self.distance_units:
            by_distance = unit(by_distance, mask)
        distances = F.relu(self.level_scales[level] * self.distance_out(by_distance))
        return self.cls_out(by_class), distances


class Detector(nn.Module):
    """The detector on features of a window.

    With `checkpointing` it keeps for backward what enters each block and the head, and computes them again.

    Shape:
        features (B, d_in, T), mask (B, T) True on real steps -> `LevelOutput` of each level; level i has
        ceil(T / 2**i) steps.

    Args:
        d_in: channels of the features.
        classes: kinds of actions.
        dim: width of the detector.
        heads: attention heads.
        embed: convolutions before the pyramid.
        stem: blocks at full length.
        levels: of the pyramid.
        drop_path: rate in the blocks.
        prior: score of every class at the start.

    Raises:
        ValueError: heads that do not divide the width; in `forward`, features or a mask that do not fit.

    Reference: ActionFormer (Zhang et al., 2022), with full attention as in AdaTAD.
    """

    def __init__(
        self,
        d_in: int,
        classes: int,
        *,
        dim: int = 512,
        heads: int = 4,
        embed: int = 2,
        stem: int = 2,
        levels: int = 6,
        drop_path: float = 0.1,
        prior: float = 0.01,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads={heads} do not divide the detector's width {dim}; choose a divisor")
        self.d_in, self.classes, self.levels = d_in, classes, levels
        self.checkpointing = False
        widths = [d_in, *[dim] * embed]
        self.embed = nn.ModuleList(ConvUnit(width, dim) for width in widths[:-1])
        self.stem = nn.ModuleList(
            PyramidBlock(dim, heads=heads, stride=1, drop_path=drop_path) for _ in range(stem)
        )
        self.branch = nn.ModuleList(
            PyramidBlock(dim, heads=heads, stride=2, drop_path=drop_path) for _ in range(levels - 1)
        )
        self.neck = nn.ModuleList(ChannelNorm(dim, eps=1e-6) for _ in range(levels))
        self.head = Head(dim, classes=classes, levels=levels, prior=prior)

    def forward(self, features: Tensor, mask: Tensor) -> list[LevelOutput]:
        """Predict at every point."""
        outputs = []
        for level, (x, level_mask) in enumerate(self.pyramid(features, mask)):
            cls_logits, distances = self._run(self.head, self.neck[level](x), level_mask, level)
            outputs.append(LevelOutput(cls_logits, distances, level_mask))
        return outputs

    def pyramid(self, features: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Features and mask of each level, before the neck."""
        self._check(features, mask)
        x = features
        for unit in self.embed:
            x = self._run(unit, x, mask)
        for block in self.stem:
            x, mask = self._run(block, x, mask)
        levels = [(x, mask)]
        for block in self.branch:
            levels.append(self._run(block, *levels[-1]))
        return levels

    def _run(self, block: nn.Module, *inputs: Any) -> Any:
        return recomputed(block, *inputs, layers=[block]) if self.checkpointing else block(*inputs)

    def _check(self, features: Tensor, mask: Tensor) -> None:
        if features.dim() != 3 or features.shape[1] != self.d_in:
            raise ValueError(
                f"the detector reads features (B, {self.d_in}, T), got {tuple(features.shape)}; build it "
                "with the encoder's d_in"
            )
        if mask.shape != (features.shape[0], features.shape[2]) or mask.dtype != torch.bool:
            raise ValueError(
                f"the mask is {mask.dtype} of shape {tuple(mask.shape)}; features of shape "
                f"{tuple(features.shape)} need torch.bool of (B, T), True on real steps"
            )


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """(B, C, T) with zeros where the mask (B, T) is False."""
    return x * mask[:, None]


def _linear(d_in: int, d_out: int) -> nn.Conv1d:
    """A linear layer on (B, C, T), with torch's default weights and no bias at the start."""
    layer = nn.Conv1d(d_in, d_out, 1)
    nn.init.zeros_(cast(Tensor, layer.bias))
    return layer
