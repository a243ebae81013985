"""Every answer of an evaluation on disk, so that a run that was killed repeats none.

    OUT/answers/00-of-02.jsonl     of process 0 of 2: a header that says what was run, then a line per video

The task decides which fields a header and an answer have: `read_answers` takes its `Schema`, and puts a
folder's files together, however many processes wrote them. A process appends only to its own file, holds a
lock beside it while it lives, and waits for no other. A torn last line, left by a killed run, is dropped.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.locks import Lock

ANSWERS = "answers"  # the store's folder within a result folder
REMEDY = "evaluate again with --overwrite, or into another --out"
NUMBER = (float, int)
Kind = type | tuple[type, ...]


@dataclass(frozen=True)
class Fields:
    """Types of an object's fields: those it needs, and those it may have; others are not looked at."""

    needed: Mapping[str, Kind]
    optional: Mapping[str, Kind] = field(default_factory=dict)

    def check(self, row: Any) -> dict[str, Any]:
        """The row.

        Raises: ValueError for a row that is no object, lacks a field, or has one of another type.
        """
        if not isinstance(row, dict):
            raise ValueError(f"it holds a {type(row).__name__} where an object {{...}} is needed")
        for key, kind in {**self.needed, **self.optional}.items():
            if key in self.needed and key not in row:
                raise ValueError(f"it has no {key!r}")
            if key in row and not isinstance(row[key], kind):
                raise ValueError(f"its {key!r} is {row[key]!r}")
        return row


@dataclass(frozen=True)
class Schema:
    """What a task writes.

    Args:
        header: fields of the header; `parts`: of the header's objects, by key.
        answer: fields of an answer, beside its `uid`.
        check_answer: raises ValueError for an answer whose fields contradict each other.
        is_of_task: whether a header is of this task; `source` says which commands write such folders.
    """

    header: Fields
    answer: Fields
    parts: Mapping[str, Fields] = field(default_factory=dict)
    check_answer: Callable[[dict[str, Any]], None] = lambda answer: None
    is_of_task: Callable[[Mapping[str, Any]], bool] = lambda header: True
    source: str = ""

    def check_header(self, header: Any) -> None:
        """Raise ValueError for a header of other fields."""
        HEADER.check(self.header.check(header))
        for key, fields in self.parts.items():
            fields.check(header[key])


# Fields that the store itself reads, whatever the task.
FIRST_LINE = Fields({"header": dict})
HEADER = Fields({}, {"environment": dict})
LINE = Fields({"video_id": str, "answers": list}, {"failed": str, "path": str, "seconds": dict, "file": dict})
FILE = Fields({"bytes": int, "mtime_ns": int, "listed": str, "contents": str})  # of describe_file
ANSWER = Fields({"uid": str})


@dataclass(frozen=True)
class Shard:
    """This process among those of a run; the n-th video belongs to process n modulo their number."""

    rank: int = 0
    processes: int = 1

    @classmethod
    def from_environment(cls) -> "Shard":
        """From the variables that accelerate, torchrun, and srun through scripts/launch set."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


@dataclass
class Stored:
    """A folder's contents: the run's header, answers by uid, lines by video, reasons of videos that failed.

    `environments` has the environment of each process; they may differ.
    """

    header: dict[str, Any] | None = None
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    videos: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    environments: list[dict[str, Any]] = field(default_factory=list)

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """State of each video's file, from `describe_file`; lines of earlier versions have none."""
        return {video: row["file"] for video, row in self.videos.items() if row.get("file")}

    @property
    def environment(self) -> dict[str, Any]:
        """That of the process that began the first file; earlier versions recorded none."""
        return dict(self._recorded()[0])

    def tell_mixed(self, now: Mapping[str, Any] | None = None) -> list[str]:
        """A note on what differs between the environments of processes, `now` of this one, where recorded."""
        environments = [*self._recorded(), now or {}]
        names = dict.fromkeys(name for one in environments for name in one)
        values = {n: dict.fromkeys(str(one[n] or "none") for one in environments if n in one) for n in names}
        mixed = ", ".join(f"{name} {' and '.join(some)}" for name, some in values.items() if len(some) > 1)
        return [f"not everything was computed with the same: {mixed}"] if mixed else []

    def _recorded(self) -> list[dict[str, Any]]:
        return [*self.environments, (self.header or {}).get("environment", {})]


