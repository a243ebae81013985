"""Owns: a frozen encoder in 16 bits hands over float32, near what it is in 32, where that was asked for."""

import pytest
import torch

from moss_vllm.encoders.image import open_encoder
from moss_vllm.recognition.build import build_classifier
from moss_vllm.recognition.testing import number_formats
from moss_vllm.runtime.precision import DTYPES, fast_half


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_a_16_bit_encoder_hands_over_float32_near_the_others(name):
    encoder = open_encoder("mini_vit", layers=(1, 3), weights="random")
    frames = torch.randn(2, 3, 84, 84)
    plain = encoder(frames)
    encoder.dtype = DTYPES[name]
    seen = []
    encoder.vit.blocks[0].mlp.fc1.register_forward_hook(lambda *called: seen.append(called[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):  # what is set around makes no difference
        found = encoder(frames)
    assert seen == [DTYPES[name]] and all(tap.dtype == torch.float32 for tap in found)
    for one, other in zip(found, plain, strict=True):
        error = float((one - other).norm() / other.norm())
        assert error == 0 if name == "fp32" else 0 < error < 0.02
    encoder.dtype = None
    assert all(torch.equal(one, other) for one, other in zip(encoder(frames), plain, strict=True))


def test_the_fast_format_is_the_devices():
    cpu, card = torch.device("cpu"), torch.device("cuda")
    found = [fast_half(card, lambda device, major=major: (major, 0)) for major in (6, 7, 8, 9, 12)]
    assert found == [None, torch.float16, torch.bfloat16, torch.bfloat16, torch.bfloat16]
    assert fast_half(cpu) is None
    ladder = build_classifier(variant="mini", classes=3, weights="random", image_size=84)
    ladder.set_encoder_precision("auto", cpu)
    assert ladder.encoder.dtype is None
    ladder.set_encoder_precision("bf16", cpu)
    assert ladder.encoder.dtype == torch.bfloat16
    full = build_classifier(host="full", backbone="test_vit", classes=3, weights="random", temporal="none")
    full.set_encoder_precision("auto", card)
    with pytest.raises(ValueError, match="encoder_precision=bf16 is of an encoder that runs by itself"):
        full.set_encoder_precision("bf16", cpu)


def test_a_test_records_an_encoders_format_where_it_is_another():
    ladder = build_classifier(variant="mini", classes=3, weights="random", image_size=84)
    cpu, found = torch.device("cpu"), {}
    for name in ("auto", "fp32", "bf16"):
        ladder.set_encoder_precision(name, cpu)
        found[name] = [number_formats(ladder, dtype) for dtype in (None, torch.bfloat16)]
    rest = [{"dtype": f"torch.{name}", "encoder_dtype": None} for name in ("float32", "bfloat16")]
    assert found["auto"] == rest and found["fp32"][0] == rest[0] and found["bf16"][1] == rest[1]
    assert found["fp32"][1] == rest[1] | {"encoder_dtype": "torch.float32"}
    assert found["bf16"][0] == rest[0] | {"encoder_dtype": "torch.bfloat16"}
