"""The two attention modules of Table 10c: factorised over space and time, and local in space-time.

Contract, errors and budgets are those of `temporal.py`.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from moss_vllm.core.layers import checked_depth, last_linear
from moss_vllm.core.stss import Window, check_window


class FactorisedAttention(nn.Module):
    """Attention within each frame, then along time at each position, then an MLP: Arnab et al., 2021.

    It is their Model 3, "factorised self-attention", the name in the paper's tables. No positions are added:
    the original does that once, at the input of the whole model. So the module knows the order of the frames
    only if the host's features hold it.

    Shape: (B, T, H, W, d_in) -> (B, T, H, W, d_out).
    Reference: Table 10c "Fact Attn.": 1.962 M, 3.43 G (paper 2.1, 3.4).
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        d_hidden: int = 192,
        depth: int = 3,
        heads: int = 3,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        blocks = range(checked_depth(depth))
        self.in_proj = nn.Linear(d_in, d_hidden)
        self.space = nn.ModuleList(SelfAttention(d_hidden, heads) for _ in blocks)
        self.time = nn.ModuleList(SelfAttention(d_hidden, heads) for _ in blocks)
        self.mlp = nn.ModuleList(_mlp(d_hidden) for _ in blocks)
        self.out_proj = last_linear(d_hidden, d_out, zero_init)

    def forward(self, x: Tensor) -> Tensor:
        """Reduce, attend in space and in time, project."""
        batch, _, height, width = x.shape[:4]
        x = rearrange(self.in_proj(x), "b t h w c -> (b t) (h w) c")
        for space, time, mlp in zip(self.space, self.time, self.mlp, strict=True):
            x = rearrange(x + space(x), "(b t) p c -> (b p) t c", b=batch)
            x = x + time(x)
            x = rearrange(x + mlp(x), "(b p) t c -> (b t) p c", b=batch)
        return self.out_proj(rearrange(x, "(b t) (h w) c -> b t h w c", b=batch, h=height, w=width))


class LocalAttention(nn.Module):
    """Transformer blocks in which each position attends to its (L, U, V) neighbourhood: the paper's own.

    Nothing outside the clip and the frame enters the softmax. No positions are added: only the window's edge
    distinguishes near from far. The budget counts the window; the code multiplies whole frames (2.68 G).

    Shape: (B, T, H, W, d_in) -> (B, T, H, W, d_out).
    Reference: Table 10c "Local Attn.": 1.073 M, 2.16 G (paper 1.1, 2.2).
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        window: Window = (5, 9, 9),
        d_hidden: int = 192,
        depth: int = 2,
        heads: int = 3,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        self.window = check_window(window)
        blocks = range(checked_depth(depth))
        self.in_proj = nn.Linear(d_in, d_hidden)
        self.attention = nn.ModuleList(SelfAttention(d_hidden, heads) for _ in blocks)
        self.mlp = nn.ModuleList(_mlp(d_hidden) for _ in blocks)
        self.out_proj = last_linear(d_hidden, d_out, zero_init)

    def forward(self, x: Tensor) -> Tensor:
        """Reduce, attend to the neighbourhood, project."""
        frames, height, width = x.shape[1:4]
        mask = window_mask(frames, height, width, self.window, x.device)
        attend = partial(window_attention, length=self.window[0], mask=mask)
        x = rearrange(self.in_proj(x), "b t h w c -> b (t h w) c")
        for attention, mlp in zip(self.attention, self.mlp, strict=True):
            x = x + attention(x, attend)
            x = x + mlp(x)
        return self.out_proj(rearrange(x, "b (t h w) c -> b t h w c", t=frames, h=height, w=width))


class SelfAttention(nn.Module):
    """LayerNorm and multi-head self-attention over the middle axis.

    Shape: (N, S, D) -> (N, S, D); `attend` takes queries, keys and values of shape (N, heads, S, D / heads).
    """

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or d_model % heads:
            raise ValueError(f"heads={heads} does not divide d_hidden={d_model}; change one of the two")
        self.heads = heads
        self.norm = nn.LayerNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.proj = nn.Linear(d_model, d_model)

    def forward(
        self, x: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor] = F.scaled_dot_product_attention
    ) -> Tensor:
        """Each position attends to all others, or to those that `attend` selects."""
        qkv = self.qkv(self.norm(x))
        q, k, v = rearrange(qkv, "n s (three head d) -> three n head s d", three=3, head=self.heads)
        return self.proj(rearrange(attend(q, k, v), "n head s d -> n s (head d)"))


def window_attention(q: Tensor, k: Tensor, v: Tensor, *, length: int, mask: Tensor) -> Tensor:
    """Attention of each position to its space-time neighbourhood.

    Shape: q, k, v and what is returned (B, heads, T*H*W, D); mask as `window_mask` makes it.
    """
    # One masked product per query frame with its up to L neighbouring frames, fewer at the ends of the clip.
    # These lie side by side, so keys and values are views, and fused kernels keep no scores. Gathering the
    # keys of each window would copy the clip L*U*V times: 405 with the paper's window.
    positions = mask.shape[0]
    frames = q.shape[2] // positions
    attended = []
    for t in range(frames):
        first, stop = max(0, t - length // 2), min(frames, t + length // 2 + 1)
        query = q[:, :, t * positions : (t + 1) * positions]
        near = slice(first * positions, stop * positions)
        inside = mask[:, : (stop - first) * positions]
        attended.append(F.scaled_dot_product_attention(query, k[:, :, near], v[:, :, near], inside))
    return torch.cat(attended, dim=2)


def window_mask(frames: int, height: int, width: int, window: Window, device: torch.device) -> Tensor:
    """The positions of min(L, T) frames that each position sees, in every frame: (H*W, min(L, T)*H*W)."""
    length, rows, columns = window
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    near_y = (y[:, None] - y).abs() <= rows // 2
    near_x = (x[:, None] - x).abs() <= columns // 2
    near = near_y[:, None, :, None] & near_x[None, :, None, :]
    return repeat(near, "h w y x -> (h w) (l y x)", l=min(length, frames))


def _mlp(d_model: int) -> nn.Sequential:
    expand, reduce = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)
    return nn.Sequential(nn.LayerNorm(d_model), expand, nn.GELU(), reduce)
