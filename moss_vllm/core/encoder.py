"""g: the STSS encoder of one order, from features to motion features (Eq. 4)."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from moss_vllm.core.stss import Window, stss


class UVProjection(nn.Module):
    """Each U x V similarity map to D channels: linear (no bias), BatchNorm, GELU.

    Shape:
        (B, T, H, W, L, U, V) -> (B*T*L, D, H, W).

    Reference: Sec. 3.3, "flattening the (U, V) dimensions and applying a fully connected layer".
    """

    def __init__(self, d_similarity: int, *, rows: int, columns: int) -> None:
        super().__init__()
        self.linear = nn.Linear(rows * columns, d_similarity, bias=False)
        self.batch_norm = nn.BatchNorm2d(d_similarity)

    def forward(self, similarity: Tensor) -> Tensor:
        """Encode the maps; see the class."""
        encoded = self.linear(similarity.flatten(-2))
        return F.gelu(self.batch_norm(rearrange(encoded, "b t h w l d -> (b t l) d h w")))


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


class STSSEncoder(nn.Module):
    """One order: features -> STSS -> motion features M^(n).

    The offsets are concatenated channel-wise, offset-major, and fused by a 3x3 convolution block. The paper's
    text says "fully connected layer" there; only the convolution gives its tables' parameters and FLOPs.

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
        self.uv_proj = UVProjection(d_similarity, rows=window[1], columns=window[2])
        self.block1 = ConvBlock(d_similarity, d_similarity)
        self.block2 = ConvBlock(d_similarity, d_similarity)
        self.fuse = ConvBlock(window[0] * d_similarity, d_fuse)
        self.out_proj = None if d_out is None else nn.Linear(d_fuse, d_out)

    def forward(self, x: Tensor) -> Tensor:
        """M^(n) before its FC of Eq. 5 (`out_proj`), which `MOSS` applies."""
        batch, length = x.shape[0], self.window[0]
        # The similarity is float32; the encoder then works in the parameters' own type.
        similarity = self.similarity(x).to(self.uv_proj.linear.weight.dtype)
        maps = self.block2(self.block1(self.uv_proj(similarity)))
        fused = self.fuse(rearrange(maps, "(b t l) d h w -> (b t) (l d) h w", b=batch, l=length))
        return rearrange(fused, "(b t) d h w -> b t h w d", b=batch)

    def similarity(self, x: Tensor) -> Tensor:
        """S^(n), (B, T, H, W, L, U, V): what this order compares (Eq. 3)."""
        return stss(self.in_proj(self.norm(x)), self.window)
