"""The json of a detection dataset: its videos, and the actions in each of them.

    {"database": {"video_test_0000004": {
        "subset": "validation", "duration": 33.83, "frame": 1014,
        "annotations": [{"segment": [0.2, 1.1], "label": "CricketBowling"}]}}}

Other keys are free. Times are in seconds. Annotation files come from outside: what cannot be meant is a
`BadRow` that names video and segment; what a reader leaves out or keeps against expectation is a note.

Reference: the files of sming256/OpenTAD; of ActionFormer's `thumos14.json`, with `fps` instead of `frame`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from moss_vllm.data.actions.files import class_id, class_ids, read_lines
from moss_vllm.data.annotated_videos import Notes, is_number, name_first, positive, read_frame_count
from moss_vllm.data.annotations import text_field
from moss_vllm.data.rows import BadRow, raise_bad_rows

AMBIGUOUS = "Ambiguous"  # THUMOS-14's label of what may or may not be an action
IN_SECONDS = "write segments and durations in seconds"
MOST_LATE = 1000  # durations of its video; an action that ends later is no action of it
SAME_S = 1e-3  # two actions of one class whose ends both lie this near are one


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
            duration_s = positive(row, "duration", file, where)
            frames = read_frame_count(row, duration_s, file, where)
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
            if action is not None and action.end_s > MOST_LATE * duration_s:
                reason = f"ends at {action.end_s:g} s, the video at {duration_s:g} s"
                bad.append(BadRow(file, f"video {video_id!r}, segment {number}", reason, IN_SECONDS))
            elif action is None:
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
        raise BadRow(file, "file", reason, IN_SECONDS)


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
