"""Parameters, multiply-adds and memory of AdaTAD with and without MOSS, beside what AdaTAD's own code takes.

One window of 768 frames, as in AdaTAD. Nothing is run: models and windows are tensors without data, at their
true sizes. Memory is that of a training step under bfloat16 autocast, see `moss_vllm/detection/memory.py`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from multiply_adds import MacCounter
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode

from moss_vllm.detection.adatad import AdaTAD
from moss_vllm.detection.build import build_adatad
from moss_vllm.detection.memory import estimate_memory

FRAMES = 768
SIZES_PX = (160, 224)
PARTS = ("encoder", "adapters", "moss", "detector")


class Counted(NamedTuple):
    """What was counted on AdaTAD's own blocks, in GB and 1e12 multiply-adds of the encoder alone.

    Its average is over all weights, the frozen ones too; here it is over those that train.
    """

    encoder_macs: float
    checkpoints: float
    layer_at_work: float
    weights: float  # with their average, gradients and Adam's states
    pixels: float  # float32; here a batch holds uint8
    total: float


COUNTED = {
    ("b", 160): Counted(3.8, 1.4, 0.9, 1.3, 0.24, 4.5),
    ("b", 224): Counted(8.6, 2.8, 1.7, 1.3, 0.46, 7),
    ("l", 160): Counted(13.1, 3.8, 1.2, 3.2, 0.24, 9),
    ("l", 224): Counted(28.5, 7.4, 2.3, 3.2, 0.46, 15),
}
MEMORY = {
    "checkpoints": "checkpoints",
    "layer_at_work": "layer at work",
    "weights": "weights",
    "total": "step",
    "kept": "kept",
}
# Millions of parameters, counted on AdaTAD's code and on MOSS with zero start.
COUNTED_PARAMETERS = {
    "b": {"encoder": 86.2, "adapters": 4.00, "moss": 1.211, "detector": 27.29},
    "l": {"encoder": 303.9, "adapters": 14.2, "moss": 2.718, "detector": 27.68},
}


def detection_costs() -> list[dict[str, Any]]:
    """A row for each variant, size of frames, and with MOSS or without."""
    rows = []
    for variant, size_px in COUNTED:
        for temporal in ("none", "moss"):
            with torch.device("meta"):
                model = build_adatad(variant=variant, weights="random", temporal=temporal)
            rows.append(
                {
                    "name": f"AdaTAD-{variant.upper()}{' + MOSS' * (temporal == 'moss')}, {size_px} px",
                    "parameters": parameters_by_part(model),
                    **multiply_adds(model, size_px),
                    "memory": memory(model, size_px),
                    "counted": COUNTED[variant, size_px]._asdict(),
                    "counted_parameters": COUNTED_PARAMETERS[variant],
                }
            )
    return rows


def parameters_by_part(model: AdaTAD) -> dict[str, float]:
    """Millions of parameters; the encoder's are frozen."""
    counts = dict.fromkeys(PARTS, 0.0)
    for name, parameter in model.named_parameters():
        part = next(part for part in PARTS if name.startswith(part))
        counts[part] += parameter.numel() / 1e6
    return counts


def multiply_adds(model: AdaTAD, size_px: int) -> dict[str, float]:
    """1e12 multiply-adds of a window's forward pass: of the encoder alone, and of the whole model."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        fake = model.to_empty(device="cpu").eval()
        clips = torch.empty(1, FRAMES, 3, size_px, size_px, dtype=torch.uint8)
        with MacCounter() as encoder:
            fake.encoder(clips, length=FRAMES)
        with MacCounter() as whole:
            fake(clips, torch.ones(1, FRAMES, dtype=torch.bool))
    return {"encoder_macs": encoder.macs / 1e12, "macs": whole.macs / 1e12}


def memory(model: AdaTAD, size_px: int) -> dict[str, float]:
    """GB of a training step by the parts of `Counted`."""
    found = estimate_memory(model, windows=1, frames=FRAMES, size_px=size_px, precision="bf16")
    weights = found.frozen_weights + found.trained_weights + found.average + found.gradients
    parts = {
        "checkpoints": found.encoder,
        "layer_at_work": found.at_work,
        "detector": found.head,
        "weights": weights + found.optimizer_states,
        "pixels": found.pixels,
        "kept": found.kept,
        "total": found.total,
    }
    return {part: count / 1e9 for part, count in parts.items()}


def detection_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Ours, and in brackets what was counted on AdaTAD's own code."""
    title = f"Table 8: a window of {FRAMES} frames, bf16; in brackets: counted on AdaTAD's own blocks"
    table = Table("", title=title, title_justify="left")
    for column in (
        "trained, M",
        "encoder, TMAC",
        "forward, TMAC",
        *(f"{head}, GB" for head in MEMORY.values()),
    ):
        table.add_column(column, justify="right")
    for row in rows:
        parts, expected = row["parameters"], row["counted_parameters"]
        trained = [part for part in PARTS if part != "encoder" and parts[part]]
        cells = [f"{sum(parts[one] for one in trained):.2f} ({sum(expected[one] for one in trained):.2f})"]
        cells += [f"{row['encoder_macs']:.2f} ({row['counted']['encoder_macs']:g})", f"{row['macs']:.2f}"]
        for part in MEMORY:
            found, counted = row["memory"][part], row["counted"].get(part)
            cells.append((f"{found:.2f}" + (f" ({counted:g})" if counted else "")) if found else "-")
        table.add_row(row["name"], *cells)
    return table


NOTES = (
    "  MOSS is computed again with the layer before it; on AdaTAD's own blocks it kept 0.4 to 1.2 GB.",
    "  layer at work: with gradients under way, which were not counted on AdaTAD's blocks.",
    "  weights: with gradients, Adam's states and the average, which AdaTAD takes of frozen ones too.",
    "  step: AdaTAD's is with MOSS; its pixels are float32, ours uint8.",
)


if __name__ == "__main__":
    raise SystemExit("experiments/detection_cost.py is a part of efficiency.py, not a command")
