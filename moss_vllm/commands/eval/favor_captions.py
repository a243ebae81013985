"""FAVOR-Bench's open-ended half: a caption of every video, for the benchmark's own LLM-free scripts to score.

    python eval/favor_captions.py                                    # the miniature on the motion world
    python eval/favor_captions.py --data ~/data/FAVOR --ckpt runs/favor_videollama3_2b/step-001000
    accelerate launch --multi_gpu eval/favor_captions.py --data ...  # videos shared out over processes

Writes to `--out`: `answers/` (each caption as soon as it is finished) and, once all are, `captions.json`, a
list of {video name without .mp4: caption}, and `about.json` (what was run). To score the list, in the folder
LLM-free of FAVOR-Bench's repository: remove an older `extract_results/`, to which step 1 would add, put the
list in place of `test_case` in `LLM-free_step1_extract.ipynb`, run that and then `LLM-free_step2_compare.py`.

FAVOR-Bench's repository has no prompt for captions. The default of `--prompt` is the prompt that
recipes/favor_lora.py trains with; compare only scores of one prompt. The same command continues a run that
was stopped.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moss_vllm.data.favor import read_favor_bench
from moss_vllm.data.rows import CAPTION_PROMPT, Question
from moss_vllm.data.world.benchmarks import ensure_world
from moss_vllm.evaluation.options import add_options, check_options
from moss_vllm.evaluation.protocols import Benchmark, Protocol
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.files import write_whole
from moss_vllm.runtime.flags import Flags
from moss_vllm.runtime.screen import say

if TYPE_CHECKING:
    from moss_vllm.evaluation.result import Result

# A caption answers a question without options, whose uid is the video's id; no caption is right or wrong.
CAPTIONS = Benchmark(
    "FAVOR-Bench captions",
    {"caption": "Caption"},
    {"caption": Protocol("caption", lambda question: question.raw, lambda *_: (False, None), 512)},
)


@errors_in_one_line()
def main(argv: list[str] | None = None) -> "Result":
    """Read, ask, write; a wrong argument or file ends the script with one line and status 1."""
    parser = Flags(__doc__)
    source = "folder with video_perspective.json and the videos, as downloaded (default: the motion world)"
    parser.add_argument("--data", type=Path, help=source)
    parser.add_argument("--prompt", default=CAPTION_PROMPT, help="what to ask about each video")
    add_options(parser, CAPTIONS)
    args = parser.parse_args(argv)
    check_options(parser, args)
    from moss_vllm.evaluation import command  # takes seconds: imports torch and transformers

    data = args.data or ensure_world()
    data = data / "FAVOR" if (data / "FAVOR").is_dir() else data
    videos = [
        replace(video, questions=(Question(video.video_id, "caption", args.prompt, (), None, args.prompt),))
        for video in read_favor_bench(args.annotation or data, data, allow_missing=True)
    ]
    result, out = command.run(args, "favor_captions", data, videos, CAPTIONS)
    write_captions(result, out, args)
    return result


def write_captions(result: "Result", out: Path, args: argparse.Namespace) -> None:
    """Write the captions; while some are pending, say how many and which command merges.

    The scorer's mean leaves out videos without an entry, so a video that could not be read gets an empty
    caption, and the captions of a part of the videos go to a file of another name.
    """
    from moss_vllm.evaluation import command

    if result.pending:
        say(
            f"{result.pending:,} videos have no caption yet, because of other processes or a run that was "
            f"stopped; whoever ends last writes captions.json to {out}, and so does: "
            f"{command.merge_command(args, out)}",
            file=sys.stderr,
        )
        return
    captions = [{record["uid"]: record["output"] or ""} for record in result.records]
    prompt = next((record.get("prompt") for record in result.records if record["output"] is not None), None)
    about = {
        **result.header,
        "prompt": prompt,
        "prompt_source": "moss_vllm; FAVOR-Bench's repository has none"
        if prompt == CAPTION_PROMPT
        else "--prompt",
        "captions": len(captions),
        "empty": [uid for caption in captions for uid, text in caption.items() if not text.strip()],
        "failed": result.failed,
    }
    file = out / ("captions-partial.json" if result.partial else "captions.json")
    for path, content in ((out / "about.json", about), (file, captions)):
        write_whole(path, json.dumps(content, indent=2) + "\n")
    say(
        f"{len(captions):,} of {result.header['questions']:,} captions, {len(about['empty']):,} of them empty"
    )
    if result.failed:
        say(f"missing or unreadable, with an empty caption: {', '.join(result.failed)}")
    say(f"written to {file}", file=sys.stderr)


if __name__ == "__main__":
    main()
