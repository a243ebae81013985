"""What training steps of a Video-LLM, a detector and a boundary model keep, and what it costs to keep less.

    python experiments/benchmark_memory.py                       # both, minutes of one core
    python experiments/benchmark_memory.py --parts rooms         # the first alone, seconds

rooms: the estimate of a step at the paper's sizes, part by part, as the recipes' --dry-run prints it:
VideoLLaMA3-2B with MOSS on a clip of 10 s, AdaTAD on a window of 768 frames, BasicGEBD on a clip of 100.

ways: layers of these models at their true widths, with random weights, in turns in one process. Each runs as
it trains here, and with everything kept. Printed are the bytes kept for backward, the bytes at the peak, and
the time of forward and backward, on a CPU that of one thread. Gradients are compared before timing.
"""

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from rich.table import Table

from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.ranges import FROM_ONE
from moss_vllm.runtime.screen import Screen

PARTS = ("rooms", "ways")


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: both")
    add("--tokens", type=FROM_ONE, default=512, help="of the language model's layer, and of the answers")
    add("--frames", type=FROM_ONE, default=16, help="that MOSS reads, on a grid of 28 x 28")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="of the ways; on a GPU in bfloat16")
    add("--repeats", type=FROM_ONE, default=5, help="of each way")
    add("--json", type=Path, help="write the results here")
    return parser


if __name__ == "__main__":
    answer_help(options)

import torch
from measuring import MIB, Meter, clear, cpu_name, prepare_json, run_jobs, spread, write_json
from torch import Tensor, nn

from moss_vllm.boundaries.build import build_gebd
from moss_vllm.boundaries.map_encoder import MapEncoder
from moss_vllm.boundaries.memory import estimate_memory as estimate_boundaries
from moss_vllm.core import MOSS, encoder, stss_path
from moss_vllm.core.boundary_presets import BOUNDARY_R50
from moss_vllm.core.detection_presets import DETECTORS
from moss_vllm.core.moss import checkpoint_moss
from moss_vllm.core.stss import stss_by_offset
from moss_vllm.detection.build import build_adatad
from moss_vllm.detection.detector import Detector
from moss_vllm.detection.memory import estimate_memory as estimate_detection
from moss_vllm.runtime.versions import versions
from moss_vllm.training.alive import AliveBytes
from moss_vllm.training.step_memory import GIB, parts_table
from moss_vllm.vlm import lean_decoder
from moss_vllm.vlm.adapter import attach_lora
from moss_vllm.vlm.lean_decoder import cross_entropy, lean_mlps, leave_casts_to_autocast
from moss_vllm.vlm.memory import memory_table
from moss_vllm.vlm.sizes import build_shape
from moss_vllm.vlm.video_llama3.memory import estimate_training_memory

