"""Read json rows from annotation files, check their fields, find their videos, and collect bad rows.

Annotation files come from outside, so every field is checked. A file with bad rows or missing videos gives
one error that names them, or a list of them beside the good rows, never just a shorter list.
"""

import json
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path, PureWindowsPath
from typing import Any

from moss_vllm.data.rows import (
    BadRow,
    BenchmarkVideo,
    ClipRow,
    MissingVideo,
    Question,
    Rows,
    StoredVideo,
    raise_bad_rows,
)

# FAVOR's and MotionBench's own files have a few MB; a far larger one is a wrong path.
MAX_ANNOTATION_BYTES = 512 * 2**20
OTHER_SUFFIXES = (".mkv", ".webm", ".avi", ".mov", ".mpg", ".gif")
VIDEO_SUFFIXES = (".mp4", *OTHER_SUFFIXES)
MAX_NAME = 4096  # characters; no path of a file is longer
URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w-]+")  # a file name would have a suffix


def find_annotation(path: str | Path, names: Sequence[str]) -> Path:
    """Return `path`, or if it is a folder, the first of the file `names` in it."""
    path = Path(path)
    if not path.is_dir():
        return path
    for name in names:
        if (path / name).is_file():
            return path / name
    raise BadRow(str(path), "folder", f"holds none of {', '.join(names)}", "pass the annotation file itself")


