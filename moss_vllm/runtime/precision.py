"""Number formats by the names that flags and settings give them."""

from collections.abc import Callable

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What a model runs under in autocast; float32 runs without.
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def fast_half(
    device: torch.device, capability: Callable[..., tuple[int, int]] = torch.cuda.get_device_capability
) -> torch.dtype | None:
    """The 16-bit format in which a device multiplies matrices several times as fast, None if there is none.

    NVIDIA's tensor cores have float16 since compute capability 7.0, and bfloat16 since 8.0.
    """
    if device.type != "cuda":
        return None
    major = capability(device)[0]
    return torch.bfloat16 if major >= 8 else torch.float16 if major == 7 else None
