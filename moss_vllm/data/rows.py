"""The rows that annotation readers return, and the errors for rows that cannot be used.

In messages rows count from 0, lines from 1.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CAPTION_PROMPT = "Describe what is happening in the video."
SHOWN_ROWS = 10


class BadRow(ValueError):
    """A row of an annotation file that cannot be used: where, why, and what to do about it."""

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


class StoredVideo(str):
    """The name of a video that its row holds itself; `path` is the file that its bytes were written to."""

    path: Path

    def __new__(cls, name: str, path: Path) -> "StoredVideo":
        """The name, and where the bytes are."""
        stored = super().__new__(cls, name)
        stored.path = path
        return stored


@dataclass(frozen=True)
class Rows:
    """The rows of a file or table; a BadRow stands where one cannot be read.

    `file` names them in messages, and `first` is the number of the first.
    """

    file: str
    rows: Sequence["dict[str, Any] | BadRow"]
    first: int = 0


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
    `cut_from` names the longer video that the file is a part of, where the row tells it.
    """

    row_id: str
    path: Path | None
    turns: tuple[Turn, ...]
    start_s: float | None
    end_s: float | None
    cut_from: str | None = None


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used; a plan also has its `source` and `kind`: "too long", "bad" or "missing"."""

    row_id: str
    reason: str
    source: str = ""
    kind: str = "bad"


def digest_rows(*rows: Any) -> str:
    """A digest that tells one set of rows from another; of values that json knows, in their order."""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def raise_bad_rows(rows: Sequence[BadRow]) -> None:
    """Raise the one bad row, or all of them together; do nothing for none."""
    if rows:
        raise rows[0] if len(rows) == 1 else BadRows(rows)