def read_json_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read a JSON list of objects, or one object per line.

    Raises: BadRow for a missing, empty, oversized or non-UTF-8 file, broken json (with its line), NaN or
    infinite numbers, and rows that are not objects.
    """
    path, file = Path(path), str(path)
    if not path.is_file():
        if HUB_ID.fullmatch(file) and not path.exists():
            get = f"hf download {file} --repo-type dataset --local-dir {path.name}"
            remedy = f"check the path; a data set of the hub is downloaded first: {get}"
            raise BadRow(file, "file", "is not here", remedy)
        raise BadRow(file, "file", "is a folder" if path.is_dir() else "is not there", "check the path")
    size = path.stat().st_size
    if size > MAX_ANNOTATION_BYTES:
        limit = f"{MAX_ANNOTATION_BYTES:,}"
        raise BadRow(file, "file", f"has {size:,} bytes, at most {limit} are read", "check the path")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRow(file, "file", f"is not UTF-8 text ({error})", "save it as UTF-8") from None
    if not text.strip():
        raise BadRow(file, "file", "is empty", "download it again")

    # A file that starts like a list, or like an object of several lines, is one document.
    # Lines end at "\n" only: str.splitlines would also cut at U+2028 inside a caption.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if text.lstrip().startswith("[") or lines[0][1].strip() == "{":
        rows = _parse_json(text, file, 1)
        if not isinstance(rows, list):
            raise BadRow(file, "file", "is one JSON object, not a list of rows", "pass the file of rows")
        places: list[str] = [f"row {index}" for index in range(len(rows))]
    else:
        rows = [_parse_json(line, file, number) for number, line in lines]
        places = [f"line {number}" for number, _ in lines]
    if not rows:
        raise BadRow(file, "file", "is an empty list", "download it again")
    remedy = "make every row an object {...}"
    raise_bad_rows(
        [
            BadRow(file, place, f"is a {type(row).__name__}, not an object", remedy)
            for place, row in zip(places, rows, strict=True)
            if not isinstance(row, dict)
        ]
    )
    return rows


def _parse_json(text: str, file: str, first_line: int) -> Any:
    """Parse one JSON document that starts at `first_line` of `file`."""

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not a number in JSON")

    def finite(number: str) -> float:
        return float(number) if math.isfinite(float(number)) else refuse(number)

    try:
        return json.loads(text, parse_constant=refuse, parse_float=finite)
    except json.JSONDecodeError as error:
        line = f"line {first_line + error.lineno - 1}"
        reason = f"broken JSON: {error.msg} at column {error.colno}"
        raise BadRow(file, line, reason, "repair the line or download the file again") from None
    except (ValueError, RecursionError) as error:
        place = f"line {first_line}" if first_line > 1 else "file"
        raise BadRow(file, place, f"cannot be read: {error}", "replace the value, e.g. by null") from None


def open_rows(annotation: str | Path | Rows, names: Sequence[str] = ()) -> Rows:
    """The rows themselves, or those of a json file; `names` as in `find_annotation`."""
    if isinstance(annotation, Rows):
        return annotation
    path = find_annotation(annotation, names) if names else Path(annotation)
    return Rows(str(path), read_json_rows(path))


def read_clip_rows(
    found: Rows,
    read_row: Callable[[dict[str, Any], int], ClipRow],
    bad: list[BadRow] | None,
    *,
    repeated: str = "its id was already used",
) -> list[ClipRow]:
    """Read every row with `read_row(row, index)`; a row with the id of an earlier one is bad.

    Bad rows and missing videos are an error, unless a list is passed as `bad`: then they are added to it and
    left out of the result.

    Raises: BadRow or BadRows; with a list too, if no row is good.
    """
    rows: dict[str, ClipRow] = {}
    refused: list[BadRow] = []
    for index, fields in enumerate(found.rows, found.first):
        try:
            if isinstance(fields, BadRow):
                raise fields
            row = read_row(fields, index)
            if row.row_id in rows:
                where = f"row {index} ({row.row_id!r})"
                raise BadRow(found.file, where, repeated, "keep one of the two rows")
            rows[row.row_id] = row
        except BadRow as error:
            refused.append(error)
    if bad is None or not rows:
        raise_bad_rows(refused)
    else:
        bad += refused
    return list(rows.values())


def text_field(row: dict[str, Any], key: str, *, file: str, where: str | int) -> str:
    """Return the string `row[key]` unchanged; blank ones are refused."""
    value = row.get(key)
    if not isinstance(value, str):
        problem = f"{key!r} is {type(value).__name__}" if key in row else f"has no {key!r}"
        raise BadRow(file, where, f"{problem}, a string is needed", f"fill in {key!r} or remove the row")
    if not value.strip():
        raise BadRow(file, where, f"{key!r} is empty", f"fill in {key!r} or remove the row")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise BadRow(file, where, f"{key!r} holds half a surrogate pair", "repair the text's encoding")
    return value


def name_field(row: dict[str, Any], key: str, *, file: str, where: str | int) -> str:
    """Return the file name `row[key]`, as `text_field` does."""
    name = text_field(row, key, file=file, where=where)
    if len(name) > MAX_NAME:
        reason = (
            f"{key!r} has {len(name):,} characters ({name[:20]!r}...), no file name has over {MAX_NAME:,}"
        )
        raise BadRow(file, where, reason, f"write the name of a file into {key!r}")
    return name


def video_stem(name: str) -> str:
    """The id of a video, the same for every spelling of its name: without `.mp4`, once or repeated."""
    suffixes = re.match(r"(?:4pm\.)*", name[::-1], re.IGNORECASE)  # from the end, in one pass
    return unicodedata.normalize("NFC", name[: len(name) - len(suffixes[0] if suffixes else "")])


def find_video(root: str | Path, name: str, subfolders: Sequence[str], *, file: str, row: str | int) -> Path:
    """Find the file of `name` in the first of `root/subfolder` that has it.

    The name may come with or without `.mp4`, and the file may be spelled `.MP4` or `.mp4.mp4`, or with other
    code points for the same letters, as on a Mac's disk. The file must stay below its folder; only the file
    itself may be a link out of it, as in the hub's download cache. A `StoredVideo` has its file already.

    Raises: BadRow for a name that leaves the folder or fits two files, or a URL; MissingVideo if no spelling
    exists.
    """
    if isinstance(name, StoredVideo):
        return name.path
    if URL.match(name):
        raise BadRow(file, row, f"video {name!r} is a URL", "download it, and name the file")
    stem, parts = video_stem(name), re.split(r"[/\\]", name)
    controls = any(letter < " " or "\ud800" <= letter <= "\udfff" for letter in name)
    absolute = name[:1] in ("/", "\\") or PureWindowsPath(name).is_absolute()
    remedy = "name a file below the video folder"
    if not stem or controls or absolute or ".." in parts:
        raise BadRow(file, row, f"video name {name!r} is not a relative file name", remedy)
    spellings = [name]
    if not name.lower().endswith(OTHER_SUFFIXES):
        spellings += [stem + suffix for suffix in (".mp4", ".MP4", ".mp4.mp4")]
    if stem == unicodedata.normalize("NFC", name):
        spellings += [name + suffix for suffix in OTHER_SUFFIXES]
    folders = [Path(root) / subfolder for subfolder in subfolders]
    for find in [_exactly] if name.isascii() else [_exactly, _in_other_letters]:
        for folder, spelling in product(folders, dict.fromkeys(spellings)):
            try:
                paths = [path for path in find(folder, spelling) if path.is_file()]
            except OSError as error:  # a name that is too long, a folder without permission
                raise BadRow(file, row, f"video {name!r}: {error.strerror}", remedy) from None
            if len(paths) > 1:
                reason = (
                    f"video name {name!r} is that of {len(paths)} files in {folder}, in other code points"
                )
                raise BadRow(file, row, reason, "remove all but one of them")
            if paths and not paths[0].parent.resolve().is_relative_to(folder.resolve()):
                raise BadRow(file, row, f"video name {name!r} follows a link out of {folder}", remedy)
            if paths:
                return paths[0]
    tried = ", ".join(subfolder or "." for subfolder in subfolders)
    reason = f"video {name!r} is in none of the folders {tried} of {root}"
    raise MissingVideo(file, row, reason, "download it or pass the folder that holds it")


def _exactly(folder: Path, name: str) -> list[Path]:
    return [folder / name]


def _in_other_letters(folder: Path, name: str) -> list[Path]:
    """The paths below the folder whose name has the same letters, in whichever code points."""
    places = [folder]
    for part in name.split("/"):
        form = unicodedata.normalize("NFC", part)
        places = [
            place / entry
            for place in places
            if place.is_dir()
            for entry in _entries(str(place), place.stat().st_mtime_ns).get(form, [])
        ]
    return places


@lru_cache(maxsize=64)
def _entries(folder: str, mtime_ns: int) -> dict[str, list[str]]:
    """The names in a folder (cached until its `mtime_ns` changes) by their composed form."""
    entries: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        entries.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    return entries


def collect_videos(
    questions: Iterable[tuple[str, str, Question]],
    find: Callable[[str, str], Path],
    file: str,
    bad: list[BadRow],
    *,
    allow_missing: bool = False,
) -> list[BenchmarkVideo]:
    """Group (video name, where, question) by video in file order; raise `bad` with the bad rows found here.

    A benchmark repeats a video over its rows; a missing video is reported once, or gets no path.
    """
    first: dict[str, str] = {}
    paths: dict[str, Path | None] = {}
    missing: dict[str, str] = {}
    videos: dict[str, list[Question]] = {}
    for name, where, question in questions:
        if question.uid in first:
            reason = f"uid {question.uid!r} was already used by {first[question.uid]}"
            bad.append(BadRow(file, where, reason, "keep one of the two rows"))
        first.setdefault(question.uid, where)
        stem = video_stem(name)
        videos.setdefault(stem, []).append(question)
        if stem not in paths:
            try:
                paths[stem] = find(name, where)
            except BadRow as error:
                paths[stem] = None
                if allow_missing and isinstance(error, MissingVideo):
                    missing[stem] = error.reason
                else:
                    bad.append(error)
    raise_bad_rows(bad)
    return [
        BenchmarkVideo(stem, paths[stem], tuple(about), missing.get(stem, ""))
        for stem, about in videos.items()
    ]
