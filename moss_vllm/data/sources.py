"""Find, recognise, read and mix rows to train on; docs/data.md shows every format."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from moss_vllm.data.annotations import open_rows
from moss_vllm.data.conversations import read_turns, read_videollama3
from moss_vllm.data.favor import TRAIN_FILES, read_favor_train
from moss_vllm.data.hub import fetch
from moss_vllm.data.motionbench import CAPTION_FILES, read_motionbench_captions
from moss_vllm.data.rows import BadRow, ClipRow, Rows, StoredVideo, digest_rows
from moss_vllm.data.stored_videos import video_folder
from moss_vllm.data.tables import MODULES, find_table, read_table


class Format(NamedTuple):
    """An annotation format: the keys that its rows have, and the function that reads them."""

    keys: tuple[str, ...]
    read: Callable[..., list[ClipRow]]


# A row has the first format whose keys it all has.
FORMATS = {
    "turns": Format(("turns",), read_turns),
    "VideoLLaMA3": Format(("conversations",), read_videollama3),
    "MotionBenchCaption": Format(("video_path", "motion_caption"), read_motionbench_captions),
    "FAVOR-Train": Format(("video_name", "caption"), read_favor_train),
}
FIRST_ROWS = 20
MIX_SUFFIXES = (".yaml", ".yml")
MIX_KEYS = ("path", "split", "revision", "weight", "videos", "name", "stream")
PLACE = re.compile(r"(.+?)(?::([\w.-]+))?(?:@([\w./-]+))?")  # path or hub id, split, revision
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
MOST_WEIGHT = sys.float_info.max  # an integer of YAML may be larger
OF_FILES = (".json", ".jsonl", ".txt", *MIX_SUFFIXES, *MODULES)  # no data set of the hub ends in one


@dataclass(frozen=True)
class Source:
    """One annotation file or table: the rows kept, the rows rejected, and its share of the clips drawn.

    `bad` holds BadRow and MissingVideo, whose `kind` is "bad" or "missing". Without a `weight` a source's
    share is its number of rows. `fingerprint` is a digest of all rows as they were read, and of the videos
    that they hold; `revision` is the commit of a data set of the hub.
    """

    name: str
    format: str
    rows: tuple[ClipRow, ...]
    bad: tuple[BadRow, ...]
    weight: float | None = None
    fingerprint: str = ""
    revision: str | None = None

    def origin(self) -> dict[str, str | None]:
        """What was read, for the record of a run."""
        names = ("name", "format", "revision", "fingerprint")
        return {name: getattr(self, name) for name in names}

    def line(self) -> str:
        """Counts in one line."""
        text_only = sum(row.path is None for row in self.rows)
        counts = f"{len(self.rows):,} rows ({text_only:,} without a video), {len(self.bad):,} rejected"
        share = "" if self.weight is None else f", weight {self.weight:g}"
        return f"{self.name}: {self.format}, {counts}{share}"


@dataclass(frozen=True)
class Sources:
    """Everything to train on; row ids are unique over all sources."""

    sources: tuple[Source, ...]

    @property
    def rows(self) -> list[ClipRow]:
        """The rows of all sources, in order."""
        return [row for source in self.sources for row in source.rows]


class Place(NamedTuple):
    """Where rows are: a path or, with `on_hub`, a data set of the hub; a split and a revision of it."""

    base: str
    on_hub: bool = False
    split: str | None = None
    revision: str | None = None


class NamedSource(NamedTuple):
    """A source before it is read: what `--data` names, or a row of a .yaml list; `stream`: as it comes."""

    place: Place
    videos: Path | None
    name: str
    weight: float | None = None
    stream: bool = False


def read_sources(
    data: str | Path, videos: str | Path | None = None, *, cache: str | Path | None = None
) -> Sources:
    """Read one source, or a .yaml list of them with weights.

    Args:
        data: a folder, an annotation file or table, a data set of the hub, OWNER/NAME:SPLIT@REVISION, or the
            list. What is on disk is never looked for on the hub.
        videos: folder of the videos, if not the folder of the annotation; a .yaml names its own.
        cache: where videos that rows hold themselves are written; see `stored_videos.video_folder`.

    Raises: BadRow for what cannot be read, an unknown format, or a source without one usable row; ValueError
    for a bad .yaml, or one with a source to stream; ImportError where `datasets` is needed and missing.
    """
    listed = list_sources(data, videos)
    if streamed := [source.name for source in listed if source.stream]:
        raise ValueError(
            f"{data}: {', '.join(streamed)} would be streamed, which only a training does; leave `stream` "
            "out to read all of it here, or name the other sources alone"
        )
    return mix_sources(listed, [read_source(source, cache) for source in listed])


def list_sources(data: str | Path, videos: str | Path | None = None) -> list[NamedSource]:
    """The sources that `data` names, as for `read_sources`; nothing of them is read."""
    path = Path(data)
    if path.suffix.lower() not in MIX_SUFFIXES:
        place = find_place(str(data))
        return [
            NamedSource(place, Path(videos) if videos else None, str(data) if place.on_hub else path.name)
        ]
    if videos is not None:
        raise ValueError(
            f"{path}: videos={str(videos)!r} is for one source; name `videos` in the list's rows"
        )
    listed = []
    for entry in _read_mix(path):
        place, folder = find_place(entry["path"], path.parent), entry.get("videos")
        named = {key: entry[key] for key in ("split", "revision") if key in entry}
        place = _check_place(place._replace(**named), f"{path}: {entry['path']}")
        folder = path.parent / folder if folder else None
        listed.append(
            NamedSource(place, folder, entry["name"], entry.get("weight"), entry.get("stream", False))
        )
    return listed


def mix_sources(listed: Sequence[NamedSource], sources: Sequence[Source]) -> Sources:
    """The sources with their weights; where they are several, a row's id begins with its source's name."""
    mixed = [replace(source, weight=one.weight) for one, source in zip(listed, sources, strict=True)]
    return Sources(tuple(mixed if len(mixed) == 1 else map(_with_long_ids, mixed)))


def find_place(text: str, near: Path = Path()) -> Place:
    """The place that a text names; paths are relative to `near`.

    Raises: ValueError for a revision of something on disk.
    """
    found = PLACE.fullmatch(text)
    if found is None or (near / text).exists():
        return Place(str(near / text))
    base, split, revision = found.groups()
    if (near / base).exists():
        return _check_place(Place(str(near / base), False, split, revision), text)
    if HUB_NAME.fullmatch(base) and not base.lower().endswith(OF_FILES):
        return Place(base, True, split, revision)
    return Place(str(near / text))  # reading it says that it is not there


def _check_place(place: Place, where: str) -> Place:
    if place.revision and not place.on_hub:
        raise ValueError(f"{where} is on disk and has no revision {place.revision}; leave that out")
    return place


def _with_long_ids(source: Source) -> Source:
    return replace(source, rows=tuple(with_long_id(row, source.name) for row in source.rows))


def with_long_id(row: ClipRow, source: str) -> ClipRow:
    """A row of one of several sources: its id begins with the source's name."""
    return replace(row, row_id=f"{source}/{row.row_id}")


