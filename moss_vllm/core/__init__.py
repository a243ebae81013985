"""The paper: space-time self-similarity and the modules built on it (torch and einops only)."""

from moss_vllm.core.moss import MOSS
from moss_vllm.core.stss import stss, stss_plain

__all__ = ["MOSS", "stss", "stss_plain"]
