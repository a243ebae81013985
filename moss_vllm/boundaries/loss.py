"""What the training of a boundary model minimises."""

import torch.nn.functional as F
from torch import Tensor


def boundary_losses(logits: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of every frame that counts; their mean over a batch is BasicGEBD's loss.

    Shape:
        logits (B, T); targets (B, T) from 0 to 1, see `targets.py`; mask (B, T), True on frames that count
        -> (N,) float32.
    """
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return losses.flatten() if mask is None else losses[mask]
