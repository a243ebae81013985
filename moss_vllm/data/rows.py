"""What the annotation readers share: row types, reading json, finding a row's video, collecting bad rows.

An annotation file is data from outside: every field is checked, and a file with bad rows or missing videos
gives one error that names them, or a list of them beside the good rows, never just a shorter list. In
messages rows count from 0, lines from 1.
"""

import json
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path, PureWindowsPath
from typing import Any

# FAVOR's and MotionBench's own files have a few MB; a far larger one is a wrong path.
MAX_ANNOTATION_BYTES = 512 * 2**20
CAPTION_PROMPT = "Describe what is happening in the video."
OTHER_SUFFIXES = (".mkv", ".webm", ".avi", ".mov", ".mpg", ".gif")
MAX_NAME = 4096  # characters; no path of a file is longer
SHOWN_ROWS = 10


class BadRow(ValueError):
    """One row of an annotation file that cannot be used: where, why, and what to do about it."""

    kind = "bad"

    def __init__(self, file: str, row: str | int, reason: str, remedy: str) -> None:
        super().__init__(file, row, reason, remedy)  # all four in `args`, so the error pickles
        self.file, self.row, self.reason, self.remedy = file, row, reason, remedy

    def __str__(self) -> str:
        where = f"row {self.row}" if isinstance(self.row, int) else self.row
        return f"{self.file}: {where}: {self.reason}; {self.remedy}"


class MissingVideo(BadRow):
    """A row whose video is not on disk."""

    kind = "missing"


class BadRows(BadRow):
    """Every bad row of one file; the message shows the first ten and the count."""

    def __init__(self, rows: Sequence[BadRow]) -> None:
        first = rows[0]
        super().__init__(first.file, first.row, f"{len(rows)} bad rows", first.remedy)
        self.rows = list(rows)
        self.args = (self.rows,)

    def __str__(self) -> str:
        missing = sum(isinstance(row, MissingVideo) for row in self.rows)
        lines = [f"{self.file}: {len(self.rows)} bad rows, {missing} of them without a video:"]
        lines += [f"  {row}" for row in self.rows[:SHOWN_ROWS]]
        hidden = len(self.rows) - SHOWN_ROWS
        return "\n".join([*lines, f"  ... and {hidden} more"] if hidden > 0 else lines)


@dataclass(frozen=True)
class Question:
    """One multiple-choice question; `answer` is None where the benchmark withholds it."""

    uid: str
    task: str
    text: str
    options: tuple[str, ...]
    answer: str | None
    raw: str


@dataclass(frozen=True)
class BenchmarkVideo:
    """One video and every question asked about it; without a path, `missing` says where it was looked for."""

    video_id: str
    path: Path | None
    questions: tuple[Question, ...]
    missing: str = ""


@dataclass(frozen=True)
class Turn:
    """A question and its answer; None where the model is to answer."""

    question: str
    answer: str | None = None


