"""Training steps of the models of the paper's Tables 3, 4 and 10d, beside the memory that it prints.

    python experiments/benchmark_tables.py --device cuda --precision bf16    # the paper's batches, minutes
    python experiments/benchmark_tables.py --tables 4a --rows none --batch 1 --size-px 64        # on a CPU

A step is forward, backward and AdamW on a batch of random clips of 8 frames (16 for DiST), with random
weights: 32 clips for ViT-B and 16 for ViT-L, as in the paper. Times are medians. On a GPU "allocated" is the
most that tensors held, weights and optimizer included, "reserved" what torch had taken from the device for
them; the paper does not say which of these it prints, nor its precision. fp32 is torch's own default, with
convolutions rounded to TF32; bf16 is autocast.
"""

import gc
import os
import shlex
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.screen import Screen

TABLES_OF_COST = ("3", "4a", "4b", "4d", "10d")
WARM_UP = 2  # in the first step the optimizer has no state, and kernels are chosen


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    add = parser.add_argument
    add("--tables", nargs="+", choices=TABLES_OF_COST, default=TABLES_OF_COST, help="default: all of them")
    add("--rows", nargs="+", metavar="ROW", help="some rows of the tables, by their names")
    add("--batch", type=int, help="clips of a step (default: the paper's, 32 or 16)")
    add("--size-px", type=int, default=224, help="side of a frame (default: %(default)s)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="as in the recipe")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="of the steps (default: %(default)s)")
    add("--repeats", type=int, default=5, help=f"steps timed, after {WARM_UP} others (default: %(default)s)")
    add("--json", type=Path, help="write the results here")
    return parser


if __name__ == "__main__":
    answer_help(options)

import torch
from efficiency import CLASSES, FRAMES, build_model, train_step
from measuring import cpu_name, prepare_json, run_jobs, show_spread, spread, write_json
from paper_tables import TABLES, Row

from moss_vllm.runtime.precision import DTYPES
from moss_vllm.runtime.versions import versions

GB = 1e9


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure, print and write the json file of --json; returns its content."""
    parser = options()
    args = parser.parse_args(argv)
    if min(args.repeats, 1 if args.batch is None else args.batch) < 1:
        parser.error("--batch and --repeats take 1 or more")
    known = {row.name: row for table in args.tables for row in TABLES[table]}
    if unknown := [name for name in args.rows or () if name not in known]:
        parser.error(f"--rows: no row {', '.join(map(repr, unknown))}; the rows are {', '.join(known)}")
    patches = 112 if "3" in args.tables else 16  # ViT-B has patches of 16 pixels, Table 3's ViT-L of 14
    if args.size_px < 1 or args.size_px % patches:
        parser.error(f"--size-px is {args.size_px}; these tables take multiples of {patches}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; leave out --device cuda to measure the CPU")
    prepare_json(parser, args.json)
    words = sys.argv[1:] if argv is None else argv
    record: dict[str, Any] = {
        "command": shlex.join(["python", "experiments/benchmark_tables.py", *words]),
        "machine": f"{cpu_name()}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name() if args.device == "cuda" else "not run on a GPU",
        "versions": versions(),
        "precision": args.precision,
        "size_px": args.size_px,
        "repeats": args.repeats,
        "rows": [],
    }
    for table in args.tables:
        rows = [row for row in TABLES[table] if not args.rows or row.name in args.rows]
        settings = (args.device, args.precision, args.batch, args.size_px, args.repeats)
        jobs = [(f"Table {table}, {row.name}", partial(measure_row, row, *settings)) for row in rows]
        for row, measured in zip(rows, run_jobs(jobs), strict=True):
            record["rows"].append(
                {"table": table, "name": row.name, "paper_gb": row.paper["Mem"], **measured}
            )
        write_json(args.json, record)  # after every table: a stopped run leaves its results
    print_rows(Screen(width=130), record)
    return record


def measure_row(
    row: Row, device: str, precision: str, batch: int | None, size_px: int, repeats: int
) -> dict[str, Any]:
    """Seconds of a row's steps and their peak of memory; "failed" if the device has too little."""
    clips, dtype, cuda = batch or row.batch, DTYPES[precision], device == "cuda"
    gc.collect()  # what hooks and models of the row before left in circles
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    try:
        with torch.device(device):
            model = build_model(row.host, row.preset, row.options, size_px).to(device)
            video = torch.randn(clips, FRAMES * model.frames_per_encoded, 3, size_px, size_px)
            labels = torch.randint(CLASSES, (clips,))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        for _ in range(WARM_UP + repeats):
            started = time.perf_counter()
            train_step(model, optimizer, video, labels, dtype)
            if cuda:
                torch.cuda.synchronize()  # the optimizer's work too: `train_step` waits for the loss alone
            seconds.append(time.perf_counter() - started)
    except torch.OutOfMemoryError:
        return {"clips": clips, "failed": "out of memory"}
    timed = seconds[WARM_UP:]
    return {
        "clips": clips,
        "step_s": spread(timed),
        "clips_per_s": clips / statistics.median(timed),
        "allocated_gb": torch.cuda.max_memory_allocated() / GB if cuda else None,
        "reserved_gb": torch.cuda.max_memory_reserved() / GB if cuda else None,
    }


def print_rows(console: Screen, record: dict[str, Any]) -> None:
    """A row for each model."""
    title = f"training steps, precision {record['precision']}, frames of {record['size_px']} px; GB"
    table = Table("Table", "model", title=title)
    for head in ("clips", "s a step", "clips/s", "allocated", "reserved", "paper"):
        table.add_column(head, justify="right")
    for row in record["rows"]:
        cells = [row["table"], row["name"], str(row["clips"])]
        if "failed" in row:
            table.add_row(*cells, row["failed"])
            continue
        memory = [row["allocated_gb"], row["reserved_gb"]]
        shown = ["not measured" if gb is None else f"{gb:.2f}" for gb in memory]
        table.add_row(
            *cells, show_spread(row["step_s"]), f"{row['clips_per_s']:.3g}", *shown, row["paper_gb"]
        )
    console.print(table, f"{record['machine']}; {record['gpu']}", sep="\n")


if __name__ == "__main__":
    main()
