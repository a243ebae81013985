"""Rows of a table read as they come, where they are too many or too far away to measure before a run.

A lane is what one reading process reads. It has files of its own, or where there are fewer files every n-th
row of each; so no two lanes have a row in common, and in each epoch of a lane each of its rows comes once.
A lane fills a buffer, gives its rows in an order that depends on the seed alone, and fills it again. Rows
before a place are skipped without looking at them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moss_vllm.data.hub import locate
from moss_vllm.data.rows import BadRow, ClipRow, Rows, digest_rows
from moss_vllm.data.sources import (
    FORMATS,
    MIX_SUFFIXES,
    NamedSource,
    Source,
    Sources,
    list_sources,
    mix_sources,
    read_source,
    recognise,
)
from moss_vllm.data.stored_videos import video_folder
from moss_vllm.data.tables import MODULES, SplitFiles, find_table, numbered_cells, read_cells
from moss_vllm.runtime.errors import RunStopped

BUFFER = 256  # rows, whose videos are on disk
STREAMED = "streamed"  # the format of a source in the record of a run


@dataclass(frozen=True)
class Stream:
    """The table that is streamed; `name` is its name in messages, and the others are as in `Source`.

    `folder` is where videos held as bytes are written, `videos` where named ones lie.
    """

    table: SplitFiles
    name: str
    videos: Path
    folder: Path
    revision: str | None = None

    def fingerprint(self) -> str:
        """A digest of the names of its files, and on disk of their sizes."""
        files = [Path(file) for file in self.table.files]
        return digest_rows([[file.name, None if self.revision else file.stat().st_size] for file in files])


def open_sources(
    data: str | Path, videos: str | Path | None, *, cache: str | Path | None, stream: bool, seed: int
) -> tuple[Sources, list[Stream | None]]:
    """Read sources as `sources.read_sources` does, but of a streamed one the first rows alone.

    Args:
        stream: whether to stream a single source; a .yaml list names those of its own.
        seed: of the order of streamed rows.

    Returns: the sources, and for each that is streamed what it streams from.

    Raises: as `read_sources`, and BadRow for what cannot be streamed.
    """
    if stream and Path(data).suffix.lower() in MIX_SUFFIXES:
        raise ValueError(
            f"{data}: --stream is for one source; leave it out, and write `stream: true` at the rows of the "
            "list that are to be streamed"
        )
    listed = list_sources(data, videos)
    streams = [open_stream(one, cache) if stream or one.stream else None for one in listed]
    sources = [
        first_rows(streamed, seed) if streamed else read_source(one, cache)
        for one, streamed in zip(listed, streams, strict=True)
    ]
    return mix_sources(listed, sources), streams


def open_stream(listed: NamedSource, cache: str | Path | None) -> Stream:
    """Find the files of a table or of a data set of the hub; nothing of them is read or fetched.

    Raises: BadRow for what cannot be streamed.
    """
    place, revision = listed.place, None
    if place.on_hub:
        found = locate(place.base, place.split, place.revision)
        revision, table = found.revision, found.table
    else:
        table = find_table(Path(place.base), place.split)
    if table is None or table.module not in MODULES.values():
        reason = f"is no table of {', '.join(MODULES)} files, and only these are streamed"
        raise BadRow(listed.name, "file", reason, "do not stream it")
    folder = video_folder(Path(cache) if cache else None)
    return Stream(table, listed.name, listed.videos or table.root, folder, revision)


class Numbered(NamedTuple):
    """A row as it is stored, and its number in its file."""

    file: str
    number: int
    cells: Any


class StreamLane:
    """The endless rows of one lane by place, for places that go up; a BadRow stands for an unusable row.

    Args:
        stream: from `open_stream`.
        lane: which one, from 0.
        lanes: how many there are.
        seed: of the order.
        buffer: rows that are mixed.

    Raises: RunStopped for a lane without a row.
    """

    def __init__(self, stream: Stream, lane: int, lanes: int, seed: int, buffer: int = BUFFER) -> None:
        self.stream, self.lane, self.lanes, self.seed, self.buffer = stream, lane, lanes, seed, buffer
        self._restart()

    def _restart(self) -> None:
        self.first, self.window = 0, list[ClipRow | BadRow]()
        self.epoch, self.in_epoch = 0, 0
        self.rows = self._epoch_rows()

    def __getitem__(self, place: int) -> ClipRow | BadRow:
        if place < self.first:
            self._restart()
        while place >= self.first + len(self.window):
            self._fill(place)
        return self.window[place - self.first]

    def _fill(self, place: int) -> None:
        """Fill the buffer with the next rows; those of a buffer before `place` are not looked at."""
        self.first += len(self.window)
        self.window = []
        if place >= self.first + self.buffer:
            skipped = sum(1 for _ in islice(self.rows, self.buffer))
            self.first, self.in_epoch = self.first + skipped, self.in_epoch + skipped
            if skipped == self.buffer:
                return
        else:
            order = np.random.default_rng([self.seed, self.lane, self.epoch, self.in_epoch])
            rows = [self._read(row) for row in islice(self.rows, self.buffer)]
            self.window = [rows[index] for index in order.permutation(len(rows))]
            self.in_epoch += len(rows)
            if len(rows) == self.buffer:
                return
        if not self.in_epoch:
            raise RunStopped(
                f"{self.stream.name} has no row for reader {self.lane} of {self.lanes}; use fewer "
                "--workers, or do not stream it"
            )
        self.epoch, self.in_epoch = self.epoch + 1, 0
        self.rows = self._epoch_rows()

    def _epoch_rows(self) -> Iterator[Numbered]:
        """The lane's rows, its files in an order of this epoch."""
        files = list(enumerate(self.stream.table.files))
        shared = len(files) < self.lanes
        own = files if shared else files[self.lane :: self.lanes]
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(own))
        for place, file in (own[index] for index in order):
            name = f"{self.stream.name}/{Path(file).name}"
            for number, cells in numbered_cells(self.stream.table._replace(files=[file]), name):
                if not shared or (place + number) % self.lanes == self.lane:
                    yield Numbered(name, number, cells)

    def _read(self, row: Numbered) -> ClipRow | BadRow:
        stream = self.stream
        fields = read_cells(row.cells, stream.table.root, stream.folder, row.file, row.number)
        if isinstance(fields, BadRow):
            return fields
        try:
            read = FORMATS[recognise([fields], row.file)].read
            (clip,) = read(Rows(row.file, [fields], row.number), stream.videos)
            return clip
        except BadRow as error:
            where = f"row {row.number}" if error.row == "file" else error.row
            return type(error)(error.file, where, error.reason, error.remedy)


def first_rows(stream: Stream, seed: int) -> Source:
    """What the first lane's buffer holds first: a sample that shows format, lengths and gross faults."""
    lane = StreamLane(stream, 0, 1, seed)
    lane[0]
    kept = tuple(row for row in lane.window if isinstance(row, ClipRow))
    bad = tuple(row for row in lane.window if isinstance(row, BadRow))
    return Source(stream.name, STREAMED, kept, bad, None, stream.fingerprint(), stream.revision)
