"""Number formats by the names that flags and settings give them."""

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What a model runs under in autocast; float32 runs without.
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
