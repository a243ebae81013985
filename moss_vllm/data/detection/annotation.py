"""The json of a detection dataset: its videos, and the actions in each of them.

    {"database": {"video_test_0000004": {
        "subset": "validation", "duration": 33.83, "frame": 1014,
        "annotations": [{"segment": [0.2, 1.1], "label": "CricketBowling"}]}}}

Other keys are free. Times are in seconds. Annotation files come from outside: what cannot be meant is a
`BadRow` that names video and segment; what a reader leaves out or keeps against expectation is a note.

Reference: the files of sming256/OpenTAD; of ActionFormer's `thumos14.json`, with `fps` instead of `frame`.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from moss_vllm.data.actions.files import class_id, class_ids, clip_name, read_lines, read_text
from moss_vllm.data.annotations import text_field
from moss_vllm.data.rows import BadRow, raise_bad_rows

AMBIGUOUS = "Ambiguous"  # THUMOS-14's label of what may or may not be an action
SAME_S = 1e-3  # two actions of one class whose ends both lie this near are one
FPS_RANGE = (1.0, 1000.0)
SHOWN = 5  # examples in a note


@dataclass(frozen=True)
class Action:
    """When an action happens, in seconds from the start of its video, and the id of its class."""

    start_s: float
    end_s: float
    label: int


@dataclass(frozen=True)
class ListedVideo:
    """A video of an annotation file; `frames` is None where the file does not say it."""

    video_id: str
    duration_s: float
    frames: int | None
    actions: tuple[Action, ...]


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
    try:
        found = json.loads(read_text(path), object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        reason = f"broken JSON: {error.msg} at column {error.colno}"
        raise BadRow(str(path), f"line {error.lineno}", reason, remedy) from None
    except RecursionError:
        raise BadRow(str(path), "file", "is nested too deeply", remedy) from None
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
    for video_id, video in database.items():
        try:
            clip_name(video_id, file, f"video {video_id!r}")
            if not isinstance(video, dict):
                reason, remedy = f"is a {type(video).__name__}, not an object", "make it an object {...}"
                raise BadRow(file, f"video {video_id!r}", reason, remedy)
            text_field(video, "subset", file=file, where=f"video {video_id!r}")
        except BadRow as error:
            bad.append(error)
    raise_bad_rows(bad)
    return database


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names, one a line; the place of a line is the id of its class.

    Raises: BadRow for an empty file, or a name that occurs twice.
    """
    names = tuple(name for _, name in read_lines(path))
    class_ids(names, str(path))
    return names


