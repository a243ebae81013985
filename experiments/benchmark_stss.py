"""Time and memory of STSS, of STSS with its linear layer, and of MOSS, against the textbook way.

The textbook way repeats the features L times, unfolds the neighbouring frames, normalises both, multiplies
whole frames with whole frames, cuts each query's window out of the product, and uses plain layers. Both ways
run in this process, in turns, on the same weights and data, after a comparison of their results.

    python experiments/benchmark_stss.py                                # four shapes on the CPU, ten minutes
    python experiments/benchmark_stss.py --shapes a --json stss.json
    python experiments/benchmark_stss.py --shapes efg --parts stss --repeats 1  # long and fine clips: memory
    python experiments/benchmark_stss.py --device cuda --precision bf16

On a CPU, times are CPU time with one thread, which other work on the machine hardly changes, or wall time
with --threads above 1. On a GPU they come from CUDA events. There "ours" is the fused kernel where a linear
layer follows, and a third way is ours without it, in plain torch. Beside are two bounds, multiply-adds over
the device's peak and bytes over its bandwidth, and the share of the larger one that is reached. The json also
has what the kernels' tuning chose, with the time of each choice. fp32 is float32 in convolutions too, which
cuDNN would round to TF32.
"""

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table

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
from measuring import MIB, Meter, clear, cpu_name, prepare_json, write_json
from torch import Tensor, nn

from moss_vllm.core import MOSS, encoder, stss
from moss_vllm.core.encoder import UVProjection, stss_path
from moss_vllm.core.stss import Window
from moss_vllm.runtime.precision import DTYPES
from moss_vllm.runtime.versions import versions