def holds_answers(folder: Path) -> bool:
    """Whether the folder is the result folder of a script in eval/.

    Raises: ValueError for a file of answers that is a pipe or a device: opening one may never return.
    """
    files = list((folder / ANSWERS).glob("*.jsonl"))
    if strange := [str(file) for file in files if file.exists() and not file.is_file()]:
        raise ValueError(f"{strange[0]} is not a regular file; remove it, or name another folder")
    return bool(files)


def read_answers(folder: Path, schema: Schema, header: Mapping[str, Any] | None = None) -> Stored:
    """All answers in the files of `folder`; with `header`, those of that run and of no other.

    Each answer gets its `video_id`; `videos` has the other fields of each video's lines. If two processes
    answered a question, the first answer is kept.

    Raises: ValueError for a file of another task or run, or a line that does not fit the schema.
    """
    stored = Stored(dict(header) if header else None)
    files = {file: file.read_bytes().split(b"\n")[:-1] for file in sorted(folder.glob("*.jsonl"))}
    answered = header or any(len(lines) > 1 for lines in files.values())
    for file, lines in files.items():
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if number > 1:
                    _add(stored, row, schema)
                    continue
                first = FIRST_LINE.check(row)["header"]
                schema.check_header(first)
            except (ValueError, RecursionError) as error:
                remedy = f"remove it, to ask its questions again, or {REMEDY}" if number > 1 else REMEDY
                reason = f"line {number} is no line of an answer store ({error}); {remedy}"
                raise ValueError(f"{file}: {reason}") from None
            if not schema.is_of_task(first):
                what = f"answers of another task ({first['benchmark']})"
                raise ValueError(f"{folder.parent} holds {what}; name {schema.source}")
        # A header without answers is of a run that never began; it is no reason to refuse another.
        if len(lines) > 1 or (lines and not answered):
            stored.header = stored.header or first
            stored.environments.append(first.get("environment", {}))
            _refuse_another_run(file, first, stored.header)
    return stored


def drop_other(store: Path, schema: Schema, expected: Mapping[str, Any]) -> None:
    """Remove the folder around a store of another test, by the `expected` entries of its header.

    A resumed run may end in another best step, or read a corrected annotation.
    """
    header = read_answers(store, schema).header
    if header and any(header.get(name) != value for name, value in expected.items()):
        shutil.rmtree(store.parent)


def _add(stored: Stored, row: Any, schema: Schema) -> None:
    video_id, answers = LINE.check(row)["video_id"], row.pop("answers")
    if "file" in row:
        FILE.check(row["file"])
    for answer in answers:
        schema.check_answer(schema.answer.check(ANSWER.check(answer)))
    if wrong := [value for value in row.get("seconds", {}).values() if not isinstance(value, NUMBER)]:
        raise ValueError(f"{wrong[0]!r} is no number of seconds")
    if row.get("failed"):
        stored.failed[video_id] = row["failed"]
        return
    stored.failed.pop(video_id, None)
    if earlier := stored.videos.get(video_id):  # a --limit had divided its questions
        before = earlier.get("seconds", {})
        row["seconds"] = {key: before.get(key, 0) + spent for key, spent in row.get("seconds", {}).items()}
    stored.videos[video_id] = row
    for answer in answers:
        # Processes that outlive a killed launcher answer the same questions as the next run.
        stored.answers.setdefault(answer["uid"], {"video_id": video_id, **answer})


def _refuse_another_run(file: Path, header: Any, wanted: Mapping[str, Any]) -> None:
    if changed := _tell_changes(header, wanted):
        raise ValueError(f"{file} holds answers of another run ({changed}); {REMEDY}")


