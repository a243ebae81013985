"""The cost of BasicGEBD with MOSS: a training step and a forward pass of one clip.

    python experiments/benchmark_boundaries.py                                   # the miniature, seconds
    python experiments/benchmark_boundaries.py --variant r50 --size-px 224       # true size, minutes of a CPU
    python experiments/benchmark_boundaries.py --variant r50 --size-px 224 --precision fp16 --device cuda

Weights and pixels are random. A step is forward, backward and SGD as BasicGEBD trains, of one clip, each
--temporal by itself in one process and, on a CPU, one thread. CPU seconds do not depend on what else the
machine does. The peak of memory is that of the process, what Python loaded included; on a GPU, that of torch.
"""

import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.table import Table

from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.memory import process_peak_bytes
from moss_vllm.runtime.screen import Screen

PARTS = ("forward", "backward", "SGD", "forward of a test")


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    add = parser.add_argument
    add("--variant", choices=("r50", "mini"), default="mini", help="the model's size (default: %(default)s)")
    add("--frames", type=int, default=100, help="of the clip (default: %(default)s)")
    add("--size-px", type=int, default=64, help="side of a frame, BasicGEBD's are 224 (default: %(default)s)")
    add("--temporal", default="moss", help="the module in MOSS's place, or none (default: %(default)s)")
    add("--chunk-frames", type=int, default=10, help="frames computed again at once; 0 keeps everything")
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="as in the recipe")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="of the model (default: %(default)s)")
    add("--json", type=Path, help="write the results here")
    return parser


if __name__ == "__main__":
    answer_help(options)

import torch
from boundary_cost import PUBLISHED
from measuring import cpu_name, prepare_json, write_json

from moss_vllm.boundaries.build import build_gebd
from moss_vllm.boundaries.loss import boundary_losses
from moss_vllm.runtime.precision import AUTOCAST
from moss_vllm.runtime.versions import versions


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and write the json file of --json; returns its content."""
    parser = options()
    args = parser.parse_args(argv)
    if min(args.frames, args.size_px) < 1 or args.chunk_frames < 0:
        parser.error("--frames and --size-px take 1 or more, --chunk-frames 0 or more")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; leave out --device cuda to measure the CPU")
    prepare_json(parser, args.json)
    torch.set_num_threads(1)
    console, words = Screen(width=130), sys.argv[1:] if argv is None else argv
    record = {
        "command": shlex.join(["python", "experiments/benchmark_boundaries.py", *words]),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if args.device == "cuda" else "not run on a GPU",
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "load_average": os.getloadavg()[0],
        **measure_clip(args),
    }
    console.print(
        f"{args.variant}, {args.temporal}: a clip of {args.frames} x {args.size_px} px, {args.precision}"
    )
    table = Table("", "s", "CPU s")
    for part in PARTS:
        table.add_row(part, *(f"{record[kind][part]:.2f}" for kind in ("seconds", "cpu_seconds")))
    console.print(table)
    console.print(f"loss {record['loss']:.4f}; peak of memory {record['peak_gb']:.2f} GB", end="; ")
    console.print(f"{record['frames_per_s']:.3g} frames a second in a test")
    console.print(f"{record['machine']}; {record['gpu']}; load average {record['load_average']:.1f} before")
    write_json(args.json, record, console)
    return record


def measure_clip(args: Any) -> dict[str, Any]:
    """Seconds by part, the loss and the peak of memory, of one step and one forward pass."""
    torch.manual_seed(0)
    model = build_gebd(
        variant=args.variant,
        temporal=args.temporal,
        weights="random",
        chunk_frames=args.chunk_frames or None,
    ).to(args.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sgd = torch.optim.SGD(trained, lr=1e-2, momentum=0.9, weight_decay=1e-4)
    size = (1, args.frames, 3, args.size_px, args.size_px)
    clips = torch.randint(256, size, dtype=torch.uint8).to(args.device)
    targets = (torch.arange(args.frames, device=args.device)[None] % 25 == 12).float()
    dtype = AUTOCAST[args.precision]
    seconds: dict[str, float] = {}
    cpu_seconds: dict[str, float] = {}

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        begun, begun_cpu = time.monotonic(), time.process_time()
        with torch.autocast(args.device, dtype) if dtype and "forward" in part else nullcontext():
            yield
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds[part], cpu_seconds[part] = time.monotonic() - begun, time.process_time() - begun_cpu

    for _ in range(2 if args.device == "cuda" else 1):  # a GPU's first step chooses its kernels
        model.train()
        with timed("forward"):
            loss = boundary_losses(model(clips), targets).mean()
        with timed("backward"):
            loss.backward()
        with timed("SGD"):
            sgd.step()
        sgd.zero_grad()
    peak = process_peak_bytes()
    if args.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    model.eval()
    for _ in range(2 if args.device == "cuda" else 1):
        with torch.no_grad(), timed("forward of a test"):
            model(clips)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "loss": loss.item(),
        "peak_gb": peak / 1e9,
        "frames_per_s": args.frames / seconds["forward of a test"],
        "published_frames_per_s": PUBLISHED["BasicGEBD R50-L4"].frames_per_s,  # of its authors, without MOSS
    }


if __name__ == "__main__":
    main()
