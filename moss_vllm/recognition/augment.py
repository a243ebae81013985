"""Random changes to a clip, the same for all its frames: a random box, grey.

All random numbers come from the generator that the caller passes.
"""

import math

import numpy as np
import torch
from torch import Tensor

RATIO = (3 / 4, 4 / 3)
_LUMA = (0.299, 0.587, 0.114)  # of PIL's mode "L"


def draw_box(
    height: int, width: int, rng: np.random.Generator, min_area: float = 0.08
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part of a frame, to be resized to a square.

    Area (a share from `min_area` to 1) and ratio (in RATIO) are uniform, and the sides are exchanged half the
    time. After ten boxes that do not fit, it is the largest square.

    Reference: GroupRandomSizedCrop of the authors' code.
    """
    for _ in range(10):
        area, ratio = height * width * rng.uniform(min_area, 1.0), rng.uniform(*RATIO)
        sides = [max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))]
        h, w = sides if rng.random() < 0.5 else sides[::-1]
        if h <= height and w <= width:
            break
    else:
        h = w = min(height, width)
    return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w


def grey(clip: Tensor) -> Tensor:
    """The clip in grey, still with three channels.

    Shape: uint8 (T, 3, H, W) -> (T, 3, H, W).
    """
    weights = torch.tensor(_LUMA).view(1, 3, 1, 1)
    return (clip * weights).sum(1, keepdim=True).round().to(torch.uint8).expand_as(clip)
