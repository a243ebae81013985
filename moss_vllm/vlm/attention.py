"""Choosing the fastest implementation of attention on a device."""

import torch


def choose_attention(device: str | torch.device, dtype: torch.dtype | None) -> tuple[str, str]:
    """The fastest attention that runs on the device, by transformers' name, and the reason for the choice."""
    kind = torch.device(device).type
    if kind != "cuda":
        return "sdpa", f"flash-attn needs a CUDA device, this is {kind}"
    if dtype not in (torch.bfloat16, torch.float16):
        return "sdpa", f"flash-attn needs a bf16 or fp16 base, this one is {dtype or torch.float32}"
    try:
        import flash_attn
    except ModuleNotFoundError as error:
        if error.name == "flash_attn":
            return "sdpa", "flash-attn is not installed: pip install flash-attn --no-build-isolation"
        return "sdpa", f"flash-attn is installed but does not load: {error}"
    except (ImportError, OSError) as error:  # a build for another torch has undefined symbols
        return "sdpa", f"flash-attn is installed but does not load: {error}"
    return "flash_attention_2", f"flash-attn {flash_attn.__version__}"
