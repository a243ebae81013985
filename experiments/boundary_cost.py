"""Parameters, multiply-adds and memory of BasicGEBD with and without MOSS, beside its authors' figures.

One clip of 100 frames of 224 x 224 pixels. Nothing is run: model and clip are tensors without data, at their
true sizes. "kept" is what the forward pass of a training step leaves for backward, without weights and
pixels; "step" is the most that is alive at once, with weights, gradients and SGD's momentum. Both are in GB:
where everything is kept, and where the ResNet is computed again by chunks of frames.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from multiply_adds import MacCounter
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode

from moss_vllm.boundaries.build import build_gebd
from moss_vllm.boundaries.gebd import GEBD
from moss_vllm.training.alive import AliveBytes

FRAMES, SIZE_PX, CHUNK_FRAMES = 100, 224, 10
PARTS = ("encoder", "moss", "head")
ROWS = {"BasicGEBD": "none", "+ MOSS": "moss"}
WITHOUT_DATA = FakeTensorMode(allow_non_fake_inputs=True)
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
# Counted on the authors' code: millions of parameters that BasicGEBD-L4 uses; 1e9 multiply-adds of a frame,
# norms left out; GB kept of a clip, where autocast keeps activations in both types.
COUNTED = {"parameters": 30.98, "macs": 4.344, "fp32, whole": 4.27, "bf16, whole": 6.37}


class Published(NamedTuple):
    """EfficientGEBD's README: F1@0.05 on Kinetics-GEBD, multiply-adds of a frame (1e9), frames a second."""

    f1: float
    macs: float
    frames_per_s: int


PUBLISHED = {
    "BasicGEBD R50-L4": Published(77.1, 4.36, 1562),
    "BasicGEBD R50-L2": Published(76.8, 2.08, 2325),
    "EfficientGEBD R50-L2*": Published(78.3, 2.10, 2116),
    "EfficientGEBD R50-L4*": Published(78.7, 4.39, 1541),
}


def boundary_costs() -> list[dict[str, Any]]:
    """A row for BasicGEBD, and one with MOSS."""
    rows = []
    for name, temporal in ROWS.items():
        memory = {
            f"{kind}, {how}": memory_gb(temporal, dtype, chunk_frames)
            for kind, dtype in PRECISIONS.items()
            for how, chunk_frames in (("whole", None), ("chunks", CHUNK_FRAMES))
        }
        parameters = parameters_by_part(open_model(temporal))
        rows.append(
            {"name": name, "parameters": parameters, "macs": multiply_adds(temporal), "memory": memory}
        )
    return rows


def open_model(temporal: str, chunk_frames: int | None = CHUNK_FRAMES) -> GEBD:
    """The model at true size; its tensors have no data, and call themselves a CPU's, where autocast works."""
    with torch.device("meta"):
        model = build_gebd(weights="random", temporal=temporal, chunk_frames=chunk_frames)
    with WITHOUT_DATA:
        return model.to_empty(device="cpu")


def parameters_by_part(model: GEBD) -> dict[str, float]:
    """Millions of parameters; the frozen first convolution counts with the encoder's."""
    counts = dict.fromkeys(PARTS, 0.0)
    for name, parameter in model.named_parameters():
        counts[next(part for part in PARTS if name.startswith(part))] += parameter.numel() / 1e6
    return counts


def multiply_adds(temporal: str) -> float:
    """1e9 multiply-adds of a frame, in a clip's forward pass."""
    model = open_model(temporal).eval()
    with WITHOUT_DATA, torch.no_grad(), MacCounter() as counter:
        model(a_clip())
    return counter.macs / FRAMES / 1e9


def memory_gb(temporal: str, dtype: torch.dtype | None, chunk_frames: int | None) -> dict[str, float]:
    """What a clip's training step keeps for backward, and all that it takes at its peak."""
    model = open_model(temporal, chunk_frames).train()
    with WITHOUT_DATA:
        clip, gradients = a_clip(), []
        for parameter in model.parameters():
            if parameter.requires_grad:  # so that gradients count once, and not with what is kept
                parameter.grad = torch.empty_like(parameter)
                gradients.append(parameter.grad)
        given = [*model.parameters(), *model.buffers(), clip, *gradients]
        with AliveBytes(*given) as alive:
            with torch.autocast("cpu", dtype) if dtype else nullcontext():
                logits = model(clip)
            kept = alive.now
            logits.sum().backward()
    momentum = gradients
    fixed = sum(tensor.nbytes for tensor in (*given, *momentum))
    return {"kept": kept / 1e9, "step": (alive.peak + fixed) / 1e9}


def a_clip() -> torch.Tensor:
    """A clip of pixels as a batch holds them."""
    return torch.empty(1, FRAMES, 3, SIZE_PX, SIZE_PX, dtype=torch.uint8)


def boundary_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Ours; in brackets: counted on the authors' code."""
    title = f"Table 9: a clip of {FRAMES} frames; in brackets: counted on BasicGEBD's own code"
    table = Table("", title=title, title_justify="left")
    kinds = list(rows[0]["memory"])
    for column in (
        "parameters (M)",
        "GMAC a frame",
        *(f"kept, {kind}" for kind in kinds),
        "step, fp32, chunks",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        counted = COUNTED if row["name"] == "BasicGEBD" else {}
        cells = {"parameters": f"{sum(row['parameters'].values()):.2f}", "macs": f"{row['macs']:.3f}"}
        cells |= {kind: f"{row['memory'][kind]['kept']:.2f}" for kind in kinds}
        told = (f"{cell} ({counted[key]:g})" if key in counted else cell for key, cell in cells.items())
        table.add_row(row["name"], *told, f"{row['memory']['fp32, chunks']['step']:.2f}")
    return table


def published_notes() -> list[str]:
    """What the authors print, for the end of the table."""
    return [
        f"  {name}: F1 {row.f1}, {row.macs} GMAC a frame, {row.frames_per_s} frames a second"
        for name, row in PUBLISHED.items()
    ]


if __name__ == "__main__":
    raise SystemExit("experiments/boundary_cost.py is a part of efficiency.py, not a command")
