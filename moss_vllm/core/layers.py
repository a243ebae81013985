"""Small layers that the modules of `core/` share."""

import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """3x3 convolution (no bias), BatchNorm, GELU over (H, W).

    Shape:
        (N, d_in, H, W) -> (N, d_out, H, W).

    Reference: Sec. 3.3, "Conv2d - BatchNorm - GeLU".
    """

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(d_in, d_out, 3, padding=1, bias=False)
        self.batch_norm = nn.BatchNorm2d(d_out)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, activate."""
        return F.gelu(self.batch_norm(self.conv(x)))


class TimeConv3d(nn.Conv3d):
    """A convolution over 3 frames with a frame of zeros past each end of the clip, correct also in bfloat16.

    Shape:
        (B, C, T, H, W) -> (B, D, T, H', W').
    """

    def __init__(self, d_in: int, d_out: int, patch_size: int = 1, *, bias: bool = True) -> None:
        patch = (patch_size, patch_size)
        super().__init__(d_in, d_out, (3, *patch), stride=(1, *patch), padding=(1, 0, 0), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve over time."""
        if x.shape[2] != 2:
            return super().forward(x)
        # Padding two frames itself, oneDNN (torch 2.12) leaves a bfloat16 weight gradient partly unwritten.
        return F.conv3d(F.pad(x, (0, 0, 0, 0, 1, 1)), self.weight, self.bias, self.stride)


def last_linear(d_in: int, d_out: int, zero_init: bool) -> nn.Linear:
    """The linear layer whose output the host adds; with `zero_init` the host starts unchanged."""
    linear = nn.Linear(d_in, d_out)
    if zero_init:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return linear


def checked_depth(depth: int) -> int:
    """`depth`, or a ValueError for a depth without a block."""
    if depth < 1:
        raise ValueError(f"depth={depth} leaves no block that looks across time; give 1 or more")
    return depth
