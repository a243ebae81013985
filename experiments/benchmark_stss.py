"""Time and memory of STSS, of STSS with its linear layer, and of MOSS, against the textbook way.

The textbook way repeats the features L times, unfolds the neighbouring frames, normalises both, multiplies
whole frames with whole frames, and cuts each query's window out of the product; then plain layers. Both ways
run in this process, in turns, on the same weights and data, after their results were compared.

    python experiments/benchmark_stss.py                                # four shapes on the CPU, ten minutes
    python experiments/benchmark_stss.py --shapes a --json stss.json
    python experiments/benchmark_stss.py --shapes efg --parts stss --repeats 1  # long and fine clips: memory
    python experiments/benchmark_stss.py --device cuda --precision bf16

On a CPU, times are CPU time with one thread, which other work on the machine changes little, or wall time
with --threads above 1. On a GPU they come from CUDA events, and the last columns say which share of the
device's own bound is reached: the larger of multiply-adds over its peak and bytes over its bandwidth.
"""

import ctypes
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table

from moss_vllm.report import plots
from moss_vllm.runtime.flags import PRECISIONS, Flags, answer_help
from moss_vllm.runtime.screen import Screen

PARTS = ("stss", "stss+linear", "module")


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("--shapes", default="abcd", help="any of a to g (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all three")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument(
        "--repeats", type=int, default=5, help="steps timed of each way (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the results here")
    return parser


if __name__ == "__main__":
    answer_help(options)

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from kept_for_backward import KeptForBackward
from torch import Tensor, nn

from moss_vllm.core import MOSS, stss
from moss_vllm.core.encoder import UVProjection, stss_path
from moss_vllm.core.stss import Window
from moss_vllm.runtime.precision import DTYPES

# Features (B, T, H, W, C) that STSS compares, window, D, and the module's d_in, d_fuse and d_out.
SHAPES: dict[str, tuple[tuple[int, ...], Window, int, int, int, int]] = {
    "a": ((2, 8, 14, 14, 128), (5, 9, 9), 64, 768, 128, 192),  # MOSS-S
    "b": ((1, 16, 16, 16, 256), (5, 9, 9), 96, 1024, 192, 448),  # MOSS-L
    "c": ((1, 16, 16, 28, 256), (7, 11, 11), 256, 1152, 256, 256),  # VideoLLaMA3
    "d": ((1, 32, 32, 32, 256), (5, 9, 9), 96, 1024, 192, 448),  # MOSS-L on a longer, finer clip
    # For memory: action detection, boundary detection, and the largest window on a fine grid.
    "e": ((1, 384, 14, 14, 128), (7, 11, 11), 64, 768, 128, 768),
    "f": ((1, 100, 28, 28, 128), (7, 11, 11), 64, 512, 128, 512),
    "g": ((1, 32, 32, 32, 256), (7, 11, 11), 96, 1024, 192, 448),
}
# Dense peak in 1e12 FLOP/s by type, and 1e12 bytes/s, from the vendor's data sheets.
GPUS = {
    "H200": ({"float32": 67, "bfloat16": 989, "float16": 989}, 4.8),
    "H100": ({"float32": 67, "bfloat16": 989, "float16": 989}, 3.35),
    "A100": ({"float32": 19.5, "bfloat16": 312, "float16": 312}, 2.0),
}
MIB = 2**20


