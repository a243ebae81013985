"""What the tests of classifiers, detectors and boundary models share: flags, their checks, and the record.

Nothing here imports torch before a model is opened.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moss_vllm.runtime.files import refuse_unwritable
from moss_vllm.runtime.flags import PRECISIONS, Flags, choose_device, refuse_unwritable_out
from moss_vllm.runtime.line_store import Shard
from moss_vllm.runtime.screen import say
from moss_vllm.video.decoders import DECODERS

READING = tuple("workers cache cache_gib decoder device precision".split())  # what `add_reading` adds
WHERE = ("data", "root", "annotation", "videos", "subset")


def add_reading(parser: Flags, what: str) -> None:
    """Flags of how `what`, clips or videos, is read, and of where the model runs."""
    add = parser.add_argument
    add("--workers", type=int, default=2, help=f"processes that read {what} (default: %(default)s)")
    add("--cache", type=Path, help="folder of decoded frames, read and filled")
    add("--cache-gib", type=float, help="add to --cache up to this size (default: no limit)")
    add("--decoder", choices=DECODERS, default="auto", help="what reads video files; auto is PyAV")
    add("--device", help="a device of torch, such as cuda:1 or cpu (default: a GPU where there is one)")
    add("--precision", choices=PRECISIONS, default="fp32", help="number format of the arithmetic")


def check_subject(parser: Flags, args: argparse.Namespace, of_a_model: Sequence[str]) -> None:
    """Refuse all but one of a checkpoint and a file of predictions; beside a file, the flags of a model."""
    if (args.ckpt is None) == (args.predictions is None):
        parser.error("give --ckpt, to test a checkpoint, or --predictions, to score a file")
    if args.predictions:
        parser.refuse_given([*of_a_model, *READING], "with --predictions, which is scored without a model")


def check_places(parser: Flags, args: argparse.Namespace) -> None:
    """Refuse folders that cannot be written to, before a model is opened."""
    if args.cache_gib is not None and args.cache is None:
        parser.error("--cache-gib limits what is added to --cache, which is not given; leave it out")
    if args.ckpt or args.out:
        refuse_unwritable_out(args.out, args.ckpt.parent if args.ckpt else Path())
    if args.cache:
        refuse_unwritable(args.cache, "--cache")


def choose_place(args: argparse.Namespace) -> tuple[Shard, str]:
    """This process among those of the test, and its device."""
    choose_device(args)
    shard, place = Shard.from_environment(), args.device
    if shard.processes > 1 and args.device == "cuda":
        place = f"cuda:{os.environ['LOCAL_RANK']}"
    return shard, place


def choose_data(args: argparse.Namespace, run: dict[str, Any]) -> argparse.Namespace:
    """The settings of a checkpoint's run, with the data that the flags name.

    Raises: ValueError for a record without settings, step or command.
    """
    if missing := [name for name in ("settings", "step", "command") if name not in run]:
        raise ValueError(f"{args.ckpt}: its record has no {', '.join(missing)}; use a whole checkpoint")
    where = {**run["settings"], "data": run["data"], "allow_missing": args.allow_missing}
    where |= {"annotation": None, "videos": None} if args.root else {}  # those of the other root
    given = {name: value for name in WHERE if (value := getattr(args, name)) is not None}
    return argparse.Namespace(**where | given)


def describe_checkpoint(args: argparse.Namespace, loaded: Any) -> dict[str, Any]:
    """What the lines of a test record of its checkpoint, and of how files are read."""
    return {
        "checkpoint": str(args.ckpt.absolute()),
        "model_settings": loaded.settings_digest(),
        "run": {name: loaded.run[name] for name in ("step", "command")},
        **({} if args.decoder in ("auto", "pyav") else {"decoder": args.decoder}),  # others differ in pixels
    }


def tell_split(split: Any) -> None:
    """Print what was read, and what is odd about it."""
    say(split.report(), *split.notes, sep="\n", file=sys.stderr)
