"""The cost of AdaTAD with MOSS: a training step and its parts, reading a window, windows of a test.

    python experiments/benchmark_detection.py                                    # a small window, minutes
    python experiments/benchmark_detection.py --variant b --frames 768 --size-px 160 --steps 1 --parts true
    python experiments/benchmark_detection.py --variant b --frames 768 --size-px 160 --device cuda

Weights and pixels are random, one window a step, everything in one process and one thread; on a CPU, times
are CPU time of this thread.

step: forward and backward in three ways, in turns: as here (backward computes each layer again), without
MOSS, and with all that the layers compute kept instead. At the start all three have the same loss, on a CPU
to the bit. Then the parts of our step: where its time goes.

reading: a video as THUMOS-14 has them (320 x 180, 30 frames a second, generated), one window of it read from
the file and from a filled frame cache, beside the time of our step.

test: the forward pass of a window, decoding its outputs, and soft-NMS of a video of 4 windows.

true: --steps whole training steps, with targets, clipping and AdamW, one after the other: seconds, losses,
the peak of memory beside its estimate, and whether outputs equal those without MOSS, bit for bit. The peak
adds up the tensors that are alive, which slows a step; on a GPU, what torch had allocated is told besides.
"""

import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.memory import process_peak_bytes
from moss_vllm.runtime.ranges import FROM_ONE
from moss_vllm.runtime.screen import Screen

PARTS = ("step", "reading", "test", "true")


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=PARTS[:3], help="default: the first three")
    add("--variant", choices=("s", "b", "l"), default="s", help="the encoder's size")
    add("--frames", type=FROM_ONE, default=128, help="of a window, AdaTAD's are 768")
    add("--size-px", type=FROM_ONE, default=96, help="side of a frame, AdaTAD's are 160")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="as in the recipe")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="of the model")
    add("--repeats", type=FROM_ONE, default=3, help="of each measurement")
    add("--steps", type=FROM_ONE, default=1, help="training steps of the part true")
    add("--json", type=Path, help="write the results here")
    return parser


if __name__ == "__main__":
    answer_help(options)

import torch
from detection_steps import (
    STRIDE,
    WAYS,
    Setting,
    measure_parts,
    measure_reading,
    measure_step,
    measure_test,
    train_steps,
)
from measuring import cpu_name, prepare_json, run_jobs, show_spread, write_json

