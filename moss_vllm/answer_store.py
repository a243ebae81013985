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
NUMBER, TEXT, COUNT, YES_NO = (float, int), (str, type(None)), (int, type(None)), (bool, type(None))
# What is read again of a line: the types of what must be there, and of what may be.
Fields = tuple[dict[str, Any], dict[str, Any]]
FIRST: Fields = {"header": dict}, {}
HEADER: Fields = (
    {"benchmark": str, "checkpoint": str, "protocol": dict, "questions": int},
    {"versions": dict, "run": dict},
)
PROTOCOL: Fields = (
    {"name": str},
    {
        **{"sample_fps": NUMBER, "max_frames": int, "compress_tokens": bool, "still": bool},
        **{"short_side_px": COUNT, "max_pixels": COUNT, "max_new_tokens": COUNT},
    },
)
LINE: Fields = {"video_id": str, "answers": list}, {"failed": str, "path": str, "seconds": dict}
ANSWER: Fields = (
    {"uid": str, "task": str, "output": str, "parsed": TEXT, "answer": TEXT, "correct": YES_NO},
    {"question": str, "options": list, "log_likelihood": dict},
)


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
    files = {file: file.read_bytes().split(b"\n")[:-1] for file in sorted(folder.glob("*.jsonl"))}
    answered = header or any(len(lines) > 1 for lines in files.values())
    for file, lines in files.items():
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if number > 1:
                    _add(stored, row)
                    continue
                head = _check(row, FIRST)["header"]
                _check(_check(head, HEADER)["protocol"], PROTOCOL)
            except (ValueError, RecursionError) as error:
                remedy = f"remove it, to ask its questions again, or {REMEDY}" if number > 1 else REMEDY
                reason = f"line {number} is no line of an answer store ({error}); {remedy}"
                raise ValueError(f"{file}: {reason}") from None
            if len(lines) > 1 or not answered:  # else of a run that was given up before its first answer
                stored.header = stored.header or head
                _refuse_another_run(file, head, stored.header)
    return stored


def _check(row: Any, fields: Fields) -> dict[str, Any]:
    """The row; ValueError for one that has not these fields."""
    if not isinstance(row, dict):
        raise ValueError(f"it holds a {type(row).__name__} where an object {{...}} is needed")
    for key, kind in {**fields[0], **fields[1]}.items():
        if key in fields[0] and key not in row:
            raise ValueError(f"it has no {key!r}")
        if key in row and not isinstance(row[key], kind):
            raise ValueError(f"its {key!r} is {row[key]!r}")
    return row


def _add(stored: Stored, row: Any) -> None:
    video_id, answers = _check(row, LINE)["video_id"], row.pop("answers")
    numbers = [*row.get("seconds", {}).values()]
    for answer in answers:
        numbers += _check(answer, ANSWER).get("log_likelihood", {}).values()
        withheld, judged = answer["answer"] is None, answer["correct"] is not None
        unread = bool(answer["correct"]) and answer["parsed"] is None
        if withheld == judged or unread or not (withheld or answer.get("options", True)):
            found = (f"{key!r} {answer.get(key)!r}" for key in ("parsed", "answer", "correct", "options"))
            raise ValueError(f"question {answer['uid']!r} has {', '.join(found)}")
    if wrong := [number for number in numbers if not isinstance(number, NUMBER)]:
        raise ValueError(f"{wrong[0]!r} is no number of seconds or log_likelihood")
    if row.get("failed"):
        stored.failed[video_id] = row["failed"]
        return
    stored.failed.pop(video_id, None)
    if earlier := stored.videos.get(video_id):  # a --limit came between its questions
        before = earlier.get("seconds", {})
        row["seconds"] = {key: before.get(key, 0) + spent for key, spent in row.get("seconds", {}).items()}
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