SHAPE, RANK, CLASSES = "2b", 64, 20
CLIP = {"frames": 20, "height_px": 224, "width_px": 392, "text_tokens": 200, "batch_size": 1}
TOLERANCE = {"cpu": 1e-5, "cuda": 5e-2}  # of gradients, relative to their norm


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Estimate and measure, print and write the json file of --json; returns its content."""
    parser = options()
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; leave out --device cuda to measure the CPU")
    prepare_json(parser, args.json)
    torch.set_num_threads(1)
    console, words = Screen(width=150), sys.argv[1:] if argv is None else argv
    record: dict[str, Any] = {
        "command": shlex.join(["python", "experiments/benchmark_memory.py", *words]),
        "machine": cpu_name(),
        "gpu": torch.cuda.get_device_name() if args.device == "cuda" else "not run on a GPU",
        "versions": versions(),
    }
    if "rooms" in args.parts:
        record["rooms"] = estimate_rooms(console)
    if "ways" in args.parts:
        jobs = [(name, lambda make=make: measure(make(args), args)) for name, make in LAYERS.items()]
        record["ways"] = dict(zip(LAYERS, run_jobs(jobs), strict=True))
        print_ways(console, record["ways"])
    write_json(args.json, record, console)
    return record


# ---- the rooms


def estimate_rooms(console: Screen) -> dict[str, Any]:
    """Print and return GiB by room, setting and part."""
    video, detection, boundaries = video_llm(), detectors(), boundary_models()
    console.print(memory_table(video, title=f"VideoLLaMA3-{SHAPE.upper()} with MOSS, a clip of 10 s, bf16"))
    console.print(parts_table(detection, title="AdaTAD with MOSS, a window of 768 frames, bf16"))
    console.print(parts_table(boundaries, title="BasicGEBD with MOSS, a clip of 100 frames of 224 x 224"))
    rooms = {"Video-LLM": video, "detection": detection, "boundaries": boundaries}
    return {
        room: {name: {part: n / GIB for part, n in in_bytes(one).items()} for name, one in columns.items()}
        for room, columns in rooms.items()
    }


def in_bytes(memory: Any) -> dict[str, int]:
    """The parts and their sum."""
    return {**vars(memory), "total": memory.total}


def video_llm() -> dict[str, Any]:
    """Estimates of the Video-LLM by setting."""
    base = build_shape(SHAPE, moss={}, dtype=torch.bfloat16)
    model = attach_lora(base, rank=RANK, alpha=RANK, dropout=0.0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trained
    counts = {"trained_parameters": trained, "frozen_parameters": frozen, "lora_rank": RANK}
    again, dropout = {"checkpoint_llm": True}, {"mask_bytes": 1}  # dropout as in the presets
    settings: dict[str, dict[str, Any]] = {
        "all kept": {},
        "--checkpoint-llm": again,
        "4 clips": again | {"batch_size": 4},
        "LoRA's dropout": dropout,
        "and --checkpoint-llm": dropout | again,
        "and --checkpoint-moss": dropout | again | {"checkpoint_moss": True},
    }
    how = {"precision": "bf16", "frozen_dtype": torch.bfloat16, **counts, **CLIP}
    return {
        name: estimate_training_memory(base.config, **{"checkpoint_llm": False, **how, **setting})
        for name, setting in settings.items()
    }


def detectors() -> dict[str, Any]:
    """Estimates of AdaTAD by variant and size of frames."""
    found = {}
    for variant in ("b", "l"):
        with torch.device("meta"):
            model = build_adatad(variant=variant, weights="random")
        for size_px in (160, 224):
            sizes = {"windows": 1, "frames": 768, "size_px": size_px, "precision": "bf16"}
            found[f"{variant.upper()}, {size_px} px"] = estimate_detection(model, **sizes)
    return found


def boundary_models() -> dict[str, Any]:
    """Estimates of BasicGEBD by number format and setting."""
    with torch.device("meta"):
        model = build_gebd(weights="random")
    found = {}
    for precision in ("fp32", "bf16"):
        for flag in ("", ", --checkpoint-moss"):
            checkpoint_moss(model, bool(flag))
            sizes = {"clips": 1, "frames": 100, "size_px": 224, "precision": precision, "copies": 1}
            found[precision + flag] = estimate_boundaries(model, **sizes)
    return found


# ---- the ways


class Layer(NamedTuple):
    """Layers to measure: a step of the input `x`, which trains `modules`, in each of `ways`, ours first."""

    step: Callable[[Tensor], Tensor]
    x: Tensor
    modules: nn.Module
    ways: Mapping[str, Callable[[], AbstractContextManager[Any]]]


def decoder_layer(args: Any) -> Layer:
    """A decoder layer of the 2B shape with LoRA."""
    model = build_shape(SHAPE, moss=None)
    model.model.vision_model, model.lm_head = nn.Identity(), nn.Identity()
    attach_lora(model, rank=RANK, alpha=RANK, dropout=0.0)
    language_model = model.get_decoder()
    layer = language_model.layers[0].to_empty(device=args.device)
    rotary = type(language_model.rotary_emb)(language_model.config).to(args.device)
    for name, parameter in layer.named_parameters():
        nn.init.ones_(parameter) if "norm" in name else nn.init.normal_(parameter, std=0.02)
    layer.bfloat16() if args.device == "cuda" else layer.float()
    for name, parameter in layer.named_parameters():
        parameter.data = parameter.data.float() if "lora_" in name else parameter.data
    x = torch.randn(1, args.tokens, language_model.config.hidden_size, device=args.device)
    x = x.to(layer.input_layernorm.weight.dtype)
    positions = rotary(x, torch.arange(args.tokens, device=args.device)[None])

    @contextmanager
    def ours() -> Iterator[None]:
        leave_casts_to_autocast(layer)
        with lean_mlps(layer):
            yield

    @contextmanager
    def theirs() -> Iterator[None]:
        for module in layer.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = True
        yield

    def step(x: Tensor) -> Tensor:
        return layer(x, position_embeddings=positions)

    return Layer(step, x, layer, {"ours": ours, "as transformers and peft": theirs})


def logits(args: Any) -> Layer:
    """The frozen head of the 2B shape and the loss."""
    config = build_shape(SHAPE, moss=None).config.text_config
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, device=args.device, dtype=dtype)
    head.requires_grad_(False)
    x = torch.randn(args.tokens, config.hidden_size, device=args.device, dtype=dtype)
    target = torch.randint(config.vocab_size, (args.tokens,), device=args.device)
    at_once = patch.object(lean_decoder, "LOGITS_AT_ONCE", 2**62)
    ways = {"ours": nullcontext, "all at once": lambda: at_once}
    return Layer(lambda x: cross_entropy(head, x, target), x, head, ways)


def moss(args: Any) -> Layer:
    """MOSS of the boundary model."""
    width, sizes = 512, BOUNDARY_R50
    module = MOSS(width, width, window=sizes.window, d_hidden=sizes.d_hidden, d_similarity=sizes.d_similarity)
    module.to(args.device)
    x = torch.randn(1, args.frames, 28, 28, width, device=args.device)

    def keep_similarity(features: Tensor, linear: nn.Linear, window: Any) -> Tensor:
        return linear(stss_by_offset(features, window))

    kept = patch.object(encoder, "stss_linear", keep_similarity)
    ways = {"ours": nullcontext, "--checkpoint-moss": lambda: again(module)}
    if stss_path(x.device, sizes.window)[0] == "banded":  # the GPU's kernel has no similarity to keep
        ways["similarity kept"] = lambda: kept
    return Layer(module, x, module, ways)


def detector(args: Any) -> Layer:
    """ActionFormer's part of AdaTAD-B."""
    module = Detector(768, CLASSES, **{**DETECTORS["b"].detector, "drop_path": 0.0}).to(args.device)
    x = torch.randn(1, 768, 768, device=args.device)
    mask = torch.ones(1, 768, dtype=torch.bool, device=args.device)

    def step(x: Tensor) -> Tensor:
        levels = module(x, mask)
        return torch.stack([out.float().square().mean() for level in levels for out in level[:2]]).sum()

    return Layer(step, x, module, {"ours": lambda: again(module), "all kept": nullcontext})


