"""Every answer of an evaluation on disk, so that a run that was killed asks no question twice.

    OUT/answers/00-of-02.jsonl     of process 0 of 2: a header that says what was run, then a line per video

A process adds to its own file alone and waits for no other; `read_answers` puts a folder's files together,
however many processes wrote them. What a killed run left of a last line is dropped. A file is locked while a
process lives that adds to it.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from moss_vllm.runtime.errors import RunStopped

REMEDY = "evaluate again with --overwrite, or into another --out"
NUMBER, TEXT, COUNT, YES_NO = (float, int), (str, type(None)), (int, type(None)), (bool, type(None))
# What is read again of a line: the types of what must be there, and of what may be.
Fields = tuple[dict[str, Any], dict[str, Any]]
FIRST: Fields = {"header": dict}, {}
HEADER: Fields = (
    {"benchmark": str, "checkpoint": str, "protocol": dict, "questions": int},
    {"versions": dict, "run": dict, "generation": dict, "environment": dict},
)
PROTOCOL: Fields = (
    {"name": str},
    {
        **{"sample_fps": NUMBER, "max_frames": int, "compress_tokens": bool, "still": bool},
        **{"short_side_px": COUNT, "max_pixels": COUNT, "max_new_tokens": COUNT},
    },
)
LINE: Fields = {"video_id": str, "answers": list}, {"failed": str, "path": str, "seconds": dict, "file": dict}
FILE: Fields = {"bytes": int, "mtime_ns": int, "listed": str, "contents": str}, {}  # data.file_state's
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
    """What a folder holds: the run's header, answers by uid, and why videos failed that have none.

    `environments` are those of all its processes, which need not be the same.
    """

    header: dict[str, Any] | None = None
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    videos: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    environments: list[dict[str, Any]] = field(default_factory=list)

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """Which file each video was, as far as that is known."""
        return {video: row["file"] for video, row in self.videos.items() if row.get("file")}

    def tell_environments(self) -> str:
        """What of the environment was not the same for all answers; empty if nothing."""
        every = [self.header.get("environment", {}) if self.header else {}, *self.environments]
        names = dict.fromkeys(name for one in every if one for name in one)
        seen = {name: dict.fromkeys(str(one.get(name, "none")) for one in every if one) for name in names}
        return ", ".join(f"{name} {' and '.join(values)}" for name, values in seen.items() if len(values) > 1)


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
            if len(lines) > 1 or (
                lines and not answered
            ):  # else of a run that was given up before its first answer
                stored.header = stored.header or head
                stored.environments.append(head.get("environment", {}))
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
    if "file" in row:
        _check(row["file"], FILE)
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
    if changed := _tell_changes(found, wanted):
        raise ValueError(f"{file} holds answers of another run ({changed}); {REMEDY}")


def _tell_changes(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What of a header is not as wanted; empty where both are of one run."""
    silent = {"environment": None}
    digests = [[one.get(name) for name in ("weights", "model_settings")] for one in (found, wanted)]
    if digests[0] == digests[1] and all(digests[0]):  # the same model, wherever it and its base lie now
        silent |= dict.fromkeys(("checkpoint", "run"))
    was, now = (_flat({**one, **silent}) for one in (found, wanted))
    changed = [key for key in {**now, **was} if was.get(key) != now.get(key)]
    return ", ".join(f"{key} was {was.get(key)}, is {now.get(key)}" for key in changed)


class AnswerFile:
    """The file this process adds to; nobody else may while it is open.

    With `overwrite` the folder's other files go too, but for those of this run's other processes.

    Raises: BlockingIOError where another run has it open, or one of the folder's others with other settings,
    or with `overwrite` at all.
    """

    def __init__(
        self, folder: Path, header: Mapping[str, Any], shard: Shard, *, overwrite: bool = False
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{shard.rank:02d}-of-{shard.processes:02d}.jsonl"
        with _alone_in(folder):  # an empty file of another process would be taken for one of another run
            self.file: IO[bytes] = self.path.open("ab", buffering=0)
            self.state = os.fstat(self.file.fileno())
            try:
                if _is_locked(self.file, fcntl.LOCK_EX):
                    remedy = "wait for it to end, or give another --out"
                    raise BlockingIOError(f"{self.path}: another run writes to it; {remedy}")
                self._look_at_others(header, overwrite)
                if overwrite:
                    self.file.truncate(0)
                data = self.path.read_bytes()
                self.file.truncate(data.rfind(b"\n") + 1)
                if data.count(b"\n") < 2:  # without an answer the header may be of other settings
                    self.file.truncate(0)
                    self._write({"header": header, **({"overwrite": True} if overwrite else {})})
            except BaseException:
                self.file.close()
                raise

    def _look_at_others(self, header: Mapping[str, Any], overwrite: bool) -> None:
        """Refuse to begin beside other runs that live; drop what `overwrite` drops."""
        processes = self.path.name.split("-of-")[1]
        for other in sorted(set(self.path.parent.glob("*.jsonl")) - {self.path}):
            with other.open("rb") as file:
                lives, head = _is_locked(file, fcntl.LOCK_SH), _first_line(file)
            changed = _tell_changes(head["header"], header)
            of_this_run = not changed and other.name.endswith(f"-of-{processes}")
            if lives and (changed or overwrite and not (of_this_run and head.get("overwrite"))):
                why = (
                    f"has other settings ({changed})" if changed else "would lose its answers by --overwrite"
                )
                remedy = "wait for it to end, or give another --out"
                raise BlockingIOError(f"{other}: another run writes to it, which {why}; {remedy}")
            if overwrite and not of_this_run:
                other.unlink()

    def add(self, row: dict[str, Any]) -> None:
        """One line: `video_id`, `answers`, or `failed` with a reason, and whatever else is known.

        Raises: as `check`, OSError for a disk that refuses it.
        """
        self._write(row)
        self.check()

    def check(self) -> None:
        """RunStopped where the file is not in its folder any more."""
        with suppress(FileNotFoundError):
            if os.path.samestat(self.path.stat(), self.state):
                return
        raise RunStopped(
            f"{self.path} is gone: it or its folder was removed or renamed while this run wrote to it, and "
            "its answers with it; start the run again"
        )

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


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Within it no other process begins in the folder: each finds the locks and headers of those before."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(
            OSError
        ):  # some network disks lock no folder; only beginning in one moment is unseen then
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _is_locked(file: IO[bytes], kind: int) -> bool:
    """Whether a living process has the file locked; if not, this one has now, until it closes it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _first_line(file: IO[bytes]) -> dict[str, Any]:
    """With its header; an empty one where it cannot be read."""
    try:
        return _check(json.loads(file.readline()), FIRST)
    except (ValueError, RecursionError):
        return {"header": {}}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(value, dict):
        return {name: value}
    parts = [_flat(inner, f"{name}.{key}" if name else key) for key, inner in value.items()]
    return {key: inner for part in parts for key, inner in part.items()}
