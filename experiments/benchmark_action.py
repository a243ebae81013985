"""The cost of the ladder's training step beside a frozen encoder, and of reading its clips.

    python experiments/benchmark_action.py                    # MOSS-S on the CPU, all parts, 20 minutes
    python experiments/benchmark_action.py --parts step --variant b --batch 16 --device cuda --precision bf16
    python experiments/benchmark_action.py --parts ladder memory --variant b --json action.json
    python experiments/benchmark_action.py --parts reading waiting --repeats 1

step: forward and backward of one batch, random weights and pixels, 8 frames of 224 x 224, in three ways that
give the same loss and the same gradients of the ladder: as here (no graph in the encoder, tapped layers
only), with every layer's tokens kept and stacked, and with the encoder in the graph besides. In turns, in one
process: clips a second, bytes kept for backward, peak memory, and their ratio to ours.

ladder: our step again, taken apart: bytes kept for backward and time by part, beside the same step with
--checkpoint-blocks, and with each layer of the ladder and of MOSS called, which keeps what autograd keeps by
itself. In turns, in one process.

memory: bytes kept for backward in steps of the models of Tables 3 and 10d, in these ways, on tensors
that have sizes but no data, beside the paper's GB scaled to --batch clips. The paper's include weights, the
optimizer's state and what a device's library takes, in a precision that it does not name.

reading: clips as Something-Something V2 has them (240 pixels high, 12 frames a second, about 4 s and 90 kB),
generated, read and made into training views as the recipe does it, in one process with one thread: from the
files and from a filled frame cache, without and with RandAugment. Times are CPU time.

waiting: the recipe trains the miniature for a few steps with 0, 1 and 2 workers; shown is the share of a step
spent waiting for clips, from OUT/train.jsonl.
"""

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from moss_vllm.data.world.actions import MINI_ACTIONS_ROOT, MINI_FRAME_PX, ensure_mini_actions
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.ranges import FROM_ONE
from moss_vllm.runtime.screen import Screen

PARTS = ("step", "ladder", "memory", "reading", "waiting")


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    add("--variant", choices=("s", "b", "m", "l", "mini"), default="s", help="of Table 6 (default: s)")
    add("--batch", type=FROM_ONE, default=2, help="clips of a step")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="of the steps")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="as in the recipe")
    add("--repeats", type=FROM_ONE, default=3, help="of each measurement")
    add("--clips", type=FROM_ONE, default=16, help="clips generated for reading")
    add("--steps", type=FROM_ONE, default=20, help="the recipe's steps for waiting")
    add("--root", type=Path, default=MINI_ACTIONS_ROOT, help="folder of the mini actions")
    add("--json", type=Path, help="write the results here")
    return parser


if __name__ == "__main__":
    answer_help(options)

import torch
import torch.nn.functional as F
from clip_reading import CODECS, measure_reading, print_reading
from kept_for_backward import KeptForBackward
from ladder_parts import measure_memory, measure_parts, print_memory, print_parts
from measuring import (
    MIB,
    Meter,
    clear,
    cpu_name,
    load_recipe,
    prepare_json,
    run_jobs,
    show_spread,
    spread,
    write_json,
)
from step_parts import WARM_UP
from torch import Tensor, nn

from moss_vllm.core.encoder import stss_path
from moss_vllm.encoders.image import ImageEncoder
from moss_vllm.recognition.build import build_classifier, find_preset
from moss_vllm.recognition.hosts.ladder import LadderClassifier
from moss_vllm.runtime.versions import versions

