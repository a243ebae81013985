"""What the training of a boundary model minimises."""

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA_FRAMES = 1.0


def soften(boundaries: Tensor) -> Tensor:
    """Targets that fall off around each boundary: a sum of Gaussians, at most 1.

    Shape:
        (B, T), nonzero at boundaries -> (B, T) float32.

    Reference: EfficientGEBD (Zheng et al., 2024).
    """
    # float64, as a product of float32 would be one of half precision under autocast.
    frames = torch.arange(boundaries.shape[1], device=boundaries.device, dtype=torch.float64)
    distances = frames[:, None] - frames
    bumps = torch.exp(-distances.square() / (2 * SIGMA_FRAMES**2))
    return ((boundaries != 0).double() @ bumps).clamp(max=1).float()


def boundary_losses(logits: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of every frame that counts; their mean is BasicGEBD's loss.

    Shape:
        logits (B, T), targets (B, T) of 0 to 1, mask (B, T), True on frames that count -> (N,).
    """
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return losses.flatten() if mask is None else losses[mask]
