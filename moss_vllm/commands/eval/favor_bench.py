"""FAVOR-Bench: ask a model its questions about motion, and print the left half of the paper's Table 5.

    python eval/favor_bench.py                                       # the miniature on the motion world
    python eval/favor_bench.py --data ~/data/FAVOR --ckpt runs/favor_videollama3_2b/step-001000
    accelerate launch --multi_gpu eval/favor_bench.py --data ...     # videos shared out over processes

Expected with VideoLLaMA3-2B on the 8,184 questions (paper): 42.2 as released, 45.5 fine-tuned on FAVOR-Train,
46.6 with MOSS. The paper does not name its prompt and rule of judging: the protocol `favor_official` is the
benchmark's own (the output must contain the right option's text), `letter` is VideoLLaMA3's. Prints the table
and writes to `--out`: `answers/` (every prompt and output), `result.json`, `table.md`, `table.tex`. The same
command continues a run that was stopped.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from moss_vllm.data.favor import read_favor_bench
from moss_vllm.data.world.benchmarks import ensure_world
from moss_vllm.evaluation.options import add_options, check_options
from moss_vllm.evaluation.protocols import FAVOR_BENCH
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.flags import Flags

if TYPE_CHECKING:
    from moss_vllm.evaluation.result import Result


@errors_in_one_line()
def main(argv: list[str] | None = None) -> "Result":
    """Read, ask, judge, print, write; a wrong argument or file ends the script with one line and status 1."""
    parser = Flags(__doc__)
    source = "folder with video_perspective.json and the videos, as downloaded (default: the motion world)"
    parser.add_argument("--data", type=Path, help=source)
    add_options(parser, FAVOR_BENCH)
    args = parser.parse_args(argv)
    check_options(parser, args)
    from moss_vllm.evaluation import command  # takes seconds: imports torch and transformers

    data = args.data or ensure_world()
    data = data / "FAVOR" if (data / "FAVOR").is_dir() else data
    videos = read_favor_bench(args.annotation or data, data, allow_missing=True)
    result, out = command.run(args, "favor_bench", data, videos, FAVOR_BENCH)
    command.finish(result, out, args)
    return result


if __name__ == "__main__":
    main()
