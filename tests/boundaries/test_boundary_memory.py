"""Owns: the estimate of a boundary model's step is what a real one holds, and near what was counted."""

from contextlib import nullcontext

import pytest
import torch

from moss_vllm.boundaries.build import build_gebd
from moss_vllm.boundaries.memory import estimate_memory
from moss_vllm.training.alive import AliveBytes

SIZES = {"clips": 2, "frames": 8, "size_px": 48}
MOSS = {"window": (3, 3, 3), "d_hidden": 8, "d_similarity": 8}


def build(temporal="moss", **more):
    options = MOSS if temporal == "moss" else {}
    return build_gebd(variant="mini", temporal=temporal, temporal_options=options, **more)


def train_step(model, precision, optimizer):
    """Bytes alive at the peak of a second step, weights and states counted."""
    clips = torch.randint(256, (2, 8, 3, 48, 48), dtype=torch.uint8)
    given = [*model.parameters(), *model.buffers(), clips]
    for _ in range(2):
        states = [value for state in optimizer.state.values() for value in state.values()]
        always = sum(tensor.nbytes for tensor in (*given, *states))
        with AliveBytes(*given, *states) as alive:
            with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
                logits = model(clips)
                loss = logits.float().square().sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        del loss, logits
    return always + alive.peak


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "precision", "copies"),
    [
        ({"chunk_frames": 4}, "fp32", 1),
        ({"chunk_frames": None, "temporal": "none"}, "bf16", 2),
    ],
)
def test_the_estimate_is_what_a_step_holds(more, precision, copies):
    torch.manual_seed(0)
    model = build(**more).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    of = {1: lambda: torch.optim.SGD(trained, 1e-2, momentum=0.9), 2: lambda: torch.optim.AdamW(trained)}
    found = estimate_memory(model, precision=precision, copies=copies, **SIZES)
    assert 1 <= found.total / train_step(model, precision, of[copies]()) <= 1.1
    assert found.trained_weights == found.gradients == sum(parameter.nbytes for parameter in trained)
    assert found.optimizer_states == copies * found.trained_weights
    assert found.frozen_weights == model.encoder.model.conv1.weight.nbytes
    assert (found.temporal > 0) == (more.get("temporal") != "none")


def test_chunks_keep_less():
    whole, chunks = (
        estimate_memory(build(chunk_frames=one), precision="fp32", copies=1, **SIZES) for one in (None, 4)
    )
    assert chunks.encoder < whole.encoder / 2 and chunks.head < whole.head / 2


@pytest.mark.slow
def test_true_sizes_are_those_of_the_table_of_costs():
    """experiments/efficiency.py --table 9: 4.81 GB of a clip are kept with MOSS, all in float32."""
    with torch.device("meta"):
        model = build_gebd(weights="random", chunk_frames=None)
    found = estimate_memory(model, clips=1, frames=100, size_px=224, precision="fp32", copies=1)
    kept = found.encoder + found.temporal + found.head
    assert kept / 1e9 == pytest.approx(4.81, rel=0.01)
    with pytest.raises(ValueError, match="unknown precision 'int8'; choose one of fp32, bf16, fp16"):
        estimate_memory(model, clips=1, frames=2, size_px=32, precision="int8", copies=1)
