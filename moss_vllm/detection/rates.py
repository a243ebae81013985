"""At which rate the parts of a detector train, and how the rates change from step to step."""

import math
import re

from moss_vllm.detection.adatad import AdaTAD
from moss_vllm.training.optim import Rate

END_RATE = 1e-8


def rate_table(model: AdaTAD, lr: float, adapter_lr: float, weight_decay: float = 0.05) -> tuple[Rate, ...]:
    """Learning rates for `moss_vllm.training.optim.parameter_groups`: the encoder is frozen.

    The adapters' vectors decay as well, the detector's and MOSS's do not. The paper prints no rate for MOSS;
    it trains at the adapters'.

    Args:
        lr: of the detector.
        adapter_lr: of the adapters and temporal modules.

    Reference: AdaTAD's configurations.
    """
    adapter, temporal = model.adapter_prefix, model.temporal_prefix
    has_temporal = any(re.search(temporal, name) for name, _ in model.named_parameters())
    return (
        Rate("encoder", model.frozen, None),
        Rate("adapters", adapter, adapter_lr, weight_decay, decay_vectors=True),
        *([Rate("moss", temporal, adapter_lr, weight_decay)] if has_temporal else []),
        Rate("detector", model.detector_prefix, lr, weight_decay),
    )


def warmup_cosine_rate(step: int, peak: float, *, warmup: int, total: int) -> float:
    """The rate of step number `step`, counted from 0: up from 0 within `warmup` steps, then a cosine down.

    It would reach END_RATE at the step `total`; AdaTAD stops training long before.

    Reference: the schedule of AdaTAD's code, whose first step has rate 0.
    """
    if step < warmup:
        return peak * step / max(1, warmup - 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return END_RATE + (peak - END_RATE) / 2 * (1 + math.cos(math.pi * progress))
