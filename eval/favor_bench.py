"""FAVOR-Bench: ask a model its questions about motion, and print the left half of the paper's Table 5.

    python eval/favor_bench.py                                       # the miniature on the motion world
    python eval/favor_bench.py --data ~/data/FAVOR --ckpt runs/favor_lora/step-001000

Expected with VideoLLaMA3-2B on the 8,184 questions (paper): 42.2 as released, 45.5 fine-tuned on FAVOR-Train,
46.6 with MOSS. The paper does not say how it asked and judged: `favor_official` is the benchmark's own way
(the output must have the right option's text), `letter` is VideoLLaMA3's. Prints the table and writes to
`--out`: `answers.jsonl` (every prompt and output), `result.json`, `table.md`. A run that was stopped goes on
with the same command.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from moss_vllm.data.cache import choose_reader
from moss_vllm.data.favor import FAVOR_TASKS, read_favor_bench
from moss_vllm.data.motion_world import ensure_world
from moss_vllm.errors import errors_in_one_line
from moss_vllm.evaluation import (
    FAVOR_PROTOCOLS,
    Result,
    add_options,
    choose_folder,
    evaluate,
)
from moss_vllm.vlm.checkpoint import load

BENCHMARK = "FAVOR-Bench"


@errors_in_one_line()
def main(argv: list[str] | None = None) -> Result:
    """Read, ask, judge, print, write; a wrong argument or file ends it with one line and status 1."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    source = "folder with video_perspective.json and the videos, as downloaded; none: the motion world"
    parser.add_argument("--data", type=Path, help=source)
    add_options(parser, FAVOR_PROTOCOLS)
    args = parser.parse_args(argv)

    data = args.data or ensure_world()
    data = data / "FAVOR" if (data / "FAVOR").is_dir() else data
    videos = read_favor_bench(args.annotation or data, data)
    loaded = load(args.ckpt, device=args.device)
    protocol = FAVOR_PROTOCOLS[args.protocol].adapt(loaded.run.get("protocol", {}), vars(args))
    out = choose_folder(args, "favor_bench", loaded.name, FAVOR_PROTOCOLS)
    result = evaluate(
        loaded,
        videos,
        FAVOR_TASKS,
        protocol,
        store=out / "answers.jsonl",
        batch_size=args.batch_size,
        limit=args.limit,
        overwrite=args.overwrite,
        read=choose_reader(args.cache),
    )
    if any((folder / "world.json").is_file() for folder in (data, data.resolve().parent)):
        result.notes.append(
            "the paper's rows are of FAVOR-Bench; these data are the motion world, not comparable"
        )
    result.save(out, BENCHMARK)
    Console().print(result.table(BENCHMARK))
    print(f"written to {out}", file=sys.stderr)
    return result


if __name__ == "__main__":
    main()
