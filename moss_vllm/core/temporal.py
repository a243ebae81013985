"""The temporal modules the paper compares MOSS with (Table 10c), or with its second order alone (Table 4d).

Each reads T >= 1, H and W from the shape and has no residual from input to output: the host adds it.
`zero_init=True` zeroes the last Linear, `out_proj`, so that the host starts unchanged. The paper gives
budgets but no layouts; the sizes here are the plainest that meet the budgets. Budgets are parameters and
multiply-adds from 768 to 192 channels on 8 frames of 14 x 14; an STSS counts as products of whole frames.
Constructors raise ValueError for an even window, a depth below 1 or heads that do not divide the width.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from moss_vllm.core.attention import FactorisedAttention, LocalAttention
from moss_vllm.core.layers import ConvBlock, TimeConv3d, checked_depth, last_linear
from moss_vllm.core.stss import Window, check_window, stss


class SELFY(nn.Module):
    """STSS of order 1 whose U x V maps are encoded by convolutions: Kwon et al., 2021.

    It is MOSS's order 1 with `UVConvolutions` in place of the linear layer. The original is part of a ResNet:
    it reduces by a strided convolution, fuses by four convolutions, upsamples, adds its input inside and has
    ReLUs.

    Shape: (B, T, H, W, d_in) -> (B, T, H, W, d_out).
    Reference: Table 10c "SELFY": 0.615 M, 2.62 G (paper 0.6, 2.7).
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        window: Window = (5, 9, 9),
        d_hidden: int = 128,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        self.window = check_window(window)
        self.norm = nn.LayerNorm(d_in)
        self.in_proj = nn.Linear(d_in, d_hidden)
        self.uv_convolutions = UVConvolutions(d_hidden // 2, rows=window[1], columns=window[2])
        self.offsets = OffsetEncoder(d_hidden // 2, d_hidden // 2, d_hidden, length=window[0])
        self.out_proj = last_linear(d_hidden, d_out, zero_init)

    def forward(self, x: Tensor) -> Tensor:
        """Compare, encode each map, fuse the offsets."""
        similarity = stss(self.in_proj(self.norm(x)), self.window)
        return self.out_proj(self.offsets(self.uv_convolutions(similarity)))


class ATM(nn.Module):
    """Two arithmetic branches, STSS of order 1 and then frame differences: Wu et al., 2023.

    The second branch reads ReLU(F + first branch), as in the original. The original ends in ReLU(this +
    second branch), as wide as F, which replaces F for the host's own adapter (1.546 M, 4.45 G). Here the host
    keeps F, so both branches end in `out_proj`. Two more differences: the convolution blocks have GELU, and
    the difference to a frame outside the clip is 0, not minus the frame.

    Shape: (B, T, H, W, d_in) -> (B, T, H, W, d_out).
    Reference: Table 10c "ATM": 1.523 M, 4.41 G (paper 1.5, 4.8).
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        window: Window = (5, 9, 9),
        d_hidden: int = 64,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        self.window = check_window(window)
        self.similarity_in = ConvBlock(d_in, d_hidden)
        self.uv_convolutions = UVConvolutions(d_hidden, rows=window[1], columns=window[2])
        self.similarity_offsets = OffsetEncoder(d_hidden, d_hidden, d_hidden, length=window[0])
        # Zero at the start, as in the original: the second branch then reads the host's own features.
        self.similarity_out = nn.Linear(d_hidden, d_in, bias=False)
        nn.init.zeros_(self.similarity_out.weight)
        self.difference_in = ConvBlock(d_in, d_hidden)
        self.difference_offsets = OffsetEncoder(d_hidden, d_hidden, d_hidden, length=window[0])
        self.out_proj = last_linear(2 * d_hidden, d_out, zero_init)

    def forward(self, x: Tensor) -> Tensor:
        """Similarity, then differences of the features that it changed; both enter the output."""
        similarity = stss(_each_frame(self.similarity_in, x), self.window)
        first = self.similarity_offsets(self.uv_convolutions(similarity))
        changed = _each_frame(self.difference_in, F.relu(x + self.similarity_out(first)))
        second = self.difference_offsets(frame_differences(changed, self.window[0]))
        return self.out_proj(torch.cat([first, second], dim=-1))


class FrameDifference(nn.Module):
    """MOSS's encoder of one order on frame differences (Wu et al., 2023) in place of similarities.

    The difference to a frame outside the clip is 0, where Wu et al. have minus the frame itself: a still clip
    gives no signal, not even at its ends.

    Shape: (B, T, H, W, d_in) -> (B, T, H, W, d_out).
    Reference: Table 4d "Diff.", from 192 channels: 0.530 M, 1.52 G (paper 0.5, 1.5).
    """

    def __init__(
        self, d_in: int, d_out: int, *, length: int = 5, d_hidden: int = 128, zero_init: bool = False
    ) -> None:
        super().__init__()
        self.length = check_window((length, 1, 1))[0]
        self.norm = nn.LayerNorm(d_in)
        self.in_proj = nn.Linear(d_in, d_hidden)
        self.offsets = OffsetEncoder(d_hidden, d_hidden // 2, d_hidden, length=length)
        self.out_proj = last_linear(d_hidden, d_out, zero_init)

    def forward(self, x: Tensor) -> Tensor:
        """Subtract, encode each difference, fuse the offsets."""
        differences = frame_differences(self.in_proj(self.norm(x)), self.length)
        return self.out_proj(self.offsets(differences))


class R2Plus1D(nn.Module):
    """Residual blocks of a 1 x 3 x 3 and a 3 x 1 x 1 convolution: Tran et al., 2018.

    The width between the two is theirs: it gives as many weights as a 3 x 3 x 3 convolution. Their blocks
    hold two such pairs, in a ResNet; these hold one, at a fixed width between two Linears.

    Shape: (B, T, H, W, d_in) -> (B, T, H, W, d_out).
    Reference: Table 10c "R(2+1)D": 1.896 M, 2.97 G (paper 1.9, 3.0).
    """

    def __init__(
        self, d_in: int, d_out: int, *, d_hidden: int = 128, depth: int = 4, zero_init: bool = False
    ) -> None:
        super().__init__()
        d_middle = 27 * d_hidden // (9 + 3)
        self.in_proj = nn.Linear(d_in, d_hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(d_hidden, d_middle, (1, 3, 3), padding=(0, 1, 1), bias=False),
                nn.BatchNorm3d(d_middle),
                nn.ReLU(),
                TimeConv3d(d_middle, d_hidden, bias=False),
                nn.BatchNorm3d(d_hidden),
            )
            for _ in range(checked_depth(depth))
        )
        self.out_proj = last_linear(d_hidden, d_out, zero_init)

    def forward(self, x: Tensor) -> Tensor:
        """Reduce, convolve in space and in time, project."""
        x = rearrange(self.in_proj(x), "b t h w c -> b c t h w")
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.out_proj(rearrange(x, "b c t h w -> b t h w c"))


class UVConvolutions(nn.Module):
    """Each U x V similarity map to D channels by four convolutions (Kwon et al., 2021).

    3 x 3 with strides 1, 2, 2, then one as large as the remaining map: 3 x 3 for the paper's 9 x 9 window.
    All maps pass at once, because each BatchNorm needs the statistics of all.

    Shape: (B, T, H, W, L, U, V) -> (B, T, H, W, L, D).
    """

    def __init__(self, d_similarity: int, *, rows: int, columns: int) -> None:
        super().__init__()
        if d_similarity < 16 or d_similarity % 16:
            raise ValueError(
                f"similarity maps go to {d_similarity} channels by way of a 16th and a 4th of them; choose "
                "d_hidden so that they are a multiple of 16 (half of d_hidden in SELFY, all of it in ATM)"
            )
        widths = (1, d_similarity // 16, d_similarity // 4, d_similarity, d_similarity)
        layers: list[nn.Module] = []
        for d_in, d_out, stride in zip(widths[:3], widths[1:4], (1, 2, 2), strict=True):
            layers += [nn.Conv2d(d_in, d_out, 3, stride, 1, bias=False), nn.BatchNorm2d(d_out), nn.GELU()]
        remaining = (-(-rows // 4), -(-columns // 4))
        layers += [nn.Conv2d(*widths[3:], remaining, bias=False), nn.BatchNorm2d(d_similarity), nn.GELU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, similarity: Tensor) -> Tensor:
        """Encode each map."""
        maps = similarity.flatten(0, 4).unsqueeze(1).to(next(self.parameters()).dtype)
        return self.layers(maps).reshape(*similarity.shape[:5], -1)


class OffsetEncoder(nn.Module):
    """Two 3 x 3 convolution blocks on the map of each offset, then one that fuses the L offsets (Sec. 3.3).

    Shape: (B, T, H, W, L, d_in) -> (B, T, H, W, d_fuse).
    """

    def __init__(self, d_in: int, d_map: int, d_fuse: int, *, length: int) -> None:
        super().__init__()
        self.block1 = ConvBlock(d_in, d_map)
        self.block2 = ConvBlock(d_map, d_map)
        self.fuse = ConvBlock(length * d_map, d_fuse)

    def forward(self, x: Tensor) -> Tensor:
        """Encode each offset, then all together."""
        batch, length = x.shape[0], x.shape[4]
        maps = self.block2(self.block1(rearrange(x, "b t h w l d -> (b t l) d h w")))
        fused = self.fuse(rearrange(maps, "(b t l) d h w -> (b t) (l d) h w", b=batch, l=length))
        return rearrange(fused, "(b t) d h w -> b t h w d", b=batch)


def frame_differences(x: Tensor, length: int) -> Tensor:
    """x[t + l - L//2] - x[t], or 0 for a frame outside: (B, T, H, W, C) -> (B, T, H, W, L, C)."""
    frames, reach = x.shape[1], length // 2
    padded = F.pad(x, (0, 0, 0, 0, 0, 0, reach, reach))
    inside = F.pad(x.new_ones(frames), (reach, reach)).unfold(0, length, 1)  # (T, L)
    differences = torch.stack([padded[:, index : index + frames] - x for index in range(length)], dim=4)
    return differences * inside[:, None, None, :, None]


def _each_frame(module: nn.Module, x: Tensor) -> Tensor:
    frames = module(rearrange(x, "b t h w c -> (b t) c h w"))
    return rearrange(frames, "(b t) c h w -> b t h w c", b=x.shape[0])


# The names of Table 10c; "difference" is from Table 4d.
TEMPORAL_MODULES: dict[str, type[nn.Module]] = {
    "selfy": SELFY,
    "atm": ATM,
    "r2plus1d": R2Plus1D,
    "factorised_attention": FactorisedAttention,
    "local_attention": LocalAttention,
    "difference": FrameDifference,
}

# Table 4d: modules that replace order 2 and read M^(1), as f(d_in, d_out, zero_init=...); from 192 channels.
SECOND_ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "r2plus1d": partial(R2Plus1D, d_hidden=112, depth=2),  # 0.722 M, 1.13 G (paper 0.7, 1.1)
    "factorised_attention": partial(FactorisedAttention, depth=1),  # 0.666 M, 1.16 G (paper 0.7, 1.2)
    "difference": FrameDifference,  # 0.530 M, 1.52 G (paper 0.5, 1.5)
}
