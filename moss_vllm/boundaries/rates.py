"""At which rate the parts of a boundary model train, and how SGD's rates fall."""

import re
from collections.abc import Sequence

from moss_vllm.boundaries.gebd import GEBD
from moss_vllm.training.optim import Rate


def rate_table(
    model: GEBD, lr: float, weight_decay: float, *, decay_vectors: bool = True
) -> tuple[Rate, ...]:
    """Learning rates for `moss_vllm.training.optim.parameter_groups`: the first convolution is frozen.

    The ResNet's norms are frozen too; they are no parameters. The paper prints no rate for MOSS, it trains at
    that of all.

    Args:
        decay_vectors: biases, norms and PReLUs decay as well, as in EfficientGEBD.

    Reference: EfficientGEBD's configuration of BasicGEBD.
    """
    has_temporal = any(re.search(model.temporal_prefix, name) for name, _ in model.named_parameters())
    return (
        Rate("conv1", model.frozen, None),
        Rate("encoder", model.encoder_prefix, lr, weight_decay, decay_vectors),
        *([Rate("moss", model.temporal_prefix, lr, weight_decay, decay_vectors)] if has_temporal else []),
        Rate("head", model.head_prefix, lr, weight_decay, decay_vectors),
    )


def step_rate(step: int, peak: float, *, drops: Sequence[int]) -> float:
    """The rate of step number `step`, counted from 0: a tenth from each of `drops` on.

    Reference: EfficientGEBD, which passes its milestones and leaves the factor to torch.
    """
    return float(peak * 0.1 ** sum(step >= drop for drop in drops))
