"""Ask a model about a video; the answer appears word by word.

    python scripts/ask.py VIDEO "What is the man doing?" --ckpt runs/favor_lora/step-000360
    python scripts/ask.py VIDEO --ckpt CKPT --start-s 12 --end-s 20      # asks you for questions; Ctrl-D ends
    python scripts/ask.py data/motion_world/MotionBench/public-dataset/CLIP.mp4 "which way does it move?"

VIDEO is any file that PyAV reads, or a folder of frames. Clips are sampled as the checkpoint was
trained (its run.json), else as in the paper. Each question is asked on its own and answered greedily, so the
same question gets the same answer. Prints the answer to stdout, everything else to stderr.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import TextStreamer

from moss_vllm.data.chat import Turn, collate, encode
from moss_vllm.data.video import read_clip
from moss_vllm.errors import errors_in_one_line
from moss_vllm.vlm.base import DTYPES
from moss_vllm.vlm.checkpoint import Loaded, load

PAPER = {"sample_fps": 2.0, "short_side_px": 224, "max_frames": 180, "compress_tokens": True}


@errors_in_one_line()
def main(argv: list[str] | None = None) -> list[str]:
    """Read the clip, open the model, answer; returns the answers."""
    args = parse(argv)
    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens is {args.max_new_tokens}; it must be at least 1")
    if not args.video.expanduser().exists():
        raise FileNotFoundError(f"{args.video}: no such file or folder; give a video or a folder of frames")
    with Console(stderr=True).status(f"opening {args.ckpt}"):
        loaded = load(args.ckpt, device=args.device, dtype=DTYPES[args.dtype])
    given = {name: getattr(args, name) for name in PAPER}
    how: dict[str, Any] = {**PAPER, **loaded.run.get("protocol", {})}
    how = {name: how[name] if given[name] is None else given[name] for name in PAPER}
    compress = how.pop("compress_tokens")
    clip = read_clip(args.video.expanduser(), start_s=args.start_s, end_s=args.end_s, **how)
    frames, height, width, _ = clip.frames.shape
    last_s = clip.frame_times_s[-1]
    print(
        f"{loaded.name} sees {frames} frames of {width} x {height}, 0 to {last_s:g} s of the part",
        file=sys.stderr,
    )

    answers = []
    for question in [args.question] if args.question else read_questions():
        example = encode(loaded.processor, clip, [Turn(question)], compress=compress)
        answers.append(answer(loaded, example, args.max_new_tokens))
    return answers


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    add = parser.add_argument
    add("video", type=Path, metavar="VIDEO", help="a video file, or a folder of frames")
    add("question", nargs="?", help="none: asked for, one after the other")
    ckpt = "checkpoint folder, base model folder, hub id, or miniature (the default)"
    add("--ckpt", default="miniature", help=ckpt)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help=f"as torch names it (here: {device})")
    dtype = "bf16" if device == "cuda" else "fp32"
    add("--dtype", choices=DTYPES, default=dtype, help=f"of the base's weights (here: {dtype})")
    add("--max-new-tokens", type=int, default=256, help="longest answer (256)")
    add("--start-s", type=float, default=0.0, help="first second of the part to see (0)")
    add("--end-s", type=float, help="its last second (the end)")
    group = parser.add_argument_group("clips", "default: as the checkpoint was trained, else as in the paper")
    add = group.add_argument
    add("--sample-fps", type=float, help="frames per second (paper: 2)")
    add("--short-side", type=int, dest="short_side_px", help="pixels (paper: 224)")
    add("--max-frames", type=int, help="thin longer clips evenly to as many (180)")
    yes_no = argparse.BooleanOptionalAction
    add("--compress", action=yes_no, dest="compress_tokens", help="drop unchanged patches (yes)")
    return parser.parse_args(argv)


def read_questions() -> Iterator[str]:
    """Lines typed by the user, until Ctrl-D; empty ones are passed over."""
    while True:
        print("question: ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            print(file=sys.stderr)
            return
        if line.strip():
            yield line.strip()


@torch.inference_mode()
def answer(loaded: Loaded, example: dict[str, Tensor], max_new_tokens: int) -> str:
    """Print the answer to an encoded question while it is made."""
    model: Any = loaded.model
    tokenizer = loaded.processor.tokenizer
    batch = collate([example], pad_id=tokenizer.pad_token_id)
    device = model.get_input_embeddings().weight.device
    inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
    # A released checkpoint's own settings may sample or penalise repetition; those unused would be warned of.
    unused = {"temperature": None, "top_p": None, "top_k": None}
    greedy = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, **unused}
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    with loaded.autocast():
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, streamer=streamer, **greedy)
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


if __name__ == "__main__":
    main()
