"""Decode every clip as training does, before training: which files are corrupt, hang or crash a decoder?

    python scripts/check_videos.py --data FAVOR/prepared/kept.json --workers 8   # as for a recipe
    python scripts/check_videos.py --data MotionBench/self-collected             # every file below a folder

Each clip is decoded in a child process with a time limit, so a decoder that never returns or dies costs one
clip. Writes to `--out`: `checked.jsonl`, one line per clip that decodes; an unchanged file in it is not
decoded again, so the same command continues a run that was stopped. `bad.jsonl`: path, rows, reason and
remedy of this run's bad clips, and the rows that name no usable video. Exit status: 0 if every clip is good
and every row has one, or 1.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from moss_vllm.data.annotations import VIDEO_SUFFIXES
from moss_vllm.data.rows import BadRow
from moss_vllm.data.sources import read_sources
from moss_vllm.data.tables import holds_table
from moss_vllm.runtime.files import refuse_unwritable, whole_file
from moss_vllm.runtime.flags import Flags
from moss_vllm.runtime.progress import show_progress
from moss_vllm.runtime.ranges import FPS, FROM_ONE, SHORTER_PX, Range
from moss_vllm.runtime.screen import plain, say
from moss_vllm.video.cache import describe_clip
from moss_vllm.video.clip import Sampling, read_clip
from moss_vllm.video.decoders import DECODERS
from moss_vllm.video.frames import ANY_SIDES, BadVideo
from moss_vllm.video.isolated import Failure, run_isolated

LIMIT_S = Range(float, 0.1)  # less would make every clip look bad


class Part(NamedTuple):
    """The part of a file that rows are about; without times, the whole file."""

    path: str
    start_s: float = 0.0
    end_s: float | None = None


def main(argv: list[str] | None = None, *, decode: Callable[..., Any] | None = None) -> int:
    """Check, write, print the summary; returns the exit status. `decode` takes the place of `decode_part`."""
    parser = Flags(__doc__)
    add_options(parser)
    out = "folder of checked.jsonl and bad.jsonl (default: runs/check_videos)"
    parser.add_argument("--out", type=Path, default=Path("runs/check_videos"), help=out)
    args = parser.parse_args(argv)
    try:
        refuse_unwritable(args.out, "--out")
        parts, bad = list_parts(args.data, args.videos)
        done = read_checked(args.out / "checked.jsonl")
        settings = clip_settings(args)
    except (ValueError, OSError) as error:
        parser.error(plain(error))

    todo = [part for part in parts if describe(part, settings) not in done]
    args.out.mkdir(parents=True, exist_ok=True)
    work = partial(decode or decode_part, settings)
    n_rows = len(bad)
    try:
        with open(args.out / "checked.jsonl", "a", encoding="utf-8") as file:
            outcomes = run_isolated(work, todo, workers=args.workers, limit_s=args.limit_s)
            for part, outcome in show_progress(
                outcomes, len(todo), "clips", note=lambda: f"{len(bad) - n_rows} bad"
            ):
                if isinstance(outcome, Failure):
                    bad.append(tell_bad(part, parts[part], outcome))
                else:
                    file.write(json.dumps(outcome) + "\n")
                    file.flush()
    except KeyboardInterrupt:
        say("stopped; the same command continues from here", file=sys.stderr)
        return 130
    write_bad(args.out / "bad.jsonl", bad)
    n_bad = len(bad) - n_rows
    good = f"{len(parts) - n_bad:,} good ({len(parts) - len(todo):,} of them known from an earlier run)"
    say(
        f"checked {len(parts):,} clips: {good}, {n_bad:,} bad; {n_rows:,} rows without a usable "
        f"video; see {args.out / 'bad.jsonl'}"
    )
    return 1 if bad else 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name the data, how to read it, and the number of processes."""
    add = parser.add_argument
    add("--data", type=Path, required=True, help="annotation, its folder, or a folder of videos without one")
    add("--videos", type=Path, help="folder of the videos, if not the annotation's")
    cores = os.cpu_count() or 1
    add("--workers", type=FROM_ONE, default=cores, help="processes that decode")
    add("--limit-s", type=LIMIT_S, default=60.0, help="seconds a clip may take")
    add("--decoder", choices=DECODERS, default="auto", help="what reads video files (default: auto, PyAV)")
    group = parser.add_argument_group("sampling, as in training", "the defaults are the paper's")
    add = group.add_argument
    add("--sample-fps", type=FPS, default=2.0, help="frames per second")
    add("--short-side-px", type=SHORTER_PX, default=224, help="pixels")
    add("--max-frames", type=FROM_ONE, default=180, help="thin longer clips evenly to as many")
    sides = "folder or hub id of the model, whose family decides the sides of frames (default: VideoLLaMA3's)"
    add("--model", help=sides)


