"""The miniature's Table 5 over several seeds: means and spreads of what the demo measures.

    python experiments/reproduce_miniature.py --seeds 3      # or: make reproduce

Runs `experiments/demo.py` once per seed (the seed decides MOSS's and LoRA's first weights and the order of
clips; the motion world stays the same). Writes means, sample standard deviations and every seed's numbers to
`benchmarks/results/MODEL.json`, and the tables of docs/miniature.md to tables.md in `--out`."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moss_vllm.data.world.benchmarks import DEFAULT_ROOT
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.files import refuse_unwritable, write_whole
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.ranges import FROM_ONE
from moss_vllm.runtime.screen import Screen, say

RESULTS = Path("benchmarks/results")


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    model = "the miniature, as demo.py has them (default: miniature)"
    parser.add_argument("--model", default="miniature", help=model)
    parser.add_argument("--seeds", type=FROM_ONE, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="folder of the runs")
    parser.add_argument("--world", type=Path, default=DEFAULT_ROOT, help="folder of the motion world")
    parser.add_argument("--steps", type=FROM_ONE, help="optimizer steps (default: those of the recipe)")
    parser.add_argument("--json", type=Path, help=f"file of the numbers (default: {RESULTS}/MODEL.json)")
    return parser


if __name__ == "__main__":
    answer_help(options)

import demo
import torch
from measuring import prepare_json

from moss_vllm.evaluation import protocols
from moss_vllm.runtime.tables import Cell, Table, format_cell, mean_and_spread
from moss_vllm.runtime.versions import versions


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the seeds; returns the content of the --json file."""
    parser = options()
    args = parser.parse_args(argv)
    if args.model not in demo.MODELS:
        parser.error(f"--model {args.model} is none of {', '.join(demo.MODELS)}")
    args.json = args.json or RESULTS / f"{args.model}.json"
    refuse_unwritable(args.out, "--out")
    prepare_json(parser, args.json)

    by_seed: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        flags = ["--out", str(args.out / f"seed-{seed}"), "--world", str(args.world), "--seed", str(seed)]
        flags += ["--model", args.model]
        by_seed.append(demo.main([*flags, *([] if args.steps is None else ["--steps", str(args.steps)])]))
    written = {
        "command": f"python experiments/reproduce_miniature.py --seeds {args.seeds}"
        + ("" if args.model == demo.MODELS[0] else f" --model {args.model}")
        + ("" if args.steps is None else f" --steps {args.steps}"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, no GPU",
        "versions": versions(),
        "chance": by_seed[0]["chance"],
        **average(by_seed),
        "seeds": by_seed,
    }
    tables = tables_of(written)
    Screen(width=200).print(*tables, sep="\n")
    write_whole(args.out / "tables.md", "\n".join(table.markdown() for table in tables))
    write_whole(args.json, json.dumps(written, indent=2) + "\n")
    say(f"written to {args.json}, its tables to {args.out / 'tables.md'}")
    return written


def average(by_seed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation of the seeds' numbers, which are laid out as in `demo.summarise`.

    Keys: "mean_and_spread" of "rows", "named", and "differences" in points.
    """
    rows = by_seed[0]["rows"]
    return {
        "mean_and_spread": {
            row: {
                name: {p: mean_and_spread([seed["rows"][row][name][p] for seed in by_seed]) for p in by}
                for name, by in some.items()
            }
            for row, some in rows.items()
        },
        "named": {
            row: {name: mean_and_spread([seed["named"][row][name] for seed in by_seed]) for name in some}
            for row, some in rows.items()
        },
        "differences": {
            name: mean_and_spread(
                [{p: one["points"] for p, one in seed["differences"][name].items()} for seed in by_seed]
            )
            for name in by_seed[0]["differences"]
        },
    }


def tables_of(written: Mapping[str, Any]) -> list[Table]:
    """Of each benchmark and protocol; beside its own protocol the share of answers that name an option."""
    tables = []
    for name, some in demo.PROTOCOLS.items():
        for place, protocol in enumerate(some):
            rows: dict[str, dict[str, dict[str, Cell]]] = {"chance": {name: dict(written["chance"][name])}}
            for row, by in written["mean_and_spread"].items():
                named = {} if place else {demo.NAMED: written["named"][row][name]["all"]}
                rows[row] = {name: by[name][protocol] | named}
            tasks = ["all", *protocols.BENCHMARKS[name].tasks]
            columns = {name: [*tasks, *([] if place else [demo.NAMED])]}
            seeds = len(written["seeds"])
            notes = ["seed 0" if seeds == 1 else f"mean ± sample standard deviation, {seeds} seeds"]
            points = format_cell(written["differences"][name][protocol])
            notes.append(f"MOSS against the same training without it: {points} points of all")
            tables.append(Table(f"{name}'s format by {protocol} (%)", columns, rows, notes))
    return tables


if __name__ == "__main__":
    with errors_in_one_line("the same command continues, and repeats no finished stage"):
        main()
