"""MotionBench: ask a model its questions about motion, and print the right half of the paper's Table 5.

    python eval/motionbench.py                                       # the miniature on the motion world
    python eval/motionbench.py --data ~/data/MotionBench --ckpt runs/favor_lora/step-001000

Expected with VideoLLaMA3-2B on the 4,018 dev questions (paper): 50.2 as released, 51.4 fine-tuned on
FAVOR-Train, 54.2 with MOSS. Prints the table and writes to `--out`: `answers.jsonl` (every prompt and
output), `result.json`, `table.md`, and for the splits test and all `submission.json` (uid -> letter of the
questions whose answer is withheld). A run that was stopped goes on with the same command.
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from moss_vllm.data.cache import choose_reader
from moss_vllm.data.motion_world import ensure_world
from moss_vllm.data.motionbench import MOTIONBENCH_TASKS, SPLITS, read_motionbench
from moss_vllm.errors import errors_in_one_line
from moss_vllm.evaluation import (
    MOTIONBENCH_PROTOCOLS,
    Result,
    add_options,
    choose_folder,
    evaluate,
)
from moss_vllm.vlm.checkpoint import load

BENCHMARK = "MotionBench-Dev"


@errors_in_one_line()
def main(argv: list[str] | None = None) -> Result:
    """Read, ask, judge, print, write; a wrong argument or file ends it with one line and status 1."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    source = "folder with video_info.meta.jsonl and the videos, as downloaded; none: the motion world"
    parser.add_argument("--data", type=Path, help=source)
    split = "dev has public answers, test has none (default: dev)"
    parser.add_argument("--split", choices=SPLITS, default="dev", help=split)
    add_options(parser, MOTIONBENCH_PROTOCOLS)
    args = parser.parse_args(argv)

    data = args.data or ensure_world()
    videos = read_motionbench(args.annotation or data, data, split=args.split)
    loaded = load(args.ckpt, device=args.device)
    protocol = MOTIONBENCH_PROTOCOLS[args.protocol].adapt(loaded.run.get("protocol", {}), vars(args))
    out = choose_folder(args, "motionbench", loaded.name, MOTIONBENCH_PROTOCOLS)
    result = evaluate(
        loaded,
        videos,
        MOTIONBENCH_TASKS,
        protocol,
        store=out / "answers.jsonl",
        batch_size=args.batch_size,
        limit=args.limit,
        overwrite=args.overwrite,
        read=choose_reader(args.cache),
    )
    if any((folder / "world.json").is_file() for folder in (data, data.resolve().parent)):
        result.notes.append(
            "the paper's rows are of MotionBench; these data are the motion world, not comparable"
        )
    if args.split != "dev":
        withheld = [record for record in result.records if record["answer"] is None]
        letters = {record["uid"]: record["parsed"] or "" for record in withheld}
        (out / "submission.json").write_text(json.dumps(letters, indent=2) + "\n", encoding="utf-8")
        unread = sum(not letter for letter in letters.values())
        told = f"submission.json has {len(letters):,} withheld questions, {unread:,} without a letter"
        result.notes.append(told)
    result.save(out, BENCHMARK)
    Console().print(result.table(BENCHMARK))
    print(f"written to {out}", file=sys.stderr)
    return result


if __name__ == "__main__":
    main()
