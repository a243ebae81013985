"""What enters an encoder of clips: which tensors are clips, and how their pixels are normalised."""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_clips(clips: Tensor, name: str) -> None:
    """Raise ValueError unless clips are (B, T, 3, H, W), none of them 0, and uint8 or floats."""
    shape = tuple(clips.shape)
    if len(shape) != 5 or shape[2] != 3 or 0 in shape:
        raise ValueError(f"{name} takes clips of shape (B, T, 3, H, W), got {shape}; move or add the axis")
    if clips.dtype != torch.uint8 and not clips.is_floating_point():
        raise ValueError(f"{name} takes uint8 pixels or normalised floats, got {clips.dtype}; convert them")


def normalise_pixels(frames: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Uint8 frames (..., 3, H, W) to float32, by mean and deviation in RGB of 0 to 1; floats stay."""
    if frames.dtype != torch.uint8:
        return frames
    centre, spread = (frames.new_tensor(value, dtype=torch.float32)[:, None, None] for value in (mean, std))
    return (frames - 255 * centre) / (255 * spread)
