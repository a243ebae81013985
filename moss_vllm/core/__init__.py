"""The paper: space-time self-similarity and the modules built on it (torch and einops; Triton on a GPU)."""

from moss_vllm.core.encoder import stss_path
from moss_vllm.core.ladder import Ladder
from moss_vllm.core.moss import MOSS
from moss_vllm.core.presets import build_ladder, build_temporal
from moss_vllm.core.stss import stss, stss_plain

__all__ = ["MOSS", "Ladder", "build_ladder", "build_temporal", "stss", "stss_path", "stss_plain"]
