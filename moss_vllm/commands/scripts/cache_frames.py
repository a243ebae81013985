"""Decode every clip once, in parallel, into a folder from which training and evaluation then read frames.

    python scripts/cache_frames.py --data FAVOR/prepared/kept.json --cache /fast/disk/frames --workers 8
    python recipes/favor_lora.py   --data FAVOR/prepared/kept.json --cache /fast/disk/frames ...

A clip is stored as resized uint8 frames: with the paper's sampling (2 fps, short side 224) about 0.5 MB per
second of wide video. Once the first clips are done, the size of the whole is printed, and checked against the
free disk space. Existing entries are skipped, so the same command continues after a stop. Training with other
values of the sampling flags, or a model whose frames have other sides (--model), needs other entries. Writes
CACHE/bad.jsonl (as check_videos.py). Exit status: 0 if all is good, 1 if some clips are bad, 2 if the disk is
too small.
"""

import random
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

from moss_vllm.commands.scripts.check_videos import (
    Part,
    add_options,
    as_failure,
    clip_settings,
    describe,
    list_parts,
    tell_bad,
    write_bad,
)
from moss_vllm.runtime.files import refuse_unwritable
from moss_vllm.runtime.flags import Flags
from moss_vllm.runtime.progress import show_progress
from moss_vllm.runtime.ranges import POSITIVE
from moss_vllm.runtime.screen import plain, say
from moss_vllm.video.cache import FrameCache
from moss_vllm.video.frames import BadVideo
from moss_vllm.video.isolated import Failure, run_isolated

MEASURED = 32  # clips, drawn at random, from which the size of the whole is estimated
GIB = 2**30


def main(argv: list[str] | None = None) -> int:
    """Fill the cache, print the summary; returns the exit status."""
    parser = Flags(__doc__)
    parser.add_argument("--cache", type=Path, required=True, help="folder to fill")
    limit = "stop at this size; what is not in the cache is decoded in training (default: no limit)"
    parser.add_argument("--cache-gib", type=POSITIVE, metavar="GIB", help=limit)
    add_options(parser)
    args = parser.parse_args(argv)
    try:
        refuse_unwritable(args.cache, "--cache")
        parts, bad = list_parts(args.data, args.videos, args.cache)
        settings = clip_settings(args)
        cache = FrameCache(args.cache, args.cache_gib)
    except (ValueError, OSError) as error:
        parser.error(plain(error))

    keys = {part: describe(part, settings) for part in parts}
    todo = [part for part, key in keys.items() if key is None or not cache.entry(key).exists()]
    random.Random(0).shuffle(todo)  # so that the first clips are a sample of all
    n_stored, n_bytes, n_rows, is_full = 0, 0, len(bad), False
    outcomes = run_isolated(
        partial(cache_part, cache, settings), todo, workers=args.workers, limit_s=args.limit_s
    )
    try:
        shown = show_progress(outcomes, len(todo), "clips", note=lambda: f"{n_bytes / GIB:.2f} GiB")
        for part, outcome in shown:
            if outcome is None:
                is_full = True
                break
            if isinstance(outcome, Failure):
                bad.append(tell_bad(part, parts[part], outcome))
                continue
            n_stored, n_bytes = n_stored + 1, n_bytes + outcome
            if n_stored == min(MEASURED, len(todo)):
                check_space(cache, n_stored, n_bytes, len(todo) - n_stored - (len(bad) - n_rows))
    except KeyboardInterrupt:
        say("stopped; the same command continues from here", file=sys.stderr)
        return 130
    finally:
        outcomes.close()
    write_bad(args.cache / "bad.jsonl", bad)
    n_bad, n_there = len(bad) - n_rows, len(parts) - len(todo)
    say(
        f"{n_there + n_stored:,} of {len(parts):,} clips are in {args.cache}: {n_there:,} were there, "
        f"{n_stored:,} added ({n_bytes / GIB:.2f} GiB); {n_bad:,} bad, {n_rows:,} rows without a "
        f"usable video{f', see {args.cache}/bad.jsonl' if bad else ''}"
    )
    if is_full:
        say("the cache took no more (the reason is above): the rest is decoded each time it is read")
        if args.cache_gib is None:
            return 2
    return 1 if bad else 0


def cache_part(cache: FrameCache, settings: dict[str, Any], part: Part) -> int | Failure | None:
    """Store one part; returns its bytes on disk, its failure, or None if the cache takes no more."""
    key = describe(part, settings)
    try:
        cache.read(part.path, start_s=part.start_s, end_s=part.end_s, **settings)
    except BadVideo as error:
        return as_failure(part, error)
    if key is not None and cache.entry(key).exists():
        return cache.entry(key).stat().st_size
    if cache.is_closed:
        return None
    return Failure("the file changed while it was read", "run again when nothing writes to it any more")


def check_space(cache: FrameCache, n_done: int, n_bytes: int, n_remaining: int) -> None:
    """Print the expected size, estimated from the clips stored so far.

    Raises: SystemExit if the disk has no room for it.
    """
    needed = n_bytes / n_done * n_remaining
    say(
        f"expected: {(n_bytes + needed) / GIB:.2f} GiB for {n_done + n_remaining:,} clips "
        f"({n_bytes / n_done / 2**20:.2f} MiB each, from {n_done} drawn at random)",
        file=sys.stderr,
    )
    if cache.max_gib is not None:
        needed = min(needed, max(0.0, cache.max_gib * GIB - cache.used_bytes()))
    free = shutil.disk_usage(cache.folder).free
    if needed > free:
        say(
            f"error: {cache.folder} has {free / GIB:.2f} GiB free, {needed / GIB:.2f} more are needed; free "
            "space, name another --cache, sample less (--short-side-px, --sample-fps, --max-frames), or "
            f"cache a part with --cache-gib {(cache.measure() + 0.9 * free) / GIB:.1f}",
            file=sys.stderr,
        )
        raise SystemExit(2)
