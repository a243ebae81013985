"""From the self-similarity of a few frames, a map, to one vector."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from einops import reduce
from torch import Tensor, nn

from moss_vllm.core.recompute import recomputed

STRIDES = (1, 1, 2, 2)


class ConvNorm(nn.Module):
    """A convolution without bias, and BatchNorm.

    Shape:
        (N, d_in, H, W) -> (N, d_out, H / stride, W / stride), rounded up.
    """

    def __init__(self, d_in: int, d_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(d_in, d_out, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(d_out)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise."""
        return self.norm(self.conv(x))


class MapBlock(nn.Module):
    """Two 3x3 convolutions, added to the input. There is no ReLU between them, unlike in ResNet's blocks.

    Shape:
        as `ConvNorm`.
    """

    def __init__(self, d_in: int, d_out: int, stride: int) -> None:
        super().__init__()
        self.first = ConvNorm(d_in, d_out, 3, stride)
        self.second = ConvNorm(d_out, d_out, 3)
        is_same = stride == 1 and d_in == d_out
        self.shortcut = nn.Identity() if is_same else ConvNorm(d_in, d_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve twice, add, activate."""
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class MapEncoder(nn.Module):
    """Encodes similarity maps; BatchNorm's statistics are those of all maps of the batch.

    With `checkpointing` it keeps for backward what enters each block, and computes the block again.

    Shape:
        (N, 1, I, J) -> (N, `widths[-1]`).

    Args:
        widths: channels of the first convolution, then of each of the four blocks.

    Raises:
        ValueError: not five widths.

    Reference: BasicGEBD (Zheng et al., 2024).
    """

    def __init__(self, widths: Sequence[int] = (64, 64, 128, 256, 512)) -> None:
        super().__init__()
        self.checkpointing = False
        if len(widths) != 1 + len(STRIDES):
            raise ValueError(
                f"map widths {tuple(widths)}; give {1 + len(STRIDES)}: of the stem and of each block"
            )
        self.stem = ConvNorm(1, widths[0], 3)
        self.blocks = nn.Sequential(
            *(MapBlock(*ends, stride) for ends, stride in zip(pairwise(widths), STRIDES, strict=True))
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Encode, and average over the map."""
        x = F.relu(self.stem(maps))
        for block in self.blocks:
            x = recomputed(block, x, layers=[block]) if self.checkpointing else block(x)
        return reduce(x, "n c i j -> n c", "mean")