from moss_vllm.runtime.versions import versions
from moss_vllm.training.step_memory import GIB


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and write the json file of --json; returns its content."""
    parser = options()
    args = parser.parse_args(argv)
    if args.frames % 16 or args.size_px % 16:
        parser.error("--frames and --size-px take multiples of 16")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; leave out --device cuda to measure the CPU")
    prepare_json(parser, args.json)
    torch.set_num_threads(1)
    console, words = Screen(width=130), sys.argv[1:] if argv is None else argv
    setting = Setting(args.variant, args.frames, args.size_px, args.precision, args.device)
    record: dict[str, Any] = {
        "command": shlex.join(["python", "experiments/benchmark_detection.py", *words]),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if args.device == "cuda" else "not run on a GPU",
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "setting": setting._asdict(),
        "load_average": {"before": os.getloadavg()[0]},
    }
    for part in (part for part in PARTS if part in args.parts):
        jobs = {
            "step": partial(measure_step_and_parts, setting, args.repeats),
            "reading": partial(measure_reading, setting, args.repeats),
            "test": partial(measure_test, setting, args.repeats),
            "true": partial(train_steps, setting, args.steps),
        }
        [record[part]] = run_jobs([(part, jobs[part])])
        SHOW[part](console, record)
        record["load_average"]["after"] = os.getloadavg()[0]
        record["largest_process_gib"] = process_peak_bytes() / GIB
        write_json(args.json, record, console)  # after every part: a stopped run leaves its results
    load = record["load_average"]["before"]
    console.print(f"{record['machine']}; {record['gpu']}; load average {load:.1f} before")
    return record


def measure_step_and_parts(setting: Setting, repeats: int) -> dict[str, Any]:
    """All `WAYS` of a step, and the parts of ours."""
    return {"ways": measure_step(setting, repeats), "parts": measure_parts(setting, repeats)}


def describe(record: dict[str, Any]) -> str:
    """The window, and what computes it."""
    setting = record["setting"]
    window = f"a window of {setting['frames']} x {setting['size_px']} px, AdaTAD-{setting['variant'].upper()}"
    return f"{window}, {setting['precision']}; median (least-most)"


def print_step(console: Screen, record: dict[str, Any]) -> None:
    """A row for each way, then the parts of ours."""
    title = f"a training step of {describe(record)}, and how many times ours"
    table = Table("", "forward, s", "step, s", "x", "kept, MiB", "x", "peak, MiB", "x", title=title)
    for way, one in record["step"]["ways"].items():
        cells = [show_spread(one["forward_s"]), show_spread(one["step_s"]), f"{one['ratio']['step_s']:.2f}"]
        for key in ("kept_mib", "peak_mib"):
            known = one[key] is not None
            cells += [f"{one[key]:,.0f}", f"{one['ratio'][key]:.2f}"] if known else ["not known here", "-"]
        table.add_row(WAYS[way], *cells)
    console.print(table)
    parts = record["step"]["parts"]
    table = Table("part of our step", "s", "% of the step", title=describe(record))
    for part, seconds in parts["seconds"].items():
        table.add_row(part, show_spread(seconds), f"{100 * parts['shares'][part]:.1f}")
    console.print(table)


def print_reading(console: Screen, record: dict[str, Any]) -> None:
    """Seconds to read a window, and how many steps would wait for it."""
    found = record["reading"]
    table = Table("a window read", "s", "of a step", title=f"{found['frames']} frames, every {STRIDE}th")
    step = record.get("step")
    for name in ("file", "cache"):
        seconds = found[f"{name}_s"]
        share = step and seconds["median"] / step["ways"]["ours"]["step_s"]["median"]
        table.add_row(f"from the {name}", show_spread(seconds), f"{share:.3f}" if share else "not measured")
    console.print(
        table, f"{found['cache_mib']:,.0f} MiB of cache for a video of {found['video_frames']:,} frames"
    )


def print_test(console: Screen, record: dict[str, Any]) -> None:
    """Seconds of a window by part, and windows a second."""
    found = record["test"]
    table = Table("part of a test", "s a window", "%", title=describe(record))
    for part, seconds in found["seconds"].items():
        table.add_row(part, show_spread(seconds), f"{100 * found['shares'][part]:.1f}")
    console.print(
        table, f"{found['windows_per_s']:.3g} windows a second, {found['detections']:,} detections each"
    )


def print_true(console: Screen, record: dict[str, Any]) -> None:
    """A row for each step."""
    found = record["true"]
    heads = ("forward, s", "backward, s", "clip, AdamW, s", "class loss", "segment loss", "gradient norm")
    table = Table("step", *heads, title=f"training on {describe(record).split(';')[0]}")
    for number, step in enumerate(found["steps"], start=1):
        cells = (f"{step[key]:.2f}" for key in ("forward_s", "backward_s", "optimizer_s"))
        table.add_row(str(number), *cells, *(f"{step[key]:.4f}" for key in ("classes", "segments", "norm")))
    equal = "equal" if found["equal_without_moss"] else "NOT equal"
    peak = f"{found['peak_gib']:.2f} GiB of tensors at the peak, {found['estimated_gib']:.2f} estimated"
    if found["allocated_gib"] is not None:
        peak += f", {found['allocated_gib']:.2f} allocated"
    console.print(table, f"{peak}; outputs {equal} those without MOSS, bit for bit, at the start")


SHOW = {"step": print_step, "reading": print_reading, "test": print_test, "true": print_true}


if __name__ == "__main__":
    main()
