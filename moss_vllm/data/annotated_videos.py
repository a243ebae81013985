"""What readers of whole videos with times in them share: the json object, its numbers, notes, videos on disk.

{"database": {"video id": {"subset": "training", "duration": 33.83, "frame": 1014, ...}}}
"""

import json
import os
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moss_vllm.data.actions.files import clip_name, read_text
from moss_vllm.data.annotations import VIDEO_SUFFIXES, text_field
from moss_vllm.data.rows import BadRow, MissingVideo, raise_bad_rows

FPS_RANGE = (1.0, 1000.0)
LONGEST_VIDEO = 10_000_000  # frames: four days at 25 a second
SHOWN = 5  # examples in a note


@dataclass
class Notes:
    """What a reader did to segments and videos, counted, with the first examples of each kind."""

    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    texts: list[str] = field(default_factory=list)

    def count(self, kind: str, example: str) -> None:
        """Count one more of a kind, such as "repeated segments, counted once"."""
        self.examples[kind].append(example)

    def lines(self) -> tuple[str, ...]:
        """One line per kind, in the order in which the kinds occurred."""
        lines = [f"{kind}: {len(some):,} ({name_first(some)})" for kind, some in self.examples.items()]
        return (*self.texts, *lines)


def name_first(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def read_object(path: Path, remedy: str = "repair it, or download it again") -> dict[str, Any]:
    """The json object in a file.

    Raises: BadRow for a file that cannot be read, broken json (with its line), a key that an object has
    twice, or anything but an object.
    """
    text = read_text(path)
    try:
        found = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        reason = f"broken JSON: {error.msg} at column {error.colno}"
        raise BadRow(str(path), f"line {error.lineno}", reason, remedy) from None
    except RecursionError:
        raise BadRow(str(path), "file", "is nested too deeply", remedy) from None
    except ValueError as error:  # an integer of thousands of digits
        raise BadRow(str(path), "file", f"cannot be read: {error}", remedy) from None
    except _Repeated as error:
        raise BadRow(str(path), "file", f"has the key {error.args[0]!r} twice", "keep one of them") from None
    if not isinstance(found, dict):
        raise BadRow(str(path), "file", f"holds a {type(found).__name__}, not an object {{...}}", remedy)
    return found


class _Repeated(Exception):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Repeated(next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1))
    return found


def read_database(path: Path) -> dict[str, dict[str, Any]]:
    """The videos of an annotation file by id, each with a `subset`.

    Raises: BadRow or BadRows.
    """
    file = str(path)
    bad: list[BadRow] = []
    database = read_object(path).get("database")
    if not isinstance(database, dict) or not database:
        reason = "has no videos in 'database'" if database == {} else "has no object 'database'"
        raise BadRow(file, "file", reason, 'it must be {"database": {"video id": {...}}}')
    first: dict[str, str] = {}
    for video_id, video in database.items():
        try:
            clip_name(video_id, file, f"video {video_id!r}")
            if (earlier := first.setdefault(unicodedata.normalize("NFC", video_id), video_id)) != video_id:
                reason = f"is {earlier!r} again, in another Unicode form of its name"
                raise BadRow(file, f"video {video_id!r}", reason, "keep one of them")
            if not isinstance(video, dict):
                reason, remedy = f"is a {type(video).__name__}, not an object", "make it an object {...}"
                raise BadRow(file, f"video {video_id!r}", reason, remedy)
            text_field(video, "subset", file=file, where=f"video {video_id!r}")
        except BadRow as error:
            bad.append(error)
    raise_bad_rows(bad)
    return database


def choose_subset(
    path: Path, database: Mapping[str, dict[str, Any]], wanted: str, split: str, *, named: bool
) -> dict[str, dict[str, Any]]:
    """The videos whose `subset` equals `wanted`, not only contains it.

    Raises: BadRow if there are none; `named` tells that the user chose this name.
    """
    rows = {video_id: video for video_id, video in database.items() if video["subset"] == wanted}
    if not rows:
        counts = Counter(video["subset"] for video in database.values())
        there = ", ".join(f"{name!r} ({count:,} videos)" for name, count in counts.most_common(10))
        reason = f"no video has the subset {wanted!r}, by which {split} is chosen; there are {there}"
        remedy = "name the right one as subset" if named else "name another as subset, or rename it"
        raise BadRow(str(path), "file", reason, remedy)
    return rows


def read_frame_count(row: Mapping[str, Any], duration_s: float, file: str, where: str) -> int | None:
    """`frame` of a video; without it round(duration * fps), without that None."""
    if "frame" in row:
        frames = positive(row, "frame", file, where)
        if not frames.is_integer():
            raise BadRow(file, where, f"'frame' is {frames}", "write the video's number of frames")
        told = f"{frames:.0f} frames in {duration_s:g} s"
    elif "fps" in row:
        fps = positive(row, "fps", file, where)
        frames, told = round(duration_s * fps), f"'fps' is {fps:g}"
    else:
        return None
    if not FPS_RANGE[0] <= frames / duration_s <= FPS_RANGE[1]:
        reason = f"{told}: {frames / duration_s:g} frames a second"
        raise BadRow(file, where, reason, "write the duration in seconds, and the video's own frame count")
    if frames > LONGEST_VIDEO:
        reason = f"{frames:,.0f} frames in {duration_s:g} s, more than the {LONGEST_VIDEO:,} that are read"
        raise BadRow(file, where, reason, "write the duration in seconds, or cut the video")
    return int(frames)


def positive(row: Mapping[str, Any], key: str, file: str, where: str) -> float:
    """The number above 0 under a key.

    Raises: BadRow.
    """
    value: Any = row.get(key)
    if not is_number(value) or value <= 0:
        reason = f"{key!r} is {value!r}" if key in row else f"has no {key!r}"
        raise BadRow(file, where, f"{reason}, a number above 0 is needed", f"fill in {key!r}")
    return float(value)


def is_number(value: Any) -> bool:
    """Whether a value of a json file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def list_videos(folder: Path) -> dict[str, list[str]]:
    """Paths of the videos and subfolders in a folder by their composed name without suffix."""
    found = defaultdict(list)
    for entry in sorted(os.listdir(folder)) if folder.is_dir() else []:
        stem, suffix = os.path.splitext(entry)
        path = os.path.join(folder, entry)
        if os.path.isdir(path):
            found[unicodedata.normalize("NFC", entry)].append(path)
        elif suffix.lower() in VIDEO_SUFFIXES:
            found[unicodedata.normalize("NFC", stem)].append(path)
    return found


def missing_videos(file: str, missing: Sequence[str], total: int, folders: Sequence[Path]) -> MissingVideo:
    """The error for videos that are in none of the folders."""
    every = len(missing) == total
    remedy = "download them, or allow missing videos (--allow-missing)"
    remedy = "pass the folders of the videos" if every else remedy
    reason = (
        f"neither a video nor a folder of frames in {', '.join(map(str, folders))}: {name_first(missing)}"
    )
    return MissingVideo(
        file, f"{'all ' if every else ''}{len(missing):,} of {total:,} videos", reason, remedy
    )