# Features (B, T, H, W, C) that STSS compares, window, D, and the module's d_in, d_fuse and d_out.
SHAPES: dict[str, tuple[tuple[int, ...], Window, int, int, int, int]] = {
    "a": ((2, 8, 14, 14, 128), (5, 9, 9), 64, 768, 128, 192),  # MOSS-S
    "b": ((1, 16, 16, 16, 256), (5, 9, 9), 96, 1024, 192, 448),  # MOSS-L
    "c": ((1, 16, 16, 28, 256), (7, 11, 11), 256, 1152, 256, 256),  # VideoLLaMA3
    "d": ((1, 32, 32, 32, 256), (5, 9, 9), 96, 1024, 192, 448),  # MOSS-L on a longer, finer clip
    # For memory: the sizes of action and boundary detection, and the largest window on a fine grid.
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


def textbook_stss(x: Tensor, window: Window) -> Tensor:
    """Eq. 1-2 by whole-frame correlation: (B, T, H, W, C) -> (B, T, H, W, L, U, V)."""
    length, rows, columns = window
    height, width = x.shape[2:4]
    queries = repeat(x, "b t h w c -> (b t l) (h w) c", l=length)
    neighbours = F.pad(x, (0, 0, 0, 0, 0, 0, length // 2, length // 2)).unfold(1, length, 1)
    keys = rearrange(neighbours, "b t h w c l -> (b t l) (h w) c")
    eps = max(1e-12, torch.finfo(x.dtype).tiny)  # float16 has no 1e-12, and a padding frame would be 0 / 0
    volume = F.normalize(queries, dim=-1, eps=eps) @ F.normalize(keys, dim=-1, eps=eps).transpose(-1, -2)
    volume = volume.view(*x.shape[:2], length, height, width, height, width)
    volume = F.pad(volume, (columns // 2, columns // 2, rows // 2, rows // 2))
    h, w = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    u, v = torch.arange(rows, device=x.device), torch.arange(columns, device=x.device)
    h, w = h[:, None, None, None], w[:, None, None]
    return rearrange(volume[:, :, :, h, w, h + u[:, None], w + v], "b t l h w u v -> b t h w l u v")


class TextbookUVProjection(UVProjection):
    """`UVProjection` with the same weights on the textbook's similarity."""

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


class PlainTorch(nn.Module):
    """`ours` with its weights, by the way that runs where the fused kernel cannot."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        """As `ours`."""
        with patch.object(encoder, "stss_path", lambda *_: ("banded", "to be compared")):
            return self.ours(x)


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


def kept_mib(way: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """MiB that autograd keeps from forward for backward, without parameters and input."""
    with KeptForBackward(way if isinstance(way, nn.Module) else nn.Module(), [x]) as kept:
        way(x)
    return kept.total_bytes() / MIB


def bounds_ms(part: str, shape: str, dtype: torch.dtype, name: str) -> dict[str, dict[str, float]] | None:
    """The least times of forward, and of forward and backward, on the GPU `name`; None if it is not listed.

    "arithmetic": each entry of S once forward and twice backward, and once more if it is recomputed; the
    linear layer and, in a module, the other layers count in the same way. "bandwidth": features read and
    output written once, and the same again backward. Only windows count, so tiles that compute more cannot
    reach the bound.
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
    once = 2 * (similarity + linear + layers)
    recomputed = 0 if part == "stss" else 2 * similarity
    return {
        "forward": {"arithmetic": once / compute, "bandwidth": bytes_moved / bandwidth},
        "step": {"arithmetic": (3 * once + recomputed) / compute, "bandwidth": 2 * bytes_moved / bandwidth},
    }


def tuning() -> list[dict[str, Any]]:
    """What each kernel of the fused STSS was tuned to in this process, by what it was tuned for."""
    from moss_vllm.core import stss_kernels

    return [
        {"kernel": name, "for": list(map(str, key)), "chosen": str(choice)}
        for name in ("forward", "backward_weight", "backward_unit")
        for key, choice in getattr(getattr(stss_kernels, name), "cache", {}).items()
    ]


def tuned_since(before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `tuning` has gained, with the milliseconds of every choice (median, and 20 and 80 %)."""
    from moss_vllm.core import stss_kernels

    gained = [one for one in tuning() if one not in before]
    for one in gained:  # Triton holds the times of a kernel's last tuning alone
        if [other["kernel"] for other in gained].count(one["kernel"]) == 1:
            timed = getattr(stss_kernels, one["kernel"]).configs_timings
            one["ms"] = {
                str(choice): [t if t < float("inf") else None for t in times]
                for choice, times in timed.items()
            }
    return gained


def compare_ways(part: str, shape: str, device: str, dtype: torch.dtype, repeats: int, threads: int) -> dict:
    """All ways of one part at one shape: equal results, then times in turns, bytes kept, peak memory."""
    x, both = ways(part, shape, device, dtype)
    named: dict[str, Any] = dict(zip(("textbook", "ours"), both, strict=True))
    fused = part != "stss" and stss_path(torch.device(device), SHAPES[shape][1])[0] == "fused"
    if fused:
        named["plain"] = PlainTorch(named["ours"])
    before = tuning() if fused else []
    x.requires_grad_()
    differences = {}
    with torch.no_grad():
        expected = named["textbook"](x)
        grad = torch.randn_like(expected)
        for name in [name for name in named if name != "textbook"]:
            off = (expected.float() - named[name](x).float()).abs().max() / expected.float().abs().max()
            differences[name] = off.item()
            if not off < (1e-3 if dtype == torch.float32 else 0.1):
                away = f"{name} differs from the textbook by {off:.1e} of the largest value"
                raise SystemExit(f"{part} at shape {shape}: {away}")
    del expected
    meter = Meter(device, threads)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in named}
    for repeat_number in range(repeats + 1):
        for name, way in named.items():
            clear(way, x)
            measured = meter.step_ms(way, x, grad)
            if repeat_number:  # the first warms up
                times[name].append(measured)
    rows: dict[str, dict[str, Any]] = {}
    for name, way in named.items():
        forward, step = (statistics.median(column) for column in zip(*times[name], strict=True))
        rows[name] = {"forward_ms": forward, "step_ms": step, "kept_mib": kept_mib(way, x)}
        rows[name]["peak_mib"] = meter.peak_mib(way, x, grad)
    ours = rows["ours"]
    result = {"part": part, "shape": shape, "largest_difference": differences["ours"], "repeats": repeats}
    result |= rows
    result["ratio"] = {key: rows["textbook"][key] / ours[key] for key in ours if ours[key]}
    if fused:
        result["plain_difference"] = differences["plain"]
        result["tuned"] = tuned_since(before)
    if device == "cuda" and (bounds := bounds_ms(part, shape, dtype, torch.cuda.get_device_name())):
        result["bounds_ms"] = bounds
        result["share_of_bound"] = {
            name: max(bounds[name].values()) / ours[f"{name}_ms"] for name in ("forward", "step")
        }
    return result


def print_table(console: Screen, results: list[dict]) -> None:
    """Textbook / ours, and their ratio, a row for each part and shape; plain torch's times where measured."""
    table = Table(title="textbook / ours (ratio)")
    columns = {
        "forward_ms": "forward ms",
        "step_ms": "fwd + bwd ms",
        "kept_mib": "kept MiB",
        "peak_mib": "peak MiB",
    }
    bounds = any("share_of_bound" in result for result in results)
    plain = any("plain" in result for result in results)
    more = ("plain torch, fwd + bwd",) if plain else ()
    more += ("bounds: arithmetic / bandwidth", "reached, fwd", "fwd + bwd") if bounds else ()
    for name in ("part", "shape", *columns.values(), *more):
        table.add_column(name, justify="left" if name in ("part", "shape") else "right")
    for result in results:
        cells = []
        for key in columns:
            if result["ours"][key] is None:
                cells.append("not known here")
            else:
                ratio = f"{result['ratio'][key]:.2f}x" if key in result["ratio"] else "-"
                cells.append(f"{result['textbook'][key]:.4g} / {result['ours'][key]:.4g} ({ratio})")
        if plain:
            cells.append(f"{result['plain']['step_ms']:.4g}" if "plain" in result else "the same")
        if bounds:
            cells.append(" / ".join(f"{ms:.3g}" for ms in result["bounds_ms"]["step"].values()))
            cells += [f"{share:.0%}" for share in result["share_of_bound"].values()]
        table.add_row(result["part"], result["shape"], *cells)
    console.print(table)


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write the json file of --json."""
    parser = options()
    settings = parser.parse_args(argv)
    if unknown := set(settings.shapes) - set(SHAPES):
        parser.error(f"unknown shapes {''.join(sorted(unknown))}; the shapes are {''.join(SHAPES)}")
    if not settings.shapes or len(set(settings.shapes)) < len(settings.shapes):
        parser.error(f"--shapes takes different letters, one or more, got '{settings.shapes}'")
    if settings.repeats < 1 or settings.threads < 1:
        parser.error("--repeats and --threads take 1 or more")
    if settings.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; leave out --device cuda to measure the CPU")
    prepare_json(parser, settings.json)
    torch.set_num_threads(settings.threads)
    if settings.precision == "fp32":
        torch.backends.cudnn.conv.fp32_precision = "ieee"
    console = Screen()
    path, reason = stss_path(torch.device(settings.device), (5, 9, 9))
    console.print(f"STSS in MOSS: {path} ({reason})")
    todo = [(part, shape) for shape in settings.shapes for part in settings.parts]
    record: dict[str, Any] = {
        "command": " ".join(
            ["python experiments/benchmark_stss.py", *(sys.argv[1:] if argv is None else argv)]
        ),
        "device": torch.cuda.get_device_name() if settings.device == "cuda" else cpu_name(),
        "dtype": str(DTYPES[settings.precision]).removeprefix("torch."),
        "threads": settings.threads,
        "path": f"{path} ({reason})",
        "versions": versions(),
        "shapes": {shape: SHAPES[shape] for shape in settings.shapes},
        "results": [],
    }
    with Progress(
        SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task("", total=len(todo))
        for part, shape in todo:
            bar.update(task, description=f"{part}, shape {shape}")
            arguments = (settings.device, DTYPES[settings.precision], settings.repeats, settings.threads)
            record["results"].append(compare_ways(part, shape, *arguments))
            write_json(settings.json, record)  # after every part: a stopped run leaves its results
            bar.advance(task)
    print_table(console, record["results"])
    if settings.json:
        console.print(f"written: {settings.json}")


if __name__ == "__main__":
    main()
