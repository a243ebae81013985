"""Owns: the estimate of a detector's step is what a real one holds.

test_detection_cost.py compares it with what was counted on AdaTAD's own code, at all of its sizes.
"""

from contextlib import nullcontext

import pytest
import torch
from rich.console import Console
from transformers import VideoMAEConfig

from moss_vllm.detection.build import build_adatad
from moss_vllm.detection.memory import estimate_memory
from moss_vllm.training.alive import AliveBytes
from moss_vllm.training.step_memory import GIB, parts_table

WIDTH, LAYERS = 64, 2
DETECTOR = {"embed": 1, "stem": 1, "levels": 3, "dim": 64}
MOSS = {"window": (3, 5, 5), "d_hidden": 32, "d_similarity": 16}
SIZES = {"windows": 1, "frames": 32, "size_px": 64}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """A function that builds AdaTAD on a small VideoMAE."""
    folder = tmp_path_factory.mktemp("videomae")
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    VideoMAEConfig(intermediate_size=4 * WIDTH, **sizes).save_pretrained(folder)

    def run(temporal="moss", **more):
        options = {"encoder": folder, "weights": "random", "classes": 4, "detector_options": DETECTOR, **more}
        options["temporal_options"] = MOSS if temporal == "moss" else {}
        return build_adatad(temporal=temporal, temporal_layers=(2,), **options)

    return run


def train_step(model, precision):
    """Bytes alive at the peak of a second step with AdamW, weights and states counted."""
    clips = torch.randint(256, (1, 32, 3, 64, 64), dtype=torch.uint8)
    mask = torch.ones(1, 32, dtype=torch.bool)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    given = [*model.parameters(), *model.buffers(), clips]
    for _ in range(2):
        states = [value for state in optimizer.state.values() for value in state.values()]
        always = sum(tensor.nbytes for tensor in (*given, *states))
        with AliveBytes(*given, mask, *states) as alive:
            with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
                levels = model(clips, mask)
                loss = sum(out.float().square().sum() for level in levels for out in level[:2])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        del loss, levels
    return always + alive.peak


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "precision"),
    [
        ({}, "fp32"),
        ({}, "bf16"),
        ({"temporal": "none"}, "bf16"),
        ({"temporal": "selfy"}, "fp32"),
        ({"checkpointing": False}, "fp32"),
    ],
)
def test_the_estimate_is_what_a_step_holds(build, more, precision):
    torch.manual_seed(0)
    model = build(**more).train()
    found = estimate_memory(model, precision=precision, average=False, **SIZES)
    assert 1 <= found.total / train_step(model, precision) <= 1.1  # gradients are counted that come later


@pytest.mark.slow
def test_the_model_is_left_as_it_was(build):
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    estimate_memory(model, windows=2, frames=32, size_px=32, precision="fp32")
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.detector._forward_pre_hooks and not model.moss._forward_hooks


def test_checkpoints_are_each_layers_input_with_moss_too(build):
    stream = 32 // 2 * 4 * 4 * WIDTH * 4
    plain = estimate_memory(build("none"), precision="fp32", **SIZES)
    features = 32 * WIDTH * 4
    assert plain.encoder == pytest.approx(LAYERS * stream + features, rel=0.01) and plain.temporal == 0
    moss = estimate_memory(build(), precision="fp32", **SIZES)
    assert (moss.encoder, moss.temporal, moss.head) == (plain.encoder, 0, plain.head)
    kept = estimate_memory(build(checkpointing=False), precision="fp32", **SIZES)
    assert kept.encoder > 4 * plain.encoder and kept.head > 2 * plain.head
    assert kept.temporal > 0 and kept.at_work < plain.at_work


def test_an_average_is_as_large_as_what_trains(build):
    with_average = estimate_memory(build(), precision="fp32", **SIZES)
    trained = sum(p.nbytes for p in build().parameters() if p.requires_grad)
    assert with_average.trained_weights == with_average.average == with_average.gradients == trained
    without = estimate_memory(build(), precision="fp32", average=False, **SIZES)
    assert with_average.optimizer_states == 2 * trained and with_average.total - without.total == trained


def test_the_table_has_every_part_and_an_unknown_precision_is_refused(build):
    model = build()
    found = estimate_memory(model, precision="fp32", **SIZES)
    console = Console(width=100)
    with console.capture() as capture:
        console.print(parts_table({"small": found}, title="a step"))
    rows = [line.split("│") for line in capture.get().splitlines() if line.startswith("│")]
    shown = {row[1].strip(): float(row[2]) for row in rows}
    assert shown["total"] == pytest.approx(found.total / GIB, abs=0.005)
    assert sum(shown.values()) == pytest.approx(2 * shown["total"], abs=0.1)
    with pytest.raises(ValueError, match="unknown precision 'int8'"):
        estimate_memory(model, precision="int8", **SIZES)
