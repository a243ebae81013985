"""g: the STSS encoder of one order, from features to motion features (Eq. 4)."""

import torch
from einops import rearrange
from torch import Tensor, nn

from moss_vllm.core.layers import ConvBlock
from moss_vllm.core.lean import norm_gelu_conv, norm_linear, stss_linear, unwrapped
from moss_vllm.core.stss import Window, stss
from moss_vllm.core.stss_triton import available, fused_stss_linear


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def stss_path(device: torch.device, window: Window) -> tuple[str, str]:
    """The way similarities are computed on `device`, "fused" (Triton) or "banded" (torch), and the reason."""
    runs, reason = available(device, window)
    return "fused" if runs else "banded", reason


class UVProjection(nn.Module):
    """Similarity of features; each U x V map is flattened and projected to D channels without bias.

    The next layer applies the BatchNorm and GELU that follow: see `STSSEncoder`.

    Shape:
        (B, T, H, W, C) -> (B, T, L, H, W, D).

    Reference: Sec. 3.3, "flattening the (U, V) dimensions and applying a fully connected layer".
    """

    def __init__(self, d_similarity: int, *, window: Window) -> None:
        super().__init__()
        self.window = window
        self.linear = nn.Linear(window[1] * window[2], d_similarity, bias=False)
        self.batch_norm = nn.BatchNorm2d(d_similarity)

    def forward(self, features: Tensor) -> Tensor:
        """Eq. 1-2, then the fully connected layer over (U, V)."""
        weight = self.linear.weight
        same_type = features.dtype == weight.dtype or torch.is_autocast_enabled(features.device.type)
        if unwrapped(self.linear, nn.Linear) and same_type and features.dtype != torch.float64:
            if stss_path(features.device, self.window)[0] == "fused":
                return fused_stss_linear(features, weight, self.window)
        return stss_linear(features, self.linear, self.window)


class STSSEncoder(nn.Module):
    """One order: features -> STSS -> motion features M^(n).

    The offsets are concatenated channel-wise, offset-major, and fused by a 3x3 convolution block. The paper's
    text has a "fully connected layer" here; only the convolution gives the parameters and FLOPs of its
    tables.

    Shape:
        (B, T, H, W, d_in) -> (B, T, H, W, d_fuse).

    Reference: Sec. 3.3, Eq. 4, Fig. 2b.
    """

    def __init__(
        self, d_in: int, d_out: int | None, *, window: Window, d_hidden: int, d_similarity: int, d_fuse: int
    ) -> None:
        super().__init__()
        self.window = window
        self.norm = nn.LayerNorm(d_in)
        self.in_proj = nn.Linear(d_in, d_hidden)
        self.uv_proj = UVProjection(d_similarity, window=window)
        self.block1 = ConvBlock(d_similarity, d_similarity)
        self.block2 = ConvBlock(d_similarity, d_similarity)
        self.fuse = ConvBlock(window[0] * d_similarity, d_fuse)
        self.out_proj = None if d_out is None else nn.Linear(d_fuse, d_out)

    def forward(self, x: Tensor) -> Tensor:
        """M^(n) before its FC of Eq. 5 (`out_proj`), which `MOSS` applies."""
        maps = self.uv_proj(norm_linear(x, self.norm, self.in_proj))
        maps = rearrange(maps, "b t l h w d -> (b t l) d h w")
        # Each line ends one block and begins the next: only what BatchNorm reads is kept for backward.
        maps = norm_gelu_conv(maps, self.uv_proj.batch_norm, self.block1.conv)
        maps = norm_gelu_conv(maps, self.block1.batch_norm, self.block2.conv)
        maps = norm_gelu_conv(maps, self.block2.batch_norm, self.fuse.conv, offsets=self.window[0])
        maps = norm_gelu_conv(maps, self.fuse.batch_norm, None)
        return rearrange(maps, "(b t) d h w -> b t h w d", b=x.shape[0])

    def similarity(self, x: Tensor) -> Tensor:
        """S^(n), the similarities of this order (Eq. 3).

        Shape:
            (B, T, H, W, d_in) -> (B, T, H, W, L, U, V).
        """
        return stss(self.in_proj(self.norm(x)), self.window)
