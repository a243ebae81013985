"""The miniature's Table 5 over several seeds: means and spreads, and the one-frame control.

    python experiments/reproduce_miniature.py --seeds 3      # or: make reproduce

Runs `experiments/demo.py` once per seed (the seed decides MOSS's and LoRA's first weights and the order of
clips; the motion world stays the same), then each seed's model with MOSS on clips whose every frame is the
middle one: what it still answers there, it did not see as motion. Writes means, sample standard deviations
and every seed's numbers to `benchmarks/results/miniature.json`."""

import json
import os
import platform
from pathlib import Path
from typing import Any

from moss_vllm.data.world.benchmarks import DEFAULT_ROOT
from moss_vllm.evaluation.tables import table_5
from moss_vllm.runtime.files import write_whole
from moss_vllm.runtime.flags import Flags, answer_help
from moss_vllm.runtime.screen import Screen, say
from moss_vllm.runtime.tables import mean_and_spread

RESULTS = Path("benchmarks/results/miniature.json")


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 on")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="folder of the runs")
    parser.add_argument("--world", type=Path, default=DEFAULT_ROOT, help="folder of the motion world")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: those of the recipe)")
    parser.add_argument("--json", type=Path, default=RESULTS, help="file of the numbers")
    return parser


if __name__ == "__main__":
    answer_help(options)

import demo
import torch

from moss_vllm.runtime.provenance import versions

CONTROL = "+ train + MOSS, one frame"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the seeds; returns what is written."""
    args = options().parse_args(argv)

    by_seed: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        out = args.out / f"seed-{seed}"
        flags = ["--out", str(out), "--world", str(args.world), "--seed", str(seed)]
        rows = demo.main([*flags, *([] if args.steps is None else ["--steps", str(args.steps)])])
        with_moss = {CONTROL: demo.last_checkpoint(out / "moss")}
        still = demo.evaluate(with_moss, args.world, out, "--still")[CONTROL]
        control = {name: found["accuracy_percent"] for name, found in still.items()}
        by_seed.append({**rows, CONTROL: control})
    chance = json.loads((args.out / "seed-0" / "results.json").read_text())["chance"]
    means = {
        row: {name: mean_and_spread([run[row][name] for run in by_seed]) for name in demo.BENCHMARKS}
        for row in by_seed[0]
    }
    notes = [f"mean ± sample standard deviation over {args.seeds} seeds"]
    table = table_5({"chance": chance, **means}, title="Motion world (%)", notes=notes)
    Screen(width=200).print(table)
    written = {
        "command": f"python experiments/reproduce_miniature.py --seeds {args.seeds}"
        + ("" if args.steps is None else f" --steps {args.steps}"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, no GPU",
        "versions": versions(),
        "chance": chance,
        "mean_and_spread": means,
        "seeds": by_seed,
    }
    write_whole(args.json, json.dumps(written, indent=2) + "\n")
    say(f"written to {args.json}")
    return written


if __name__ == "__main__":
    main()