def textbook_stss(x: Tensor, window: Window) -> Tensor:
    """Eq. 1-2 by whole-frame correlation: (B, T, H, W, C) -> (B, T, H, W, L, U, V)."""
    length, rows, columns = window
    height, width = x.shape[2:4]
    queries = repeat(x, "b t h w c -> (b t l) (h w) c", l=length)
    neighbours = F.pad(x, (0, 0, 0, 0, 0, 0, length // 2, length // 2)).unfold(1, length, 1)
    keys = rearrange(neighbours, "b t h w c l -> (b t l) (h w) c")
    volume = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).transpose(-1, -2)
    volume = volume.view(*x.shape[:2], length, height, width, height, width)
    volume = F.pad(volume, (columns // 2, columns // 2, rows // 2, rows // 2))
    h, w = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    u, v = torch.arange(rows, device=x.device), torch.arange(columns, device=x.device)
    h, w = h[:, None, None, None], w[:, None, None]
    return rearrange(volume[:, :, :, h, w, h + u[:, None], w + v], "b t l h w u v -> b t h w l u v")


class TextbookUVProjection(UVProjection):
    """The same weights, from the textbook's similarity."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, H, W, C) -> (B, T, L, H, W, D)."""
        maps = textbook_stss(features, self.window).to(self.linear.weight.dtype)
        return rearrange(self.linear(maps.flatten(-2)), "b t h w l d -> b t l h w d")


class TextbookMOSS(nn.Module):
    """Two orders in plain layers, with the weights of `moss`."""

    def __init__(self, moss: MOSS) -> None:
        super().__init__()
        self.orders = nn.ModuleList(moss.get_submodule(f"order{n}") for n in moss.orders)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H, W, d_in) -> (B, T, H, W, d_out)."""
        batch, output = x.shape[0], 0
        for order in self.orders:
            features = order.in_proj(order.norm(x))
            maps = textbook_stss(features, order.window).to(features.dtype).flatten(-2)
            maps = rearrange(order.uv_proj.linear(maps), "b t h w l d -> (b t l) d h w")
            maps = order.block2(order.block1(F.gelu(order.uv_proj.batch_norm(maps))))
            fused = order.fuse(
                rearrange(maps, "(b t l) d h w -> (b t) (l d) h w", b=batch, l=order.window[0])
            )
            x = order.out_proj(rearrange(fused, "(b t) d h w -> b t h w d", b=batch))
            output = output + x
        return output


def ways(part: str, shape: str, device: str, dtype: torch.dtype) -> tuple[Tensor, list[nn.Module | Callable]]:
    """The input of one part at one shape, and [textbook, ours] with the same weights."""
    size, window, d_similarity, d_in, d_fuse, d_out = SHAPES[shape]
    torch.manual_seed(0)
    if part == "module":
        moss = MOSS(d_in, d_out, window=window, d_hidden=size[-1], d_similarity=d_similarity, d_fuse=d_fuse)
        moss = moss.to(device, dtype)
        return torch.randn(*size[:4], d_in, device=device, dtype=dtype), [TextbookMOSS(moss), moss]
    x = torch.randn(size, device=device, dtype=dtype)
    if part == "stss":
        return x, [lambda x: textbook_stss(x, window), lambda x: stss(x, window)]
    textbook = TextbookUVProjection(d_similarity, window=window).to(device, dtype)
    ours = UVProjection(d_similarity, window=window).to(device, dtype)
    ours.load_state_dict(textbook.state_dict())
    return x, [textbook, ours]


class Meter:
    """Measures one way of one part on one device."""

    def __init__(self, device: str, threads: int) -> None:
        self.cuda = device == "cuda"
        # CPU time counts every thread, so that it tells a duration with one thread only.
        self.clock = time.process_time if threads == 1 else time.perf_counter

    def step_ms(self, way: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> tuple[float, float]:
        """Milliseconds of forward, and of forward and backward, of one step."""
        if self.cuda:
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
            marks[0].record()
            output = way(x)
            marks[1].record()
            output.backward(grad)
            marks[2].record()
            torch.cuda.synchronize()
            return marks[0].elapsed_time(marks[1]), marks[0].elapsed_time(marks[2])
        start = self.clock()
        output = way(x)
        middle = self.clock()
        output.backward(grad)
        return 1e3 * (middle - start), 1e3 * (self.clock() - start)

    def peak_mib(self, way: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> float | None:
        """By how much memory grows at most during one step; None where the system does not tell."""
        clear(way, x)
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            way(x).backward(grad)
            return (torch.cuda.max_memory_allocated() - before) / MIB
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
            before = _resident_mib("VmRSS")
            way(x).backward(grad)
            return _resident_mib("VmHWM") - before
        except OSError:
            return None


def kept_mib(way: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """What autograd keeps between forward and backward, without parameters and input."""
    with KeptForBackward(way if isinstance(way, nn.Module) else nn.Module(), [x]) as kept:
        way(x)
    return kept.total_bytes() / MIB


def clear(way: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Free the gradients of the last step, and what waits to be collected."""
    x.grad = None
    if isinstance(way, nn.Module):
        way.zero_grad(set_to_none=True)
    gc.collect()


def bound_ms(part: str, shape: str, dtype: torch.dtype, name: str) -> tuple[float, float] | None:
    """The least time of forward, and of forward and backward, on the GPU `name`; None if it is not listed.

    Multiply-adds: each entry of S once forward and twice backward, and once more where it is not kept, with
    the linear layer and, in a module, all others likewise. Bytes: features read and output written once, and
    as much again backward. Windows alone count, so tiles that compute more cannot reach it.
    """
    peaks = next((values for gpu, values in GPUS.items() if gpu in name), None)
    if peaks is None:
        return None
    size, (length, rows, columns), d, d_in, d_fuse, d_out = SHAPES[shape]
    positions, channels = size[0] * size[1] * size[2] * size[3], size[4]
    maps = positions * length
    similarity, linear, layers = maps * rows * columns * channels, maps * rows * columns * d, 0
    numbers = positions * channels + maps * (rows * columns if part == "stss" else d)
    if part == "stss":
        linear = 0
    if part == "module":
        convolutions = maps * 9 * d * (2 * d + d_fuse)
        layers = sum(convolutions + positions * (c * channels + d_fuse * d_out) for c in (d_in, d_out))
        similarity, linear = 2 * similarity, 2 * linear
        numbers = positions * (d_in + d_out) + 2 * (2 * positions * channels + 3 * maps * d)
    compute, bandwidth = peaks[0][str(dtype).removeprefix("torch.")] * 1e9, peaks[1] * 1e9  # per millisecond
    bytes_moved = numbers * dtype.itemsize
    forward = max(2 * (similarity + linear + layers) / compute, bytes_moved / bandwidth)
    recomputed = 0 if part == "stss" else similarity
    arithmetic = 2 * (3 * (similarity + linear + layers) + recomputed)
    return forward, max(arithmetic / compute, 2 * bytes_moved / bandwidth)


def compare(part: str, shape: str, device: str, dtype: torch.dtype, repeats: int, threads: int) -> dict:
    """Both ways of one part at one shape: equal results, then times in turns, bytes kept, peak memory."""
    x, both = ways(part, shape, device, dtype)
    x.requires_grad_()
    with torch.no_grad():
        expected, actual = both[0](x), both[1](x)
        grad = torch.randn_like(actual)
    difference = (expected.float() - actual.float()).abs().max() / expected.float().abs().max()
    if not difference < (1e-3 if dtype == torch.float32 else 0.1):
        raise SystemExit(
            f"{part} at shape {shape}: the two ways differ by {difference:.1e} of the largest value"
        )
    del expected, actual
    meter = Meter(device, threads)
    times: list[list[tuple[float, float]]] = [[], []]
    for repeat_number in range(repeats + 1):
        for index, way in enumerate(both):
            clear(way, x)
            measured = meter.step_ms(way, x, grad)
            if repeat_number:  # the first is for warming up
                times[index].append(measured)
    rows = []
    for way, measured in zip(both, times, strict=True):
        forward, step = (statistics.median(column) for column in zip(*measured, strict=True))
        row = {"forward_ms": forward, "step_ms": step, "kept_mib": kept_mib(way, x)}
        rows.append(row | {"peak_mib": meter.peak_mib(way, x, grad)})
    result = {"part": part, "shape": shape, "largest_difference": difference.item(), "repeats": repeats}
    result |= {"textbook": rows[0], "ours": rows[1]}
    result["ratio"] = {key: rows[0][key] / rows[1][key] for key in rows[0] if rows[1][key]}
    if device == "cuda" and (bound := bound_ms(part, shape, dtype, torch.cuda.get_device_name())):
        result["share_of_bound"] = {
            "forward": bound[0] / rows[1]["forward_ms"], "step": bound[1] / rows[1]["step_ms"]
        }  # fmt: skip
    return result


def print_table(console: Screen, results: list[dict]) -> None:
    """Textbook / ours, and their ratio, a row for each part and shape."""
    table = Table(title="textbook / ours (ratio)")
    columns = {
        "forward_ms": "forward ms",
        "step_ms": "fwd + bwd ms",
        "kept_mib": "kept MiB",
        "peak_mib": "peak MiB",
    }
    bounds = any("share_of_bound" in result for result in results)
    for name in ("part", "shape", *columns.values(), *(("of bound, fwd", "fwd + bwd") if bounds else ())):
        table.add_column(name, justify="left" if name in ("part", "shape") else "right")
    for result in results:
        cells = []
        for key in columns:
            if result["ours"][key] is None:
                cells.append("not known here")
            else:
                ratio = f"{result['ratio'][key]:.2f}x" if key in result["ratio"] else "-"
                cells.append(f"{result['textbook'][key]:.4g} / {result['ours'][key]:.4g} ({ratio})")
        cells += [f"{share:.0%}" for share in result.get("share_of_bound", {}).values()]
        table.add_row(result["part"], result["shape"], *cells)
    console.print(table)


def main(argv: list[str] | None = None) -> None:
    """Measure, print and, if asked, write json."""
    parser = options()
    settings = parser.parse_args(argv)
    if unknown := set(settings.shapes) - set(SHAPES):
        parser.error(f"unknown shapes {''.join(sorted(unknown))}; known are {''.join(SHAPES)}")
    if not settings.shapes or len(set(settings.shapes)) < len(settings.shapes):
        parser.error(f"--shapes takes different letters, one or more, got '{settings.shapes}'")
    if settings.repeats < 1 or settings.threads < 1:
        parser.error("--repeats and --threads take 1 or more")
    if settings.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is to be seen; leave out --device cuda to measure the CPU")
    if settings.json and settings.json.is_dir():
        parser.error(f"--json {settings.json} is a folder; name a file")
    if settings.json:
        settings.json.parent.mkdir(parents=True, exist_ok=True)  # before the minutes of measuring
    torch.set_num_threads(settings.threads)
    console = Screen()
    path, reason = stss_path(torch.device(settings.device), (5, 9, 9))
    console.print(f"STSS in MOSS: {path} ({reason})")
    todo = [(part, shape) for shape in settings.shapes for part in settings.parts]
    results = []
    with Progress(
        SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task("", total=len(todo))
        for part, shape in todo:
            bar.update(task, description=f"{part}, shape {shape}")
            arguments = (settings.device, DTYPES[settings.precision], settings.repeats, settings.threads)
            results.append(compare(part, shape, *arguments))
            bar.advance(task)
    print_table(console, results)
    if settings.json:
        device = torch.cuda.get_device_name() if settings.device == "cuda" else cpu_name()
        record = {
            "command": " ".join(
                ["python experiments/benchmark_stss.py", *(sys.argv[1:] if argv is None else argv)]
            ),
            "device": device,
            "dtype": str(DTYPES[settings.precision]).removeprefix("torch."),
            "threads": settings.threads,
            "path": f"{path} ({reason})",
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "shapes": {shape: SHAPES[shape] for shape in settings.shapes},
            "results": results,
        }
        with plots.whole_file(settings.json) as part:
            part.write_text(json.dumps(record, indent=1) + "\n")
        console.print(f"written: {settings.json}")


def cpu_name() -> str:
    """What the system calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _resident_mib(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