def map_encoder(args: Any) -> Layer:
    """BasicGEBD's encoder of similarity maps."""
    module = MapEncoder(BOUNDARY_R50.map_widths).to(args.device)
    x = torch.rand(100, 1, 17, 17, device=args.device)
    return Layer(module, x, module, {"ours": lambda: again(module), "all kept": nullcontext})


@contextmanager
def again(module: Any) -> Iterator[None]:
    """Inside, backward computes the blocks of `module` again."""
    module.checkpointing = True
    try:
        yield
    finally:
        module.checkpointing = False


LAYERS: dict[str, Callable[[Any], Layer]] = {
    "decoder layer, LoRA": decoder_layer,
    "answers' logits": logits,
    "MOSS": moss,
    "detector": detector,
    "map encoder": map_encoder,
}


def measure(layer: Layer, args: Any) -> dict[str, Any]:
    """MiB kept, MiB at the most and milliseconds of each way, and the ratio of ours to each other one."""
    x, meter = layer.x.requires_grad_(), Meter(args.device, threads=1)
    found: dict[str, dict[str, Any]] = {}
    gradients: dict[str, list[Any]] = {}
    half = torch.autocast("cuda", torch.bfloat16) if args.device == "cuda" else nullcontext()
    for way, context in layer.ways.items():  # which also warms up
        clear(layer.modules, x)
        with AliveBytes(x, *layer.modules.parameters(), *layer.modules.buffers()) as alive:
            with context(), half:
                output = layer.step(x)
            kept = alive.now - output.nbytes
            output.sum().backward()
        trained = [one.grad for one in layer.modules.parameters() if one.grad is not None]
        gradients[way] = [x.grad, *trained]
        found[way] = {"kept_mib": kept / MIB, "peak_mib": alive.peak / MIB}
    for way, one in gradients.items():
        for gradient, expected in zip(one, gradients["ours"], strict=True):
            if not (gradient - expected).norm() <= TOLERANCE[args.device] * expected.norm():
                raise SystemExit(f"{way} has other gradients than ours")
    times: dict[str, list[float]] = {way: [] for way in layer.ways}
    for _ in range(args.repeats):
        for way, context in layer.ways.items():
            clear(layer.modules, x)
            start = meter.now()
            with context(), half:
                output = layer.step(x)
            output.sum().backward()
            times[way].append(1e3 * (meter.now() - start))
    for way, one in found.items():
        one["ms"] = spread(times[way])
        one["of_ours"] = {
            "kept": one["kept_mib"] / found["ours"]["kept_mib"],
            "peak": one["peak_mib"] / found["ours"]["peak_mib"],
            "ms": one["ms"]["median"] / found["ours"]["ms"]["median"],
        }
    return found


def print_ways(console: Screen, layers: Mapping[str, Any]) -> None:
    """A row for each way of each layer."""
    table = Table("layer", "way", title="forward and backward; x: as a multiple of ours")
    for head in ("kept, MiB", "x", "at the most, MiB", "x", "ms", "x"):
        table.add_column(head, justify="right")
    for name, ways in layers.items():
        for way, one in ((way, one) for way, one in ways.items() if way != "load_average"):
            cells = (one["kept_mib"], one["peak_mib"], one["ms"]["median"])
            ratios = one["of_ours"].values()
            shown = [text for n, r in zip(cells, ratios, strict=True) for text in (f"{n:,.1f}", f"{r:.2f}")]
            table.add_row(name, way, *shown)
            name = ""
    console.print(table)


if __name__ == "__main__":
    main()
