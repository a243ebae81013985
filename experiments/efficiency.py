"""The cost of the paper's models: parameters, FLOPs and memory beside its Tables 3, 4, 6, 8, 9, 10.

    python experiments/efficiency.py                         # all tables in three minutes: no weights, no GPU
    python experiments/efficiency.py --table 4 --json cost.json
    python experiments/efficiency.py --table 6 --device cuda  # also measures training steps' peak memory
    python experiments/efficiency.py --table 8                # detection: AdaTAD with and without MOSS
    python experiments/efficiency.py --table 9                # boundaries: BasicGEBD with and without MOSS

FLOPs are multiply-adds in 1e9 on 8 frames of 224 x 224 (16 for DiST, whose image encoder sees 8 of them),
image encoder included, counted as the paper counts them: matrix products, convolutions, attention, 5 per
element of a LayerNorm or BatchNorm, nothing else. The correlation counts as whole frames against whole frames
at every temporal offset, also past the clip's ends; the table "STSS of one order" shows the multiply-adds
that are needed here instead. TP is trainable parameters in millions.

"kept" is the memory that autograd keeps of the trained part from forward for backward, in float32, without
parameters and inputs: MB per clip, and GB at the paper's batch (32 clips for ViT-B, 16 for ViT-L). The
paper's Mem (GB) includes more, such as the encoder's layers and the optimizer's state, in a precision that
the paper does not name. "peak" (GB) is the measured peak of a training step, frozen encoder included, in
float32 and under bfloat16 autocast.
"""

import json
import math
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rich.table import Table

from moss_vllm.report import plots
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.screen import Screen


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("--table", choices=["3", "4", "6", "8", "9", "10", "video-llm", "all"], default="all")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help='"cuda" adds measured peaks; weights are random',
    )
    return parser


if __name__ == "__main__":
    answer_help(options)

import torch
import torch.nn.functional as F
from boundary_cost import boundary_costs, boundary_table, published_notes
from detection_cost import NOTES, detection_costs, detection_table
from kept_for_backward import KeptForBackward
from multiply_adds import MacCounter, correlation_macs
from paper_tables import TABLES, Row
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from moss_vllm.core.presets import LADDERS, VIDEO_LLM, LadderPreset
from moss_vllm.core.stss import stss
from moss_vllm.encoders.image import ImageEncoder
from moss_vllm.recognition.build import build_classifier
from moss_vllm.recognition.hosts.classifier import VideoClassifier
from moss_vllm.vlm.video_llama3.model import MossVideoLlama3VisionConfig, MossVideoLlama3VisionModel