def read_source(listed: NamedSource, cache: str | Path | None) -> Source:
    """Read one source; its format is recognised by the keys of its first rows."""
    rows, folder, revision = open_place(listed.place, Path(cache) if cache else None)
    kind = recognise([row for row in rows.rows if isinstance(row, dict)], rows.file)
    bad: list[BadRow] = []
    kept = FORMATS[kind].read(rows, listed.videos or folder, bad=bad)
    return Source(listed.name, kind, tuple(kept), tuple(bad), None, rows_fingerprint(rows), revision)


def open_place(place: Place, cache: Path | None) -> tuple[Rows, Path, str | None]:
    """The rows at a place, the folder of their videos, and the commit of a data set of the hub."""
    path, revision = Path(place.base), None
    if place.on_hub:
        path, revision, table = fetch(place.base, place.split, place.revision)
        file = f"{place.base}:{place.split}" if place.split else place.base
    else:
        table, file = find_table(path, place.split), str(path)
    if table:
        return read_table(table, file, video_folder(cache)), table.root, revision
    if place.split:
        remedy = f"leave ':{place.split}' out, or name a folder of parquet, Arrow, csv or tar files"
        raise BadRow(str(path), "file", "has no splits", remedy)
    return open_rows(find_training_file(path)), path if path.is_dir() else path.parent, revision


