"""Common options of the scripts in eval/; no slow import, so that --help answers at once."""

import argparse
from pathlib import Path

from moss_vllm.evaluation.protocols import CLIP_SETTINGS, Benchmark
from moss_vllm.runtime.files import refuse_unwritable
from moss_vllm.runtime.flags import Flags, add_clip_options, add_device, refuse_unwritable_out
from moss_vllm.runtime.ranges import FROM_ONE, FROM_ZERO, POSITIVE
from moss_vllm.video.decoders import DECODERS

RESULT_FOLDERS = Path("runs/eval")
# Flags that a table of stored answers does not depend on.
OF_A_MODEL = "ckpt cache cache_gib decoder overwrite batch_size workers protocol device precision".split()
OF_A_MODEL += "sample_fps short_side_px max_frames compress_tokens clip_settings still".split()


def add_options(parser: argparse.ArgumentParser, benchmark: Benchmark) -> None:
    """Add the options that every benchmark's script has, except `--data`."""
    add, protocols = parser.add_argument, benchmark.protocols
    add("--annotation", type=Path, help="another annotation file (default: the one found in --data)")
    add("--ckpt", default="miniature", help="checkpoint folder, base model folder, hub id, or miniature")
    out = "folder of the results (default: runs/eval/SCRIPT/NAME, where NAME has the options that were set)"
    add("--out", type=Path, help=out)
    cache = "folder of decoded clips that is read and filled (see scripts/cache_frames.py)"
    add("--cache", type=Path, help=cache)
    add("--cache-gib", type=POSITIVE, metavar="GIB", help="add to the cache up to this (default: no limit)")
    add("--decoder", choices=DECODERS, default="auto", help="the library that reads video files; auto: PyAV")
    add("--overwrite", action="store_true", help="drop the answers in --out and start again")
    missing = "count questions about missing or unreadable videos as wrong; without it they stop the run"
    add("--allow-missing", action="store_true", help=missing)
    merge = "print the table of all the answers in --out, of every process; opens no model"
    add("--merge", action="store_true", help=merge)
    batch = "questions answered together, those of one video or of several"
    add("--batch-size", type=FROM_ONE, default=16, metavar="N", help=batch)
    workers = "threads that read videos ahead; 0: none (default: one per processor, up to 16)"
    add("--workers", type=FROM_ZERO, metavar="N", help=workers)
    limit = "ask the first N questions only; the table says that it is partial (default: all)"
    add("--limit", type=FROM_ONE, metavar="N", help=limit)
    protocol = "prompt and rule of judging, see docs/evaluation.md"
    add("--protocol", choices=protocols, default=next(iter(protocols)), help=protocol)
    add_device(add)
    add = add_clip_options(parser).add_argument
    named = "the options above from a named set; options that are set replace its values"
    add("--clip-settings", choices=CLIP_SETTINGS, help=named)
    add("--still", action="store_true", help="one-frame control: every frame is the middle one")


def check_options(parser: Flags, args: argparse.Namespace) -> None:
    """Refuse, before anything is opened, flags without effect and folders that cannot be written to.

    Raises: SystemExit by argparse for the first, ValueError for the others.
    """
    if args.merge:
        parser.refuse_given(OF_A_MODEL, "with --merge, which opens no model")
        if not args.out:
            raise ValueError("--merge needs --out, the folder of the answers")
    if args.cache_gib is not None and not args.cache:
        raise ValueError(f"--cache-gib {args.cache_gib:g} needs --cache, the folder it limits")
    refuse_unwritable_out(args.out, RESULT_FOLDERS)
    if args.cache:
        refuse_unwritable(args.cache, "--cache")