FRAMES, IMAGE_SIZE, CLASSES = 8, 224, 174
PRECISIONS = {"peak f32": torch.float32, "bf16": torch.bfloat16}
COMPUTED = ("FLOPs", "TP", "kept MB/clip", "kept")
PARTS = {"norm": "norm + in_proj", "in_proj": "norm + in_proj"}
TOLERANCE = {"FLOPs": 0.5, "TP": 0.1}  # a larger difference, beyond rounding, needs a note in the row


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Compute and print; returns the content of the --json file."""
    parser = options()
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; the tables without measured peaks need no --device")
    if args.json is not None:
        if args.json.is_dir():
            parser.error(f"--json takes a file, and {args.json} is a folder")
        try:
            args.json.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--json {args.json}: its folder cannot be made ({error.strerror})")

    console = Screen(width=130)
    results: dict[str, Any] = {}
    for name, rows in TABLES.items():
        if args.table in ("all", name.rstrip("abcde")):
            results[name] = [measure(row, device) for row in rows if not row.added]
            console.print(cost_table(name, results[name]))
            for row in results[name]:
                for line in [f"* {row['note']}"] if row["note"] else unexplained(row):
                    console.print(f"  {row['name']}: {line}")
    if args.table in ("6", "all"):
        results["stss"] = correlation_costs()
        console.print(correlation_table(results["stss"]))
    if args.table in ("8", "all"):
        results["8"] = detection_costs()
        console.print(detection_table(results["8"]), *NOTES, sep="\n")
    if args.table in ("9", "all"):
        results["9"] = boundary_costs()
        console.print(boundary_table(results["9"]), *published_notes(), sep="\n")
    if args.table in ("video-llm", "all"):
        results["video-llm"] = video_llm_parameters()
        console.print(video_llm_table(results["video-llm"]), *VIDEO_LLM_READINGS, sep="\n")
    if args.json is not None:
        with plots.whole_file(args.json) as part:
            part.write_text(json.dumps(results, indent=1))
    return results


def measure(row: Row, device: torch.device) -> dict[str, Any]:
    """A row's numbers beside the paper's, in the units of the tables."""
    results: dict[str, Any] = {"name": row.name, "note": row.note, "paper": row.paper}
    macs, parameters, kept = cost(row.host, row.preset, row.batch, tuple(row.options.items()))
    results["FLOPs"] = row.views * macs / row.batch / 1e9
    results |= {"TP": parameters / 1e6, "kept MB/clip": kept / row.batch / 1e6, "kept": kept / 1e9}
    if device.type == "cuda":
        results |= {name: peak_memory(row, device, dtype) for name, dtype in PRECISIONS.items()}
    return results


def unexplained(row: dict[str, Any]) -> list[str]:
    """A row's differences from the paper beyond `TOLERANCE` and the paper's rounding."""
    missed = []
    for unit, tolerance in TOLERANCE.items():
        printed = row["paper"][unit]
        allowed = max(tolerance, 0.05 if "." in printed else 0.5)
        if printed != "-" and abs(row[unit] - float(printed)) > allowed:
            missed.append(f"! {unit} {row[unit]:.2f} instead of {printed}, unexplained")
    return missed


@cache
def cost(
    host: str, preset: LadderPreset, batch: int, options: tuple[tuple[str, Any], ...]
) -> tuple[int, int, int]:
    """Multiply-adds of a batch, trained parameters, and bytes that the batch keeps for backward."""
    with torch.device("meta"):  # timm builds models on it, but not with fake tensors
        model = build_model(host, preset, dict(options))
    # Fake tensors have no data either, but name the device "cpu", for which autocast works.
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        video = torch.empty(batch, FRAMES * model.frames_per_encoded, 3, IMAGE_SIZE, IMAGE_SIZE)
        with MacCounter() as counter, KeptForBackward(model, [video]) as kept:
            for encoder in model.modules():
                if isinstance(encoder, ImageEncoder):  # its output is the trained part's input
                    encoder.register_forward_hook(lambda encoder, frames, taps: kept.exclude(taps))
            model(video)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return counter.macs, trained, kept.total_bytes()


def build_model(
    host: str, preset: LadderPreset, options: dict[str, Any], image_size: int = IMAGE_SIZE
) -> VideoClassifier:
    """The model of a row, with random weights."""
    named = {name: options.pop(name) for name in ("temporal", "temporal_layers") if name in options}
    sizes = {"classes": CLASSES, "frames": FRAMES, "image_size": image_size}
    return build_classifier(
        host=host, variant=preset, weights="random", temporal_options=options, **sizes, **named
    )


def peak_memory(row: Row, device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak GB of a training step, frozen encoder included; None if the GPU is too small."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        with device:
            model = build_model(row.host, row.preset, dict(row.options))
            video = torch.randn(row.batch, FRAMES * model.frames_per_encoded, 3, IMAGE_SIZE, IMAGE_SIZE)
            labels = torch.randint(CLASSES, (row.batch,))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        for _ in range(2):  # in the first step the optimizer has no state yet
            train_step(model, optimizer, video, labels, dtype)
    except torch.cuda.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated(device) / 1e9


def train_step(
    model: VideoClassifier, optimizer: Optimizer, video: Tensor, labels: Tensor, dtype: torch.dtype
) -> float:
    """One step on a batch; returns its loss."""
    with torch.autocast(video.device.type, dtype, enabled=dtype != torch.float32):
        loss = F.cross_entropy(model(video), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def correlation_costs() -> list[dict[str, Any]]:
    """One order's STSS of a clip, multiply-adds in 1e9: the paper's count, ours, the least possible."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # keeps the profiler from reporting a missing GPU
    cases: list[Any] = [(name, p, (IMAGE_SIZE // p.patch_size,) * 2) for name, p in LADDERS.items()]
    cases.append(("Video-LLM, 16 x 28 patches", VIDEO_LLM, (16, 28)))
    results = []
    for name, preset, grid in cases:
        size = (FRAMES, *grid)
        x = torch.randn(1, *size, preset.d_hidden)
        with torch.autograd.profiler.profile(with_flops=True, use_kineto=False) as profile:
            stss(x, preset.window)
        flops = sum(e.flops for e in profile.key_averages() if e.key in ("aten::mm", "aten::bmm"))
        pairs = [
            sum(max(0, n - abs(d)) for d in range(-(k // 2), k // 2 + 1))
            for n, k in zip(size, preset.window, strict=True)
        ]
        here, least = flops / 2e9, math.prod(pairs) * preset.d_hidden / 1e9
        paper = correlation_macs(None, x, preset.window) / 1e9
        results.append(
            {"name": name, "as the paper counts": paper, "here, on a CPU": here, "inside windows": least}
        )
    return results


def video_llm_parameters() -> dict[str, float]:
    """Millions of parameters of VideoLLaMA3's MOSS, part by part and in all."""
    with torch.device("meta"):
        config = MossVideoLlama3VisionConfig(hidden_size=VIDEO_LLM.d_in)
        moss = MossVideoLlama3VisionModel(config).moss
    parts: dict[str, float] = {}
    for name, parameter in moss.named_parameters():
        order, module = name.split(".")[:2]
        part = "FC(F)" if order == "input_fc" else f"{order} {PARTS.get(module, module)}"
        parts[part] = parts.get(part, 0.0) + parameter.numel() / 1e6
    return {**parts, "all": sum(parts.values())}


def cost_table(name: str, rows: Sequence[dict[str, Any]]) -> Table:
    """One table of the paper, its columns right of ours."""
    measured = [key for key in PRECISIONS if any(key in row for row in rows)]
    table = Table("", title=f"Table {name}", title_justify="left")
    for column in ("FLOPs", "paper", "TP", "paper", "kept MB/clip", "kept", *measured, "Mem, paper"):
        table.add_column(column, justify="right")
    for row in rows:
        cells = {key: "-" if row.get(key) is None else f"{row[key]:.2f}" for key in (*COMPUTED, *measured)}
        flops, trainable, *memory = cells.values()
        paper = row["paper"]
        label = f"{row['name']} *" if row["note"] else row["name"]
        table.add_row(label, flops, paper["FLOPs"], trainable, paper["TP"], *memory, paper["Mem"])
    return table


def correlation_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The result of `correlation_costs` as a table."""
    _, *columns = rows[0]
    table = Table("", title=f"STSS of one order, {FRAMES} frames: multiply-adds (G)", title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row["name"], *(f"{row[column]:.3f}" for column in columns))
    return table


VIDEO_LLM_READINGS = (
    "  The paper prints D, the window and the orders, but no other width, and no reading tried gives 13.7:",
    "  13.20 if order 2 reads the FC output of order 1 (zero at the first step, so it could not start);",
    "  13.69 if besides a 3x3 convolution stands for the FC over (U, V) of Sec. 3.3; 13.79 if instead the",
    "  similarity has 512 channels; 13.64 with 512, a third 3x3 block and no FC(F).",
)


def video_llm_table(parts: dict[str, float]) -> Table:
    """The result of `video_llm_parameters` as a table."""
    table = Table("", title="MOSS in VideoLLaMA3-2B", title_justify="left")
    table.add_column("parameters (M)", justify="right")
    for part, millions in parts.items():
        table.add_row(part, f"{millions:.3f}")
    table.add_row("the paper", f"{VIDEO_LLM.paper_added_m}")
    return table


if __name__ == "__main__":
    main()