WAYS = {
    "ours": "tapped layers, no graph (ours)",
    "stacked": "every layer stacked, no graph",
    "graph": "every layer stacked, in the graph",
}
FRAMES, IMAGE_SIZE, CLASSES = 8, 224, 174
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCES = {"fp32": 1e-4, "bf16": 0.05}  # of the losses of two ways
WORKERS = (0, 1, 2)
RECIPE = Path(__file__).parent.parent / "recipes" / "action_recog.py"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and write the json file of --json; returns its content."""
    parser = options()
    args = parser.parse_args(argv)
    if args.steps <= WARM_UP:
        parser.error(f"--steps is {args.steps}; it must be above {WARM_UP}, which are not timed")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; leave out --device cuda to measure the CPU")
    prepare_json(parser, args.json)
    if args.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    console, load = Screen(width=130), os.getloadavg()
    words = sys.argv[1:] if argv is None else argv
    record: dict[str, Any] = {
        "command": shlex.join(["python", "experiments/benchmark_action.py", *words]),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if args.device == "cuda" else "not run on a GPU",
        "threads": torch.get_num_threads(),
        "repeats": args.repeats,
        "versions": versions(),
        "load_average": {"before": load[0]},
    }
    for part in (part for part in PARTS if part in args.parts):
        if part == "step":
            arguments = (args.variant, args.batch, args.device, args.precision, args.repeats)
            [record[part]] = run_jobs([(f"steps of {args.variant}", partial(measure_step, *arguments))])
            print_step(console, record[part])
        elif part == "ladder":
            arguments = (args.variant, args.batch, args.device, args.precision, args.repeats)
            [record[part]] = run_jobs([(f"parts of {args.variant}", partial(measure_ladder, *arguments))])
            print_parts(console, title_of(record[part]), record[part])
        elif part == "memory":
            [record[part]] = run_jobs([("memory of the paper's models", partial(measure_memory, args.batch))])
            print_memory(console, record[part])
        elif part == "reading":
            jobs = [(end, partial(measure_reading, end, args.clips, args.repeats)) for end in CODECS]
            record[part] = run_jobs(jobs)
            print_reading(console, record[part])
        else:
            record[part] = measure_waiting(args.root, args.steps, args.repeats)
            print_waiting(console, record[part])
        record["load_average"]["after"] = os.getloadavg()[0]
        write_json(args.json, record, console)  # after every part: a stopped run leaves its results
    console.print(f"{record['machine']}; {record['gpu']}; load average {load[0]:.1f} before")
    return record


# ---- a step


class Step(nn.Module):
    """The loss of a batch in one of `WAYS`.

    Shape:
        (B, T, 3, H', W') -> ().
    """

    def __init__(self, model: LadderClassifier, way: str, labels: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.way, self.labels, self.dtype = model, way, labels, dtype

    def forward(self, video: Tensor) -> Tensor:
        """Mean cross entropy of the batch."""
        encoder, frames, graph = self.model.encoder, video.flatten(0, 1), self.way == "graph"
        encoder.requires_grad_(graph)
        with torch.autocast(video.device.type, self.dtype, enabled=self.dtype != torch.float32):
            taps = encoder(frames) if self.way == "ours" else stack_layers(encoder, frames, graph=graph)
            logits = self.model.ladder([tap.unflatten(0, video.shape[:2]) for tap in taps], video)
            return F.cross_entropy(logits.float(), self.labels)


def stack_layers(encoder: ImageEncoder, frames: Tensor, *, graph: bool) -> list[Tensor]:
    """The tapped layers of `encoder`, cut out of one tensor of all its layers."""
    with torch.set_grad_enabled(graph and torch.is_grad_enabled()):
        taps = encoder.vit.forward_intermediates(
            frames, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        layers = torch.stack([encoder._with_class_token(tokens) for tokens in taps])
    return [layers[layer - 1] for layer in encoder.layers]


def kept_by_step_mib(step: Step, video: Tensor) -> float:
    """MiB that autograd keeps from forward for backward, taps included, without parameters and pixels."""
    with KeptForBackward(step, [video]) as kept:
        loss = step(video)
    loss.backward()  # frees the outputs that their own operators saved through a hook
    return kept.total_bytes() / MIB


def build_step(variant: str, batch: int, device: str) -> tuple[LadderClassifier, Tensor, Tensor]:
    """A ladder of random weights, noise as a batch of clips, and its labels."""
    size = MINI_FRAME_PX if variant == "mini" else IMAGE_SIZE
    sizes: dict[str, Any] = {"classes": CLASSES, "frames": FRAMES, "image_size": size}
    torch.manual_seed(0)
    model: Any = build_classifier(variant=variant, weights="random", **sizes).to(device).train()
    return (
        model,
        torch.randn(batch, FRAMES, 3, size, size).to(device),
        torch.randint(CLASSES, (batch,)).to(device),
    )


def measure_ladder(variant: str, batch: int, device: str, precision: str, repeats: int) -> dict[str, Any]:
    """Our step by part, beside the layers called."""
    model, video, labels = build_step(variant, batch, device)
    step = Step(model, "ours", labels, PRECISIONS[precision])
    settings = {"variant": variant, "batch": batch, "precision": precision, "image_size": video.shape[-1]}
    meter, tolerance = Meter(device, threads=1), TOLERANCES[precision]
    return settings | measure_parts(step, video, meter, repeats, tolerance)


def measure_step(variant: str, batch: int, device: str, precision: str, repeats: int) -> dict[str, Any]:
    """All `WAYS` of a step in turns, after comparing their losses; ratios are to ours."""
    model, video, labels = build_step(variant, batch, device)
    ways = {way: Step(model, way, labels, PRECISIONS[precision]) for way in WAYS}
    meter, grad = Meter(device, threads=1), torch.ones((), device=device)
    costs: dict[str, dict[str, Any]] = {way: {} for way in ways}
    losses: list[float] = []
    times: list[list[tuple[float, float]]] = []
    for way, step in ways.items():  # which also warms up
        costs[way] = {
            "kept_mib": kept_by_step_mib(step, video),
            "peak_mib": meter.peak_mib(step, video, grad),
        }
        with torch.no_grad():
            losses.append(step(video).item())
        clear(step, video)
    if not max(losses) - min(losses) < TOLERANCES[precision]:
        raise SystemExit(f"the ways {', '.join(WAYS)} have different losses: {losses}")
    for _ in range(repeats):
        times.append([])
        for step in ways.values():
            times[-1].append(meter.step_ms(step, video, grad))
            clear(step, video)
    for way, measured in zip(ways, zip(*times, strict=True), strict=True):
        forward, whole = (spread(column) for column in zip(*measured, strict=True))
        speed = 1000 * batch / whole["median"]
        costs[way] |= {"clips_per_s": speed, "forward_ms": forward, "step_ms": whole}
    ours = costs["ours"]
    for one in costs.values():
        one["ratio"] = {"step_ms": one["step_ms"]["median"] / ours["step_ms"]["median"]}
        one["ratio"] |= {key: one[key] / ours[key] for key in ("kept_mib", "peak_mib") if ours[key]}
    layers = {"encoder": model.encoder.depth, "tapped": len(model.encoder.layers)}
    clock = "CUDA events" if device == "cuda" else "CPU time of one thread"
    settings = {
        "variant": variant,
        "batch": batch,
        "precision": precision,
        "image_size": video.shape[-1],
        "layers": layers,
    }
    stss = ": ".join(stss_path(torch.device(device), find_preset(variant).window))
    return {**settings, "frames": FRAMES, "stss": stss, "clock": clock, "ways": costs}


def title_of(found: dict[str, Any]) -> str:
    """The step that was measured."""
    clips = f"{found['batch']} clips of {FRAMES} x {found['image_size']} px"
    return f"a training step of {found['variant']}, {clips}, precision {found['precision']}"


def print_step(console: Screen, found: dict[str, Any]) -> None:
    """A row for each way."""
    title = f"{title_of(found)}; median, and how many times ours"
    table = Table("encoder", "clips/s", "forward, ms", "step, ms", "kept, MiB", "peak, MiB", title=title)
    for way, one in found["ways"].items():
        cells = [f"{one['clips_per_s']:.3g}", f"{one['forward_ms']['median']:,.0f}"]
        values = {
            "step_ms": one["step_ms"]["median"],
            "kept_mib": one["kept_mib"],
            "peak_mib": one["peak_mib"],
        }
        for key, value in values.items():
            is_measured = key in one["ratio"] and value is not None
            cells.append(f"{value:,.0f} ({one['ratio'][key]:.2f}x)" if is_measured else "not known here")
        table.add_row(WAYS[way], *cells)
    console.print(table)


# ---- waiting


def measure_waiting(root: Path, steps: int, repeats: int) -> dict[str, Any]:
    """Short runs of the recipe with each number of workers, in turns."""
    ensure_mini_actions(root)
    recipe, jobs = load_recipe(RECIPE), []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(repeats):
            for workers in WORKERS:
                out = Path(folder) / f"{turn}-{workers}"
                jobs.append((f"{workers} workers", partial(run_recipe, recipe, root, out, steps, workers)))
        runs = run_jobs(jobs)
    own = {workers: runs[place :: len(WORKERS)] for place, workers in enumerate(WORKERS)}
    by_workers = [
        {"workers": workers, **{key: spread([run[key] for run in some]) for key in some[0]}}
        for workers, some in own.items()
    ]
    return {"steps": steps, "warm_up": WARM_UP, "runs": by_workers}


def run_recipe(recipe: Any, root: Path, out: Path, steps: int, workers: int) -> dict[str, float]:
    """Train the miniature; returns the numbers of its log."""
    flags = {"data": "mini", "root": root, "out": out, "steps": steps, "workers": workers, "tracker": "none"}
    recipe.main([word for name, value in flags.items() for word in (f"--{name}", str(value))])
    return summarise_steps([json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()])


def summarise_steps(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Speed and waiting of the steps after the first `WARM_UP`, and the wait for the first clips."""
    timed = lines[WARM_UP:]
    seconds, waited, clips = (sum(line[key] for line in timed) for key in ("seconds", "waited_s", "clips"))
    speeds = {"clips_per_s": clips / seconds, "step_s": seconds / len(timed)}
    return {**speeds, "waiting_share": waited / seconds, "first_waited_s": lines[0]["waited_s"]}


def print_waiting(console: Screen, found: dict[str, Any]) -> None:
    """A row for each number of workers."""
    heads = ("clips/s", "s a step", "waiting, % of a step", "load average")
    table = Table("workers", *heads, title="training the miniature; median (least-most)")
    for run in found["runs"]:
        cells = [
            show_spread(run["clips_per_s"]),
            show_spread(run["step_s"]),
            show_spread(run["waiting_share"], 100),
        ]
        table.add_row(str(run["workers"]), *cells, show_spread(run["load_average"]))
    console.print(table)


if __name__ == "__main__":
    main()
