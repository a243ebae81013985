"""g: the STSS encoder (Eq. 4), and MOSS: the sum over orders (Eq. 5)."""

from typing import cast

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
        self, d_in: int, d_out: int, *, window: Window, d_hidden: int, d_similarity: int, d_fuse: int
    ) -> None:
        super().__init__()
        self.window = window
        self.norm = nn.LayerNorm(d_in)
        self.in_proj = nn.Linear(d_in, d_hidden)
        self.uv_proj = UVProjection(d_similarity, rows=window[1], columns=window[2])
        self.block1 = ConvBlock(d_similarity, d_similarity)
        self.block2 = ConvBlock(d_similarity, d_similarity)
        self.fuse = ConvBlock(window[0] * d_similarity, d_fuse)
        self.out_proj = nn.Linear(d_fuse, d_out)

    def forward(self, x: Tensor) -> Tensor:
        """M^(n) before its FC of Eq. 5 (`out_proj`), which `MOSS` applies."""
        batch, length = x.shape[0], self.window[0]
        # The similarity is float32; the encoder then works in the parameters' own type.
        similarity = stss(self.in_proj(self.norm(x)), self.window).to(self.uv_proj.linear.weight.dtype)
        maps = self.block2(self.block1(self.uv_proj(similarity)))
        fused = self.fuse(rearrange(maps, "(b t l) d h w -> (b t) (l d) h w", b=batch, l=length))
        return rearrange(fused, "(b t) d h w -> b t h w d", b=batch)


class MOSS(nn.Module):
    """Multi-Order Self-Similarity: motion features of a clip, summed over orders. No residual inside.

    Order n+1 reads order n's FC output. With `zero_init=True` that output is zero, so order n+1 reads M^(n)
    itself, before the FC (Eq. 3-5 as printed); otherwise it would see a constant at the first step.

    Shape:
        (B, T, H, W, d_in) -> (B, T, H, W, d_out), for any T >= 1 and any H, W.

    Args:
        d_in: channels of the host's features.
        d_out: channels added back to the host.
        orders: how many orders to stack and sum (the paper uses 2).
        window: (L, U, V), odd, in frames and grid cells.
        d_hidden: channels in which similarity is measured.
        d_similarity: D, the width of one encoded similarity map.
        d_fuse: channels after the temporal offsets are fused; 2 * D if not given, as in the ladder.
        zero_init: start as the constant 0, so that a host that adds the output starts unchanged.
        input_fc: add the FC(F) of Eq. 5 (the ladder has it outside, as its adapter).

    Raises:
        ValueError: `orders` < 1, or a bad window or input shape (see `stss`).

    Reference: Sec. 3.3, Eq. 5; Table 7 for the sizes.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        orders: int = 2,
        window: Window = (5, 9, 9),
        d_hidden: int = 128,
        d_similarity: int = 64,
        d_fuse: int | None = None,
        zero_init: bool = False,
        input_fc: bool = False,
    ) -> None:
        super().__init__()
        if orders < 1:
            raise ValueError(f"MOSS needs at least one order, got orders={orders}; the paper uses 2")
        d_fuse = 2 * d_similarity if d_fuse is None else d_fuse
        self.orders = orders
        self.reads_fc_output = not zero_init
        for order in range(1, orders + 1):
            previous = d_out if self.reads_fc_output else d_fuse
            encoder = STSSEncoder(
                d_in if order == 1 else previous,
                d_out,
                window=(window[0], window[1], window[2]),
                d_hidden=d_hidden,
                d_similarity=d_similarity,
                d_fuse=d_fuse,
            )
            self.add_module(f"order{order}", encoder)
        self.input_fc = nn.Linear(d_in, d_out) if input_fc else None
        if zero_init:
            for linear in self.last_linears():
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)

    def last_linears(self) -> list[nn.Linear]:
        """The FCs of Eq. 5, whose sum is the output."""
        last = [self._order(n).out_proj for n in range(1, self.orders + 1)]
        return last if self.input_fc is None else [*last, self.input_fc]

    def forward(self, x: Tensor) -> Tensor:
        """Eq. 5: the sum of each order's FC output, and of FC(F) with `input_fc`."""
        output = None if self.input_fc is None else self.input_fc(x)
        features = x
        for n in range(1, self.orders + 1):
            encoder = self._order(n)
            motion = encoder(features)  # M^(n), Eq. 4
            projected = encoder.out_proj(motion)
            output = projected if output is None else output + projected
            features = projected if self.reads_fc_output else motion  # Eq. 3: f o g on the previous order
        return cast(Tensor, output)

    def _order(self, n: int) -> STSSEncoder:
        return cast(STSSEncoder, self.get_submodule(f"order{n}"))
