"""Ask a model about a video; the answer appears word by word.

    python scripts/ask.py VIDEO "What is the man doing?" --ckpt runs/favor_lora/step-000360
    python scripts/ask.py VIDEO --ckpt CKPT --start-s 12 --end-s 20      # asks you for questions; Ctrl-D ends
    python scripts/ask.py data/motion_world/MotionBench/public-dataset/CLIP.mp4 "which way does it move?"

VIDEO is any file that PyAV reads, or a folder of frames. It is sampled by the clip settings in the
checkpoint's run.json, or the paper's if it has none. Each question is asked on its own and answered greedily,
by the model's own generation config (a repetition penalty, say), so the same question gets the same answer.
Prints the answer to stdout, everything else to stderr.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from moss_vllm.commands import is_starting
from moss_vllm.runtime.errors import errors_in_one_line
from moss_vllm.runtime.files import tell_existing
from moss_vllm.runtime.flags import Flags, add_clip_options, add_device, answer_help, choose_device
from moss_vllm.runtime.ranges import FROM_ONE, SECOND
from moss_vllm.runtime.screen import say, working


def options() -> Flags:
    """The command line."""
    parser = Flags(__doc__)
    add = parser.add_argument
    add("video", type=Path, metavar="VIDEO", help="a video file, or a folder of frames")
    add("question", nargs="?", help="the question; without one the script asks you for questions")
    add("--ckpt", default="miniature", help="checkpoint folder, base model folder, hub id, or miniature")
    add_device(add)
    add("--max-new-tokens", type=FROM_ONE, default=256, metavar="N", help="the most tokens of an answer")
    add("--start-s", type=SECOND, default=0.0, metavar="S", help="second at which the shown part begins")
    add("--end-s", type=SECOND, metavar="S", help="second at which it ends (default: the end of the video)")
    add_clip_options(parser)
    return parser


if is_starting(__name__):
    answer_help(options)

import torch
from torch import Tensor
from transformers import TextStreamer

from moss_vllm.data.rows import Turn
from moss_vllm.evaluation.generation import GREEDY, not_followed
from moss_vllm.runtime.precision import DTYPES
from moss_vllm.video.clip import PAPER_SAMPLING, Sampling, read_clip
from moss_vllm.vlm.checkpoint import Loaded, load
from moss_vllm.vlm.processor import fit_clip_settings
from moss_vllm.vlm.reload_check import model_inputs

PAPER = {**PAPER_SAMPLING.settings, "compress_tokens": True}


@errors_in_one_line()
def main(argv: list[str] | None = None) -> list[str]:
    """Read the clip, open the model, answer; returns the answers."""
    args = options().parse_args(argv)
    if not args.video.expanduser().exists():
        raise FileNotFoundError(f"{args.video}: no such file or folder; give a video or a folder of frames")
    choose_device(args)
    with working(f"opening {args.ckpt}"):
        try:
            loaded = load(args.ckpt, device=args.device, dtype=DTYPES[args.precision])
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}{tell_existing('run.json')}") from error
    flags = {name: value for name in PAPER if (value := getattr(args, name)) is not None}
    clip_settings: dict[str, Any] = {**PAPER, **loaded.run.get("protocol", {}), **flags}
    clip_settings = fit_clip_settings(loaded.processor, clip_settings, flags)
    compress, chat = clip_settings["compress_tokens"], loaded.family.chat
    sides = chat.frame_size(loaded.processor)
    sampling = Sampling(**{name: clip_settings[name] for name in PAPER_SAMPLING.settings}, sides=sides)
    clip = read_clip(args.video.expanduser(), sampling=sampling, start_s=args.start_s, end_s=args.end_s)
    frames, height, width, _ = clip.frames.shape
    last_s = clip.frame_times_s[-1]
    say(
        f"{loaded.name} sees {frames} frames of {width} x {height} pixels, "
        f"from {args.start_s:g} to {args.start_s + last_s:g} s",
        file=sys.stderr,
    )

    if ignored := not_followed(cast(Any, loaded.model)):
        say(ignored, file=sys.stderr)

    answers = []
    for question in [args.question] if args.question else read_questions():
        example = chat.encode(loaded.processor, clip, [Turn(question)], compress=compress)
        answers.append(answer(loaded, example, args.max_new_tokens))
    return answers


def read_questions() -> Iterator[str]:
    """Lines typed by the user, until Ctrl-D; empty lines are skipped."""
    while True:
        say("question: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            say(file=sys.stderr)
            return
        if line.strip():
            yield line.strip()


class AnswerStreamer(TextStreamer):
    """Prints an answer as it is generated; control characters do not reach the terminal."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print finished words."""
        say(*text.split("\n"), sep="\n", end="\n" if stream_end else "", flush=True)


@torch.inference_mode()
def answer(loaded: Loaded, example: dict[str, Tensor], max_new_tokens: int) -> str:
    """Print the answer to an encoded question while it is generated; returns it."""
    model: Any = loaded.model
    tokenizer = loaded.processor.tokenizer
    inputs = model_inputs(model, loaded.processor, example)
    streamer = AnswerStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    with loaded.autocast():
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, streamer=streamer, **GREEDY)
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
