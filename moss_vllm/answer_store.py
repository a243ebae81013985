"""Every answer of an evaluation on disk, so that a run that was killed asks no question twice.

    OUT/answers/00-of-02.jsonl     of process 0 of 2: a header that says what was run, then a line per video

A process adds to its own file alone and waits for no other; `read_answers` puts a folder's files together,
however many processes wrote them. What a killed run left of a last line is dropped.
"""

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

REMEDY = "evaluate again with --overwrite, or into another --out"


@dataclass(frozen=True)
class Shard:
    """Which of how many processes this is; the n-th video belongs to process n modulo their number."""

    rank: int = 0
    processes: int = 1

    @classmethod
    def from_environment(cls) -> "Shard":
        """As the launcher (accelerate, torchrun, Slurm's through scripts/launch) says."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


@dataclass
class Stored:
    """What a folder holds: the run's header, answers by uid, and why videos failed that have none."""

    header: dict[str, Any] | None = None
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    videos: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def read_answers(folder: Path, header: Mapping[str, Any] | None = None) -> Stored:
    """All answers of a folder; with `header`, those of that run and of no other.

    Each answer gets its `video_id`; `videos` has the other fields of each video's lines.

    Of a question that two processes answered, the first is kept.

    Raises: ValueError for a file of another run, or a line that is no answer.
    """
    stored = Stored(dict(header) if header else None)
    for file in sorted(folder.glob("*.jsonl")):
        lines = file.read_bytes().split(b"\n")[:-1]
        if header and len(lines) == 1:  # no answer yet that could be of another run
            continue
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if number > 1:
                    _add(stored, row)
                    continue
                head = row["header"]
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                reason = f"line {number} is no line of an answer store ({error}); remove it, or {REMEDY}"
                raise ValueError(f"{file}: {reason}") from None
            stored.header = stored.header or head
            _refuse_another_run(file, head, stored.header)
    return stored


def _add(stored: Stored, row: dict[str, Any]) -> None:
    video_id, answers = row["video_id"], row.pop("answers")
    if row.get("failed"):
        stored.failed[video_id] = row["failed"]
        return
    stored.failed.pop(video_id, None)
    if earlier := stored.videos.get(video_id):  # a --limit came between its questions
        row["seconds"] = {key: earlier["seconds"][key] + spent for key, spent in row["seconds"].items()}
    stored.videos[video_id] = row
    for answer in answers:
        # A launcher that was killed may have left processes behind, which answer beside the next run's.
        stored.answers.setdefault(answer["uid"], {"video_id": video_id, **answer})


def _refuse_another_run(file: Path, found: Any, wanted: Mapping[str, Any]) -> None:
    was, now = _flat(found), _flat(wanted)
    if changed := [key for key in {**now, **was} if was.get(key) != now.get(key)]:
        told = ", ".join(f"{key} was {was.get(key)}, is {now.get(key)}" for key in changed)
        raise ValueError(f"{file} holds answers of another run ({told}); {REMEDY}")


class AnswerFile:
    """The file this process adds to; nobody else may while it is open.

    Raises: BlockingIOError where another run has it open.
    """

    def __init__(
        self, folder: Path, header: Mapping[str, Any], shard: Shard, *, overwrite: bool = False
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{shard.rank:02d}-of-{shard.processes:02d}.jsonl"
        self.file: IO[bytes] = self.path.open("ab", buffering=0)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{self.path}: another run writes to it; wait for it to end, or give another --out"
            ) from error
        if overwrite:
            self.file.truncate(0)
            if shard.rank == 0:
                for other in folder.glob("*.jsonl"):
                    if not other.name.endswith(f"-of-{shard.processes:02d}.jsonl"):
                        other.unlink()
        data = self.path.read_bytes()
        self.file.truncate(data.rfind(b"\n") + 1)
        if data.count(b"\n") < 2:  # without an answer the header may be of other settings
            self.file.truncate(0)
            self._write({"header": header})

    def add(self, row: dict[str, Any]) -> None:
        """One line: `video_id`, `answers`, or `failed` with a reason, and whatever else is known."""
        self._write(row)

    def _write(self, row: Mapping[str, Any]) -> None:
        try:
            left = memoryview(json.dumps(row).encode() + b"\n")
            while left:  # on a full disk a write may take a part
                left = left[self.file.write(left) :]
        except OSError as error:
            remedy = "make room there; the same command goes on from here"
            raise OSError(f"{self.path} cannot be written ({error.strerror}); {remedy}") from error

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(value, dict):
        return {name: value}
    parts = [_flat(inner, f"{name}.{key}" if name else key) for key, inner in value.items()]
    return {key: inner for part in parts for key, inner in part.items()}
