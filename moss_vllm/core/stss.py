"""f: features -> space-time self-similarity (STSS), Eq. 1-2.

`stss_plain` is the definition written out, one offset at a time. `stss` gives the same values from one matrix
product per temporal offset and is what the modules call. Order n >= 2 (Eq. 3) is either of them again, on the
encoded map of order n-1: see `moss.py`.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

Window = tuple[int, int, int]

# Below this norm a feature has no direction: its similarity to anything is 0, and so is its gradient.
MIN_NORM = 1e-6
# Frames are correlated in groups, so that the (H*W) x (H*W) products of one group stay below 256 MB.
MAX_CORRELATION_ELEMENTS = 2**26


def stss_plain(x: Tensor, window: Window) -> Tensor:
    """Cosine similarity of every position with its space-time neighbours, one offset at a time.

    Shape:
        x: (B, T, H, W, C) features, any floating type.
        returns: (B, T, H, W, L, U, V) float32; entry [..., l, u, v] compares position (t, h, w) with
            (t + l - L//2, h + u - U//2, w + v - V//2) and is 0 where that lies outside the clip or the frame.

    Raises:
        ValueError: `x` is not 5-D and floating, or a side of `window` is not a positive odd number.

    Reference: Eq. 1-2.
    """
    _check(x, window)
    frames, height, width = x.shape[1:4]
    length, rows, columns = window
    unit = _unit(x)
    padded = F.pad(unit, (0, 0, *[columns // 2] * 2, *[rows // 2] * 2, *[length // 2] * 2))
    similarity = [
        (unit * padded[:, t : t + frames, u : u + height, v : v + width]).sum(-1)
        for t in range(length)
        for u in range(rows)
        for v in range(columns)
    ]
    return torch.stack(similarity, dim=-1).unflatten(-1, window)


def stss(x: Tensor, window: Window) -> Tensor:
    """`stss_plain` from one batched matrix product per temporal offset; same arguments, values and errors.

    Features are normalised once per frame and never repeated or unfolded; the window is gathered from the
    full-frame product, which on grids up to about 450 positions beats computing fewer products one by one.
    """
    _check(x, window)
    length, rows, columns = window
    batch, frames, height, width = x.shape[:4]
    # Outside any autocast region: Eq. 2 in bfloat16 loses the small differences that are the motion.
    with torch.autocast(x.device.type, enabled=False):
        unit = rearrange(_unit(x), "b t h w c -> b t (h w) c")
        neighbour, inside = _neighbours(height, width, rows, columns, x.device)
        similarity = unit.new_zeros(batch, frames, height * width, length, rows * columns)
        step = max(1, MAX_CORRELATION_ELEMENTS // (batch * (height * width) ** 2))
        for index, offset in enumerate(range(-(length // 2), length // 2 + 1)):
            for start in range(max(0, -offset), min(frames, frames - offset), step):
                stop = min(start + step, frames, frames - offset)
                query, key = unit[:, start:stop], unit[:, start + offset : stop + offset]
                product = query @ key.transpose(-1, -2)  # (B, t, H*W, H*W): Eq. 2 for one offset l
                window_only = product.gather(-1, neighbour.expand(*product.shape[:-1], -1)) * inside
                similarity[:, start:stop, :, index] = window_only
    return similarity.view(batch, frames, height, width, length, rows, columns)


def _unit(x: Tensor) -> Tensor:
    x = x.float()
    square = x.square().sum(-1, keepdim=True)
    scale = square.clamp_min(MIN_NORM**2).rsqrt()
    return x * torch.where(square > MIN_NORM**2, scale, torch.zeros_like(scale))


def _neighbours(
    height: int, width: int, rows: int, columns: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Flat index of each position's U x V neighbours, and 1 where they are in the frame: both (H*W, U*V)."""
    u = torch.arange(rows, device=device) - rows // 2
    v = torch.arange(columns, device=device) - columns // 2
    y = torch.arange(height, device=device)[:, None, None, None] + u[:, None]
    x = torch.arange(width, device=device)[:, None, None] + v
    inside = ((y >= 0) & (y < height)) & ((x >= 0) & (x < width))
    flat = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    return rearrange(flat, "h w u v -> (h w) (u v)"), rearrange(inside, "h w u v -> (h w) (u v)")


def _check(x: Tensor, window: Window) -> None:
    if x.dim() != 5 or not x.is_floating_point():
        raise ValueError(
            f"stss takes floating features of shape (B, T, H, W, C), got {x.dtype} of shape "
            f"{tuple(x.shape)}; add the missing axis or convert the dtype"
        )
    if 0 in x.shape:
        raise ValueError(f"stss takes at least one clip, frame, position and channel, got {tuple(x.shape)}")
    if len(window) != 3 or any(side < 1 or side % 2 == 0 for side in window):
        raise ValueError(
            f"window (L, U, V) needs three positive odd sizes so that it has a centre, got {tuple(window)}; "
            "the paper uses (5, 9, 9) for action recognition and (7, 11, 11) for the Video-LLM"
        )
