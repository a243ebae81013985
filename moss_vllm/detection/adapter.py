"""TIA: the adapter after each layer of a frozen video encoder, which looks along time at every pixel."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class TIA(nn.Module):
    """Temporal-informative adapter: a bottleneck with a convolution over time. It starts as identity.

    The convolution runs along all steps of the clip, across the encoder's chunks.

    Shape:
        (B, T, H, W, C) -> (B, T, H, W, C).

    Args:
        dim: C.
        ratio: width of the bottleneck as a share of C.

    Reference: AdaTAD (Liu et al., 2024c). As in their code, one gamma scales the whole adapter, and the
    temporal branch is added to the activated reduction.
    """

    def __init__(self, dim: int, *, ratio: float = 0.25) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.down = nn.Linear(dim, hidden)
        self.time_conv = nn.Conv1d(hidden, hidden, 3, padding=1, groups=hidden)
        self.mix = nn.Conv1d(hidden, hidden, 1)
        self.up = nn.Linear(hidden, dim)
        self.gamma = nn.Parameter(torch.ones(1))
        nn.init.trunc_normal_(self.down.weight, std=0.02)
        nn.init.normal_(self.time_conv.weight, std=(2 / 3) ** 0.5)
        nn.init.normal_(self.mix.weight, std=(2 / hidden) ** 0.5)
        nn.init.zeros_(self.up.weight)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Reduce, convolve over time, project back, add."""
        height, width = x.shape[2:4]
        reduced = rearrange(F.gelu(self.down(x)), "b t h w c -> (b h w) c t")
        reduced = reduced + self.mix(self.time_conv(reduced))
        reduced = rearrange(reduced, "(b h w) c t -> b t h w c", h=height, w=width)
        return x + self.gamma * self.up(reduced)