def collect_labels(database: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """All labels of an annotation file in alphabetical order, as category_idx.txt has them."""
    rows = [row for video in database.values() for row in _rows(video)]
    labels = {row["label"].strip() for row in rows if isinstance(row.get("label"), str)}
    return tuple(sorted(labels - {AMBIGUOUS, ""}))


def _rows(video: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    rows = video.get("annotations")
    return (row for row in rows if isinstance(row, dict)) if isinstance(rows, list) else ()


def read_videos(
    path: Path, database: Mapping[str, Mapping[str, Any]], classes: Sequence[str], notes: Notes
) -> list[ListedVideo]:
    """The videos with their actions; those that are Ambiguous, empty or repeated are left out and noted.

    Raises: BadRow or BadRows for every video and segment that cannot be used.
    """
    file, ids = str(path), class_ids(classes, str(path))
    bad: list[BadRow] = []
    videos = []
    for video_id, row in database.items():
        where = f"video {video_id!r}"
        try:
            duration_s = _positive(row, "duration", file, where)
            frames = _count_frames(row, duration_s, file, where)
            if frames and "frame" not in row:
                notes.count("videos without 'frame', which is taken as round(duration * fps)", video_id)
            rows = row.get("annotations")
            if not isinstance(rows, list):
                reason = f"'annotations' is {type(rows).__name__}, a list is needed"
                raise BadRow(file, where, reason, "write [] for a video without actions")
        except BadRow as error:
            bad.append(error)
            continue
        actions: list[Action] = []
        for number, one in enumerate(rows):
            try:
                action = _read_action(one, ids, file, f"{where}, segment {number}")
            except BadRow as error:
                bad.append(error)
                continue
            place = f"{video_id} {one['segment']} {one['label']}"
            if action is None:
                notes.count(f"segments left out as {AMBIGUOUS}", video_id)
            elif action.end_s <= action.start_s:
                notes.count("segments left out as they end where they start, or before", place)
            elif any(_is_same(action, earlier) for earlier in actions):
                notes.count("repeated segments, counted once", place)
            else:
                actions.append(action)
        videos.append(ListedVideo(video_id, duration_s, frames, tuple(actions)))
    raise_bad_rows(bad)
    _note_late(videos, classes, file, notes)
    _note_double(videos, classes, notes)
    return videos


def _count_frames(row: Mapping[str, Any], duration_s: float, file: str, where: str) -> int | None:
    """`frame` of a video; without it round(duration * fps), without that None."""
    if "frame" in row:
        frames = _positive(row, "frame", file, where)
        if not frames.is_integer():
            raise BadRow(file, where, f"'frame' is {frames}", "write the video's number of frames")
        told = f"{frames:.0f} frames in {duration_s:g} s"
    elif "fps" in row:
        fps = _positive(row, "fps", file, where)
        frames, told = round(duration_s * fps), f"'fps' is {fps:g}"
    else:
        return None
    if not FPS_RANGE[0] <= frames / duration_s <= FPS_RANGE[1]:
        reason = f"{told}: {frames / duration_s:g} frames a second"
        raise BadRow(file, where, reason, "write the duration in seconds, and the video's own frame count")
    return int(frames)


def _positive(row: Mapping[str, Any], key: str, file: str, where: str) -> float:
    value: Any = row.get(key)
    if not is_number(value) or value <= 0:
        reason = f"{key!r} is {value!r}" if key in row else f"has no {key!r}"
        raise BadRow(file, where, f"{reason}, a number above 0 is needed", f"fill in {key!r}")
    return float(value)


def is_number(value: Any) -> bool:
    """Whether a value of a json file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_segment(row: Any, file: str, where: str) -> tuple[float, float]:
    """Start and end of `{"segment": [start, end]}` in seconds; the end may be before the start.

    Raises: BadRow.
    """
    segment: Any = row.get("segment") if isinstance(row, dict) else None
    if not isinstance(segment, list) or len(segment) != 2 or not all(map(is_number, segment)):
        named = f"'segment' is {segment!r:.80}" if isinstance(row, dict) else f"is {row!r:.80}"
        reason = f"{named}, two times in seconds are needed"
        raise BadRow(file, where, reason, 'write {"segment": [start, end], ...} with two numbers')
    return float(segment[0]), float(segment[1])


def _read_action(row: Any, ids: dict[str, int], file: str, where: str) -> Action | None:
    """None for what is Ambiguous."""
    start_s, end_s = read_segment(row, file, where)
    where += f" {row['segment']}"
    label = text_field(row, "label", file=file, where=where)
    if label.strip() == AMBIGUOUS and AMBIGUOUS not in ids:
        return None
    if start_s < 0:
        raise BadRow(file, where, "starts before its video", "write 0 for the start of the video")
    return Action(start_s, end_s, class_id(label, ids, file, where))


def _is_same(one: Action, other: Action) -> bool:
    near = abs(one.start_s - other.start_s) <= SAME_S and abs(one.end_s - other.end_s) <= SAME_S
    return one.label == other.label and near


def _note_late(videos: Sequence[ListedVideo], classes: Sequence[str], file: str, notes: Notes) -> None:
    """Note actions that end after their video; an error if most of a file start there."""
    late = 0
    for video in videos:
        for action in video.actions:
            if action.end_s > video.duration_s:
                late += action.start_s >= video.duration_s
                place = f"{video.video_id} [{action.start_s:g}, {action.end_s:g}] {classes[action.label]}"
                place += f", the video ends at {video.duration_s:g} s"
                notes.count("segments that end after their video, kept as annotated", place)
    total = sum(len(video.actions) for video in videos)
    if late > total / 2:
        reason = f"{late:,} of {total:,} segments start after their video ends"
        raise BadRow(file, "file", reason, "write segments and durations in seconds")


def _note_double(videos: Sequence[ListedVideo], classes: Sequence[str], notes: Notes) -> None:
    """THUMOS-14 annotates each CliffDiving as Diving too."""
    pairs: Counter[tuple[str, str]] = Counter()
    for video in videos:
        at = defaultdict(list)
        for action in video.actions:
            at[action.start_s, action.end_s].append(classes[action.label])
        pairs.update(pair for labels in at.values() for pair in combinations(sorted(labels), 2))
    if pairs:
        told = name_first([f"{one} and {other} {count:,}" for (one, other), count in pairs.most_common()])
        kind = "segments annotated as two classes, both of which count"
        notes.texts.append(f"{kind}: {pairs.total():,} ({told})")
