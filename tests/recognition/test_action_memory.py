"""Owns: the estimate of a classifier's step is what a real one holds, with blocks kept and computed again."""

from contextlib import nullcontext

import pytest
import torch
from rich.console import Console

from moss_vllm.core.presets import MINI
from moss_vllm.recognition.build import build_classifier
from moss_vllm.recognition.memory import FOR_TENSORS, estimate_memory, show_memory, views_that_fit
from moss_vllm.training.alive import AliveBytes
from moss_vllm.training.step_memory import GIB

FRAMES, SIZE_PX = 8, 84
OTHERS = ("full", "aim", "dist")
VIT = "vit_tiny_patch16_224.augreg_in21k"  # of timm, for the hosts that take plain layers


def build(host="ladder", temporal="moss"):
    torch.manual_seed(0)
    backbone = None if host in ("ladder", "dist") else VIT
    return build_classifier(
        host=host,
        variant=MINI,
        backbone=backbone,
        classes=12,
        temporal=temporal,
        weights="random",
        frames=FRAMES,
        image_size=SIZE_PX if backbone is None else 96,
    ).train()


def held(model, views, size_px, precision):
    """Bytes alive at the peak of a second step with AdamW, weights and states counted."""
    video = torch.randn(views, FRAMES, 3, size_px, size_px)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    given = [*model.parameters(), *model.buffers(), video]
    for _ in range(2):
        states = [value for state in optimizer.state.values() for value in state.values()]
        always = sum(tensor.nbytes for tensor in (*given, *states))
        with AliveBytes(*given, *states) as alive:
            with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
                logits = model(video)
            logits.float().square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        del logits
    return always + alive.peak


@pytest.mark.parametrize(
    ("host", "temporal", "precision"),
    [
        ("ladder", "moss", "fp32"),
        ("ladder", "moss", "bf16"),
        ("ladder", "none", "fp32"),
        *(pytest.param(host, "moss", "fp32", marks=pytest.mark.slow) for host in OTHERS),
    ],
)
@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_the_estimate_is_what_a_step_holds(host, temporal, precision, checkpoint_blocks):
    model = build(host, temporal)
    model.set_checkpoint_blocks(checkpoint_blocks)
    size_px = 96 if host in ("full", "aim") else SIZE_PX
    found = estimate_memory(model, views=4, frames=FRAMES, size_px=size_px, precision=precision)
    assert 1 <= found.total / held(model, 4, size_px, precision) <= 1.15


@pytest.mark.parametrize("host", ["ladder", *(pytest.param(h, marks=pytest.mark.slow) for h in OTHERS)])
def test_blocks_computed_again_give_equal_steps_and_keep_less(host):
    found, kept = [], []
    for on in (False, True):
        model = build(host)
        model.set_checkpoint_blocks(on)
        size_px = 96 if host in ("full", "aim") else SIZE_PX
        torch.manual_seed(1)
        model(torch.randn(2, FRAMES, 3, size_px, size_px)).square().sum().backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad] + list(model.buffers()))
        sizes = {"views": 4, "frames": FRAMES, "size_px": size_px, "precision": "fp32"}
        kept.append(estimate_memory(model, **sizes).encoder)
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-6, atol=1e-7)
    assert kept[1] < 0.6 * kept[0]


@pytest.mark.slow
def test_what_fits_on_a_card_is_as_estimated(capsys):
    model = build()
    sizes = {"frames": FRAMES, "size_px": SIZE_PX, "precision": "fp32"}
    one, two = (estimate_memory(model, views=views, **sizes) for views in (1, 2))
    fit = views_that_fit(one, two, 0.25)
    most = FOR_TENSORS * 0.25 * GIB
    assert estimate_memory(model, views=fit, **sizes).total <= most
    assert estimate_memory(model, views=fit + 2, **sizes).total > most
    assert views_that_fit(one, two, 0.001) == 0
    show_memory(Console(width=110), model, views=400, **sizes)
    told = capsys.readouterr().out
    total = next(line for line in told.splitlines() if "total" in line).split("│")[2]
    assert float(total) == pytest.approx(estimate_memory(model, views=400, **sizes).total / GIB, rel=0.02)
    assert "400 views, --checkpoint-blocks" in told and "every block kept: " in told
    assert f"{views_that_fit(one, two, 24)} on 24 GiB" in told and not model.checkpoint_blocks
    assert not model.ladder.checkpoint_blocks