def _tell_changes(header: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Fields in which a header differs from the wanted one; empty if both are of one run."""
    ignored = {"environment": None}
    digests = [[one.get(name) for name in ("weights", "model_settings")] for one in (header, wanted)]
    if digests[0] == digests[1] and all(digests[0]):  # the same model; it or its base may have moved
        ignored |= dict.fromkeys(("checkpoint", "run"))
    was, now = (_flat({**one, **ignored}) for one in (header, wanted))
    changed = [key for key in {**now, **was} if was.get(key) != now.get(key)]
    return ", ".join(f"{key} was {was.get(key)}, is {now.get(key)}" for key in changed)


class AnswerFile:
    """The file this process appends to, locked until it is closed.

    `overwrite` also removes the folder's other files, except those of this run's other processes.

    Raises: BlockingIOError if another run has the file open, or another file of the folder and has other
    settings, or would lose its answers by `overwrite`.
    """

    def __init__(
        self, folder: Path, header: Mapping[str, Any], shard: Shard, *, overwrite: bool = False
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{shard.rank:02d}-of-{shard.processes:02d}.jsonl"
        self.lock = _lock_of(self.path)
        with _alone_in(folder):  # another process must not see the file before its header is written
            if not self.lock.take():
                remedy = "wait for it to end, or give another --out"
                raise BlockingIOError(f"{self.path}: another run writes to it; {remedy}")
            self.file: IO[bytes] = self.path.open("ab", buffering=0)
            self.state = os.fstat(self.file.fileno())
            try:
                self._look_at_others(header, overwrite)
                if overwrite:
                    self.file.truncate(0)
                data = self.path.read_bytes()
                self.file.truncate(data.rfind(b"\n") + 1)
                if data.count(b"\n") < 2:  # no answer yet: settings may have changed since
                    self.file.truncate(0)
                    self._write({"header": header, **({"overwrite": True} if overwrite else {})})
            except BaseException:
                self.close()
                raise

    def _look_at_others(self, header: Mapping[str, Any], overwrite: bool) -> None:
        """Refuse to begin beside living runs of other settings; remove the files that `overwrite` drops."""
        processes = self.path.name.split("-of-")[1]
        for other in sorted(set(self.path.parent.glob("*.jsonl")) - {self.path}):
            lives, head = _lock_of(other).is_held(), _first_line(other)
            changed = _tell_changes(head["header"], header)
            of_this_run = not changed and other.name.endswith(f"-of-{processes}")
            if lives and (changed or overwrite and not (of_this_run and head.get("overwrite"))):
                lost = "would lose its answers by --overwrite"
                why = f"has other settings ({changed})" if changed else lost
                remedy = "wait for it to end, or give another --out"
                raise BlockingIOError(f"{other}: another run writes to it, which {why}; {remedy}")
            if overwrite and not of_this_run:
                other.unlink()

    def add(self, row: dict[str, Any]) -> None:
        """Append a line: `video_id`, `answers`, for a video without answers `failed`, and further fields.

        Raises: as `check`; OSError for a full disk.
        """
        self._write(row)
        self.check()

    def check(self) -> None:
        """Raise RunStopped if the file is no longer in its folder."""
        with suppress(FileNotFoundError):
            if os.path.samestat(self.path.stat(), self.state):
                return
        raise RunStopped(
            f"{self.path} is gone: it or its folder was removed or renamed while this run wrote to it, and "
            "its answers with it; start the run again"
        )

    def _write(self, row: Mapping[str, Any]) -> None:
        try:
            rest = memoryview(json.dumps(row).encode() + b"\n")
            while rest:  # on a full disk a write may take a part
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            remedy = "make room there; the same command continues from here"
            raise OSError(f"{self.path} cannot be written ({error.strerror}); {remedy}") from error

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and let another process write to it."""
        self.file.close()
        self.lock.drop()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: processes open their files one after the other, each header written whole."""
    lock = Lock(folder / ".lock")
    lock.take(wait=True)
    try:
        yield
    finally:
        lock.drop()


def _lock_of(file: Path) -> Lock:
    """A file beside it: Windows lets nobody read a locked file. A forked worker does not hold it."""
    return Lock(file.with_name(f"{file.name}.lock"))


def _first_line(file: Path) -> dict[str, Any]:
    """The first line's object; one with an empty header if it cannot be read."""
    try:
        with file.open("rb") as lines:
            return FIRST_LINE.check(json.loads(lines.readline()))
    except (ValueError, RecursionError):
        return {"header": {}}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(value, dict):
        return {name: value}
    parts = [_flat(inner, f"{name}.{key}" if name else key) for key, inner in value.items()]
    return {key: inner for part in parts for key, inner in part.items()}