def rows_fingerprint(rows: Rows) -> str:
    """A digest of the rows as they were read; of a video that a row holds, of its bytes."""
    return digest_rows(
        *(
            row.reason
            if isinstance(row, BadRow)
            else [
                json.dumps(row, default=str),
                [cell.path.name for cell in row.values() if isinstance(cell, StoredVideo)],
            ]
            for row in rows.rows
        )
    )


def find_training_file(path: Path) -> Path:
    """Return `path`, or the annotation file in the folder `path`: one of a known name, or the only one."""
    if not path.is_dir():
        return path
    files = [path / name for name in (*TRAIN_FILES, *CAPTION_FILES) if (path / name).is_file()]
    files = files or sorted([*path.glob("*.json"), *path.glob("*.jsonl")])
    if len(files) == 1:
        return files[0]
    names = ", ".join(str(file.relative_to(path)) for file in files[:10])
    reason = f"holds {len(files)} annotation files ({names})" if files else "holds no .json or .jsonl file"
    raise BadRow(str(path), "folder", reason, "pass the annotation file itself")


def recognise(rows: Sequence[dict[str, Any]], file: str) -> str:
    """Name the format of the first rows.

    Raises: BadRow if no format is known, or the rows have several.
    """
    kinds = []
    for row in rows[:FIRST_ROWS]:
        fitting = [kind for kind, each in FORMATS.items() if all(key in row for key in each.keys)]
        if row.get("stream"):  # without `conversations`; read_videollama3 refuses it by name
            fitting = ["VideoLLaMA3"]
        kinds += fitting[:1]
    if len(set(kinds)) == 1:
        return kinds[0]
    formats = "; ".join(f"{kind} ({', '.join(each.keys)})" for kind, each in FORMATS.items())
    if kinds:
        reason = f"mixes the formats {', '.join(dict.fromkeys(kinds))}"
        raise BadRow(file, "file", reason, "write one file per format and list them in a .yaml")
    reason = f"the first rows have the keys {', '.join(map(repr, rows[0]))}, which is no known format"
    raise BadRow(file, "file", reason, f"use one of {formats}; see docs/data.md")


def _read_mix(path: Path) -> list[dict[str, Any]]:
    """Read and check a .yaml list of sources; an entry's default name is its path as written."""
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:  # ValueError: 2026-99-99
        raise ValueError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: expected a list of '- {{path: ..., weight: ...}}', got {entries!r:.200}")
    for number, entry in enumerate(entries):
        _check_entry(entry, f"{path}: source {number}")
        entry.setdefault("name", entry["path"])
    unweighted = [entry["name"] for entry in entries if "weight" not in entry]
    if 0 < len(unweighted) < len(entries):
        raise ValueError(f"{path}: {', '.join(unweighted)} have no weight; give every source one, or none")
    if len(unweighted) > 1 and any(entry.get("stream") for entry in entries):
        raise ValueError(
            f"{path}: how many rows a streamed source has is not known before it is read; give every source "
            "of the list a weight"
        )
    names = [entry["name"] for entry in entries]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: more than one source is called {', '.join(repeated)}; give each a `name`")
    return entries


def _check_entry(entry: Any, where: str) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {entry!r:.200}; write it as '{{path: ..., weight: ...}}'")
    if unknown := [key for key in entry if key not in MIX_KEYS]:
        raise ValueError(f"{where} has the keys {unknown}; known are {', '.join(MIX_KEYS)}")
    if "path" not in entry:
        raise ValueError(f"{where} has no path; name its folder or annotation file")
    if not isinstance(entry.get("stream", False), bool):
        raise ValueError(f"{where}: stream is {entry['stream']!r}; it must be true or false")
    for key in set(entry) - {"weight", "stream"}:
        if not isinstance(entry[key], str) or not entry[key].strip():
            raise ValueError(f"{where}: {key} is {entry[key]!r}, a text is needed")
    if Path(entry["path"]).suffix.lower() in MIX_SUFFIXES:
        raise ValueError(f"{where}: {entry['path']} is a list of its own; name folders or annotation files")
    weight = entry.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= MOST_WEIGHT:
        raise ValueError(f"{where}: weight is {weight!r:.40}; it must be a number above 0, such as 2 or 0.5")
