"""Owns: the fastest attention that runs on a device is chosen, with the reason."""

import sys
import types

import pytest
import torch

from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.attention import choose_attention


@pytest.fixture
def flash(monkeypatch):
    """flash-attn as installed where it works."""
    module = types.ModuleType("flash_attn")
    module.__version__ = "2.8"
    monkeypatch.setitem(sys.modules, "flash_attn", module)


def test_attention_is_flash_where_it_runs(flash):
    assert choose_attention("cuda:1", torch.bfloat16) == ("flash_attention_2", "flash-attn 2.8")
    assert choose_attention("cuda", torch.float16)[0] == "flash_attention_2"
    assert choose_attention("cpu", torch.bfloat16) == (
        "sdpa",
        "flash-attn needs a CUDA device, this is cpu",
    )
    for dtype in (None, torch.float32):
        reason = "flash-attn needs a bf16 or fp16 base, this one is torch.float32"
        assert choose_attention("cuda", dtype) == ("sdpa", reason)


def test_attention_without_flash_says_why(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    if not __import__("importlib.util").util.find_spec("flash_attn"):
        name, reason = choose_attention("cuda", torch.bfloat16)
        assert name == "sdpa" and reason.startswith("flash-attn is not installed: pip install flash-attn")
    (tmp_path / "flash_attn.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    assert choose_attention("cuda", torch.bfloat16) == (
        "sdpa",
        "flash-attn is installed but does not load: undefined symbol: _ZN3c10",
    )


def test_the_attention_asked_for_is_used(tiny_base):
    for source in (None, "eager"):
        model = checkpoint.load(tiny_base, attention=source).model
        assert model.config._attn_implementation == (source or "sdpa")