def clip_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `read_clip` that the flags of `add_options` set.

    Raises: ValueError or FileNotFoundError for a model that cannot be used.
    """
    sides = ANY_SIDES
    if args.model:
        from moss_vllm.vlm.families import family_with
        from moss_vllm.vlm.processor import load_processor

        processor = load_processor(args.model)
        sides = family_with(processor).chat.frame_size(processor)
    short_side_px = sides.square_px or args.short_side_px
    sampling = Sampling(args.sample_fps, short_side_px, args.max_frames, sides)
    return {"sampling": sampling, "decoder": args.decoder}


def list_parts(
    data: Path, videos: Path | None, cache: Path | None = None
) -> tuple[dict[Part, list[str]], list[dict[str, Any]]]:
    """Every part to read with the ids of its rows, and lines of bad.jsonl for rows without a usable video.

    `cache` as in `read_sources`.

    Raises: ValueError for an unreadable annotation, or a folder without videos.
    """
    parts: dict[Part, list[str]] = defaultdict(list)
    if data.is_dir() and not any(data.glob("*.json*")) and not holds_table(data):
        files = sorted(path for path in data.rglob("*") if not path.is_dir())
        for path in files:
            if path.suffix.lower() in VIDEO_SUFFIXES:
                parts[Part(str(path.absolute()))] = []
        if not parts:
            raise ValueError(f"no file below {data} ends in one of {', '.join(VIDEO_SUFFIXES)}")
        if others := len(files) - len(parts):
            say(f"{others:,} files below {data} are no videos by their names and are skipped")
        return parts, []
    bad: list[dict[str, Any]] = []
    for source in read_sources(data, videos, cache=cache).sources:
        for row in source.rows:
            if row.path is not None:
                parts[Part(str(row.path.absolute()), row.start_s or 0.0, row.end_s)].append(row.row_id)
        bad += [_describe_row(row) for row in source.bad]
    return parts, bad


def _describe_row(row: BadRow) -> dict[str, Any]:
    return {"path": None, "rows": [f"{row.file}: {row.row}"], "reason": row.reason, "remedy": row.remedy}


def describe(part: Part, settings: dict[str, Any]) -> str | None:
    """`describe_clip`, or None if it fails; decoding then tells why."""
    try:
        return describe_clip(part.path, start_s=part.start_s, end_s=part.end_s, **settings)
    except (OSError, ValueError):
        return None


def read_checked(path: Path) -> set[str]:
    """The results of `describe` for all clips checked; cuts off the line that a killed run left unfinished.

    Raises: ValueError for a whole line of another form.
    """
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    try:
        return {json.dumps(json.loads(line)["clip"]) for line in whole.splitlines()}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not written by this script ({error!r}); pass another --out") from None


def decode_part(settings: dict[str, Any], part: Part) -> dict[str, Any] | Failure:
    """Read a part as training does; returns its line of checked.jsonl, or its failure."""
    key = describe(part, settings)
    try:
        clip = read_clip(part.path, start_s=part.start_s, end_s=part.end_s, **settings)
    except BadVideo as error:
        return as_failure(part, error)
    return {"clip": json.loads(key or "null"), "frames": len(clip.frames)}


def as_failure(part: Part, error: BadVideo) -> Failure:
    """The error without its path, but with the name of an image in a folder."""
    inside = "" if error.path == part.path else f"{os.path.basename(error.path)}: "
    return Failure(inside + error.reason, error.remedy)


def tell_bad(part: Part, rows: list[str], failure: Failure) -> dict[str, Any]:
    """Print why a part is bad; returns its line of bad.jsonl."""
    say(f"bad: {part.path}: {failure.reason}", file=sys.stderr)
    times = {} if part.end_s is None else {"start_s": part.start_s, "end_s": part.end_s}
    return {"path": part.path, **times, "rows": rows, "reason": failure.reason, "remedy": failure.remedy}


def write_bad(path: Path, bad: Iterable[dict[str, Any]]) -> None:
    """Write one line of json for each."""
    with whole_file(path) as part:
        part.write_text("".join(json.dumps(line) + "\n" for line in bad), encoding="utf-8")