@dataclass(frozen=True)
class ClipRow:
    """One conversation to train on, about the part of a video between two times, or about no video.

    `path` is None for a text-only conversation; `start_s` and `end_s` are None where the file is the clip.
    """

    row_id: str
    path: Path | None
    turns: tuple[Turn, ...]
    start_s: float | None
    end_s: float | None


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used; a plan also has its `source` and `kind`: "too long", "bad" or "missing"."""

    row_id: str
    reason: str
    source: str = ""
    kind: str = "bad"


def raise_bad_rows(rows: Sequence[BadRow]) -> None:
    """Raise the one bad row, or all of them together; do nothing for none."""
    if rows:
        raise rows[0] if len(rows) == 1 else BadRows(rows)


HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w-]+")  # a file would have a suffix


def find_annotation(path: str | Path, names: Sequence[str]) -> Path:
    """Return `path`, or for a folder the first of the default file `names` in it."""
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

    # A file that starts like a list, or like an object that goes on after its line, is one document.
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


def read_clip_rows(
    path: Path,
    read_row: Callable[[dict[str, Any], int], ClipRow],
    bad: list[BadRow] | None,
    *,
    repeated: str = "its id was already used",
) -> list[ClipRow]:
    """Read every row of a file with `read_row(row, index)`; ids are unique, a repeated one is a bad row.

    Bad rows and missing videos are an error, unless a list is passed as `bad`: then they are added to it and
    left out of the result.

    Raises: BadRow or BadRows; also if no row is left.
    """
    rows: dict[str, ClipRow] = {}
    found: list[BadRow] = []
    for index, fields in enumerate(read_json_rows(path)):
        try:
            row = read_row(fields, index)
            if row.row_id in rows:
                where = f"row {index} ({row.row_id!r})"
                raise BadRow(str(path), where, repeated, "keep one of the two rows")
            rows[row.row_id] = row
        except BadRow as error:
            found.append(error)
    if bad is None or not rows:
        raise_bad_rows(found)
    else:
        bad += found
    return list(rows.values())


def text_field(row: dict[str, Any], key: str, *, file: str, where: str | int) -> str:
    """Return the non-blank string `row[key]`, as distributed."""
    value = row.get(key)
    if not isinstance(value, str):
        seen = f"{key!r} is {type(value).__name__}" if key in row else f"has no {key!r}"
        raise BadRow(file, where, f"{seen}, a string is needed", f"fill in {key!r} or remove the row")
    if not value.strip():
        raise BadRow(file, where, f"{key!r} is empty", f"fill in {key!r} or remove the row")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise BadRow(file, where, f"{key!r} holds half a surrogate pair", "repair the text's encoding")
    return value


def name_field(row: dict[str, Any], key: str, *, file: str, where: str | int) -> str:
    """`text_field` for the name of a file."""
    name = text_field(row, key, file=file, where=where)
    if len(name) > MAX_NAME:
        reason = (
            f"{key!r} has {len(name):,} characters ({name[:20]!r}...), no file name has over {MAX_NAME:,}"
        )
        raise BadRow(file, where, reason, f"write the name of a file into {key!r}")
    return name


def video_stem(name: str) -> str:
    """Drop `.mp4`, once or doubled: the id under which every spelling of a video's name is one video."""
    suffixes = re.match(r"(?:4pm\.)*", name[::-1], re.IGNORECASE)  # from the end, in one pass
    return unicodedata.normalize("NFC", name[: len(name) - len(suffixes[0] if suffixes else "")])


def find_video(root: str | Path, name: str, subfolders: Sequence[str], *, file: str, row: str | int) -> Path:
    """Find the file of `name` in the first of `root/subfolder` that has it.

    The name may come with or without `.mp4`, and the file may be spelled `.MP4` or `.mp4.mp4`, or with other
    code points for the same letters, as a Mac's disk does. It must stay below its folder; only the file
    itself may be a link elsewhere, as in the hub's download cache.

    Raises: BadRow for a name that leaves the folder or is that of two files, MissingVideo when no spelling is
    there.
    """
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
    """What below the folder has the name, whichever code points write its letters."""
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
    """The names in a folder (as it was at `mtime_ns`) by their composed form."""
    entries: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        entries.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    return entries


def collect_videos(
    asked: Iterable[tuple[str, str, Question]],
    find: Callable[[str, str], Path],
    file: str,
    bad: list[BadRow],
    *,
    allow_missing: bool = False,
) -> list[BenchmarkVideo]:
    """Group (video name, where, question) by video in file order; raise `bad` and what is found here.

    A benchmark repeats a video over its rows; a missing one is reported once, or left without a path.
    """
    seen: dict[str, str] = {}
    paths: dict[str, Path | None] = {}
    missing: dict[str, str] = {}
    videos: dict[str, list[Question]] = {}
    for name, where, question in asked:
        if question.uid in seen:
            reason = f"uid {question.uid!r} was already used by {seen[question.uid]}"
            bad.append(BadRow(file, where, reason, "keep one of the two rows"))
        seen.setdefault(question.uid, where)
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
        BenchmarkVideo(stem, paths[stem], tuple(questions), missing.get(stem, ""))
        for stem, questions in videos.items()
    ]
