"""Which implementation of attention runs fastest where the model is."""

import torch


def choose_attention(device: str | torch.device, dtype: torch.dtype | None) -> tuple[str, str]:
    """The fastest attention that runs there, by transformers' name, and why it is this one."""
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
    except (ImportError, OSError) as error:  # built for another torch: undefined symbols
        return "sdpa", f"flash-attn is installed but does not load: {error}"
    return "flash_attention_2", f"flash-attn {flash_attn.__version__}"
