"""MotionBench: ask a model its questions about motion, and print the right half of the paper's Table 5.

    python eval/motionbench.py                                       # the miniature on the motion world
    python eval/motionbench.py --data ~/data/MotionBench --ckpt runs/favor_videollama3_2b/step-001000
    accelerate launch --multi_gpu eval/motionbench.py --data ...     # videos shared out over processes

Expected with VideoLLaMA3-2B on the 4,018 dev questions (paper): 50.2 as released, 51.4 fine-tuned on
FAVOR-Train, 54.2 with MOSS. Prints the table and writes to `--out`: `answers/` (every prompt and output),
`result.json`, `table.md`, `table.tex`, and for the splits test and all `submission.json` (uid -> letter of
the questions whose answer is withheld; `submission-partial.json` with `--limit`). The same command continues
a run that was stopped.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from moss_vllm.data.motionbench import SPLITS, read_motionbench
from moss_vllm.data.world.benchmarks import ensure_world
from moss_vllm.evaluation.options import add_options, check_options
from moss_vllm.evaluation.protocols import MOTIONBENCH
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.files import write_whole
from moss_vllm.runtime.flags import Flags

if TYPE_CHECKING:
    from moss_vllm.evaluation.result import Result


@errors_in_one_line()
def main(argv: list[str] | None = None) -> "Result":
    """Read, ask, judge, print, write; a wrong argument or file ends the script with one line and status 1."""
    parser = Flags(__doc__)
    source = "folder with video_info.meta.jsonl and the videos, as downloaded (default: the motion world)"
    parser.add_argument("--data", type=Path, help=source)
    split = "dev has public answers, test has none"
    parser.add_argument("--split", choices=SPLITS, default="dev", help=split)
    add_options(parser, MOTIONBENCH)
    args = parser.parse_args(argv)
    check_options(parser, args)
    from moss_vllm.evaluation import command  # takes seconds: imports torch and transformers

    data = args.data or ensure_world()
    videos = read_motionbench(args.annotation or data, data, split=args.split, allow_missing=True)
    result, out = command.run(args, "motionbench", data, videos, MOTIONBENCH)
    withheld = [record for record in result.records if record["answer"] is None]
    if withheld and not result.pending:
        letters = {record["uid"]: record["parsed"] or "" for record in withheld}
        file = out / ("submission-partial.json" if result.partial else "submission.json")
        write_whole(file, json.dumps(letters, indent=2) + "\n")
        unread = sum(not letter for letter in letters.values())
        counts = f"{len(letters):,} withheld questions, {unread:,} without a letter"
        result.notes.append(f"{file.name} has {counts}")
    command.finish(result, out, args)
    return result


if __name__ == "__main__":
    main()
