"""The records of a boundary dataset: Kinetics-GEBD's and TAPOS's own, and those of the user's json.

    {"tdpHu69TU5w": {"num_frames": 150, "fps": 15.0, "video_duration": 10.0, "f1_consis": [0.57],
        "f1_consis_avg": 0.57, "path_frame": "air_drumming/tdpHu69TU5w_000004_000014",
        "substages_myframeidx": [[4.0, 14.0]], "substages_timestamps": [[0.3, 0.95]]}}

Each rater has a list in seconds and one in frames, counted from 0. Other keys are free. Annotation files come
from outside: what cannot be meant is a `BadRow` that names clip and rater.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from moss_vllm.data.actions.files import clip_name
from moss_vllm.data.annotated_videos import (
    FPS_RANGE,
    LONGEST_VIDEO,
    Notes,
    is_number,
    positive,
    read_frame_count,
)
from moss_vllm.data.boundaries.ground_truth import RAW_FIELDS
from moss_vllm.data.rows import BadRow, raise_bad_rows

TAPOS_INSTANCE = re.compile(r"s\d+_(\d+)_(\d+)_(\d+)_(\d+)")  # from 0.100 s to 7.931 s: s00004_0_100_7_931
TAPOS_KEY = re.compile(rf"(.+)_({TAPOS_INSTANCE.pattern})")
FIX_RECORD = "repair the record, or take the file from its publisher"


@dataclass(frozen=True)
class Rater:
    """The boundaries that one person marked, in seconds and in frames from 0, in the order of the file.

    `consistency` is the F1 with which the rater agrees with the others.
    """

    times_s: tuple[float, ...]
    frames: tuple[float, ...]
    consistency: float


@dataclass(frozen=True)
class BoundaryVideo:
    """One clip and the boundaries that its raters marked.

    Args:
        video_id: the key in the annotation.
        path: a file or a folder of frames; "" where it is not on disk or was not looked for.
        name: of the file or folder, without a suffix.
        group: the folder that may lie between: a class of Kinetics, a video of TAPOS, or "".
        frames: the annotation's count; the file may have another.
        mean_consistency: of the raters; a clip below 0.3 is not scored.
    """

    video_id: str
    path: str
    name: str
    group: str
    frames: int
    fps: float
    duration_s: float
    raters: tuple[Rater, ...]
    mean_consistency: float

    @property
    def boundaries(self) -> int:
        """The number of boundaries of all raters."""
        return sum(len(rater.times_s) for rater in self.raters)


def read_records(records: Mapping[str, Any], file: str, notes: Notes) -> list[BoundaryVideo]:
    """The clips of a ground-truth file.

    Raises: BadRow or BadRows for every record that cannot be used.
    """
    bad: list[BadRow] = []
    clips = []
    for video_id, record in records.items():
        try:
            clips.append(_read_record(video_id, record, file))
        except BadRow as error:
            bad.append(error)
    raise_bad_rows(bad)
    _note_outside(clips, file, notes)
    return clips


def _read_record(video_id: str, record: Any, file: str) -> BoundaryVideo:
    where = f"video {video_id!r}"
    if not isinstance(record, dict):
        raise BadRow(file, where, f"is a {type(record).__name__}, not a dict", FIX_RECORD)
    frames = positive(record, "num_frames", file, where)
    fps, duration_s = (positive(record, key, file, where) for key in ("fps", "video_duration"))
    is_count = frames.is_integer() and frames <= LONGEST_VIDEO
    if not is_count or not FPS_RANGE[0] <= frames / duration_s <= FPS_RANGE[1]:
        needed = f"a whole number is needed, 1 to 1000 a second and at most {LONGEST_VIDEO:,}"
        reason = f"{frames:g} frames in {duration_s:g} s: {needed}"
        raise BadRow(file, where, reason, FIX_RECORD)
    times = _lists(record, "substages_timestamps", file, where)
    places = _lists(record, "substages_myframeidx", file, where)
    (consistency,) = _lists({"f1_consis": [record.get("f1_consis")]}, "f1_consis", file, where)
    if not len(times) == len(places) == len(consistency):
        reason = (
            f"has {len(times)} raters in seconds, {len(places)} in frames, {len(consistency)} in f1_consis"
        )
        raise BadRow(file, where, reason, FIX_RECORD)
    for number, (some, others) in enumerate(zip(times, places, strict=True)):
        if len(some) != len(others):
            reason = f"has {len(some)} boundaries in seconds and {len(others)} in frames"
            raise BadRow(file, f"{where}, rater {number}", reason, FIX_RECORD)
    mean: Any = record.get("f1_consis_avg")
    if not is_number(mean):
        raise BadRow(file, where, f"'f1_consis_avg' is {mean!r:.80}, a number is needed", FIX_RECORD)
    group, name = _place(clip_name(video_id, file, where), record, file, where)
    raters = map(Rater, times, places, consistency)
    return BoundaryVideo(video_id, "", name, group, int(frames), fps, duration_s, tuple(raters), float(mean))


def _lists(record: Mapping[str, Any], key: str, file: str, where: str) -> list[tuple[float, ...]]:
    """The list of numbers of each rater."""
    raters: Any = record.get(key)
    if not isinstance(raters, list) or not raters:
        reason = f"{key!r} is {type(raters).__name__}, a list with a list for each rater is needed"
        raise BadRow(file, where, reason if raters != [] else f"{key!r} has no rater", FIX_RECORD)
    for number, some in enumerate(raters):
        at = where if len(raters) == 1 else f"{where}, rater {number}"
        if not isinstance(some, list):
            reason = f"{key!r} is {type(some).__name__}, a list of numbers is needed"
            raise BadRow(file, at, reason, FIX_RECORD)
        if wrong := [one for one in some if not is_number(one)]:
            raise BadRow(file, at, f"{key!r} has {wrong[0]!r:.80}, which is no number", FIX_RECORD)
    return [tuple(float(one) for one in some) for some in raters]


def _place(video_id: str, record: Mapping[str, Any], file: str, where: str) -> tuple[str, str]:
    """The names of folder and clip: the last parts of a path, of which the authors' has more."""
    if match := TAPOS_KEY.fullmatch(video_id):
        group, name = match[1], video_id
    else:
        path = record.get("path_frame") or record.get("path_video") or video_id
        if not isinstance(path, str):
            raise BadRow(file, where, f"'path_frame' is {type(path).__name__}, a text is needed", FIX_RECORD)
        parts = PurePosixPath(path.removesuffix(".mp4")).parts
        group, name = (parts[-2] if len(parts) > 1 else ""), (parts[-1] if parts else "")
    if group:
        clip_name(group, file, where)
    return group, clip_name(name, file, where)


def _note_outside(clips: Sequence[BoundaryVideo], file: str, notes: Notes) -> None:
    """Note boundaries outside their clip; an error if they are most of a file."""
    outside = 0
    for clip in clips:
        for number, rater in enumerate(clip.raters):
            for time_s in rater.times_s:
                if not 0 <= time_s <= clip.duration_s:
                    outside += 1
                    told = f"{clip.video_id} rater {number}, {time_s:g} of {clip.duration_s:g} s"
                    notes.count("boundaries outside their clip, kept as annotated", told)
    total = sum(clip.boundaries for clip in clips)
    if outside > total / 2:
        reason = f"{outside:,} of {total:,} boundaries lie outside their clip"
        raise BadRow(file, "file", reason, "write boundaries and durations in seconds")


def check_raw(raw: Mapping[str, Any], file: str) -> None:
    """Check the fields of a raw annotation that its ground truth is built from; a field may be absent.

    Raises: BadRow or BadRows.
    """
    bad: list[BadRow] = []
    for video_id, record in raw.items():
        where = f"video {video_id!r}"
        try:
            if not isinstance(record, dict):
                raise BadRow(file, where, f"is a {type(record).__name__}, not a dict", FIX_RECORD)
            if any(key not in record for key in RAW_FIELDS):
                continue
            positive(record, "num_frames", file, where)
            positive(record, "fps", file, where)
            positive(record, "video_duration", file, where)
            if not isinstance(record["path_video"], str):
                raise BadRow(file, where, "'path_video' is no text", FIX_RECORD)
            raters = record["substages_timestamps"]
            if not isinstance(raters, list) or not all(isinstance(marks, list) for marks in raters):
                raise BadRow(file, where, "'substages_timestamps' has not a list for each rater", FIX_RECORD)
            for number, marks in enumerate(raters):
                for place, mark in enumerate(marks):
                    _check_mark(mark, file, f"{where}, rater {number}, mark {place}")
        except BadRow as error:
            bad.append(error)
    raise_bad_rows(bad)


def _check_mark(mark: Any, file: str, where: str) -> None:
    needed = '{"start_time": seconds, "end_time": seconds, "label": text}'
    times = [mark.get("start_time"), mark.get("end_time")] if isinstance(mark, dict) else [None]
    if not all(map(is_number, times)) or not isinstance(mark.get("label"), str):
        raise BadRow(file, where, f"is not {needed}", FIX_RECORD)


# ---- tapos_annotation.json


def from_tapos(content: Mapping[str, Any], subset: str, file: str, notes: Notes) -> dict[str, Any]:
    """Records of the instances of a subset; the first and last time of `substages` are no boundaries.

    Raises: BadRow or BadRows.
    """
    bad: list[BadRow] = []
    records = {}
    for video_id, instances in content.items():
        rows = instances.items() if isinstance(instances, dict) else [("", instances)]
        for name, row in rows:
            where = f"instance {video_id}_{name}"
            try:
                record = _tapos_record(name, row, subset, file, where)
            except BadRow as error:
                bad.append(error)
                continue
            if record and not record["substages_myframeidx"][0]:
                notes.count("instances left out as they have no boundary", f"{video_id}_{name}")
            elif record:
                records[f"{video_id}_{name}"] = record
    raise_bad_rows(bad)
    return records


def _tapos_record(name: str, row: Any, subset: str, file: str, where: str) -> dict[str, Any] | None:
    """None for one of another subset."""
    match = TAPOS_INSTANCE.fullmatch(name)
    if not isinstance(row, dict) or not match:
        raise BadRow(file, where, "is not an object named like 's00004_0_100_7_931'", FIX_RECORD)
    if row.get("subset") != subset:
        return None
    start_s, thousandths, end_s, end_thousandths = map(int, match.groups())
    duration_ms = 1000 * (end_s - start_s) + end_thousandths - thousandths
    frames = positive(row, "total_frames", file, where)
    (places,) = _lists({"substages": [row.get("substages")]}, "substages", file, where)
    if duration_ms <= 0:
        raise BadRow(file, where, "ends before it starts, by its name", FIX_RECORD)
    duration_s = duration_ms / 1000
    fps = frames / duration_s
    return {
        "num_frames": int(frames),
        "fps": fps,
        "video_duration": duration_s,
        "f1_consis": [1.0],
        "f1_consis_avg": 1.0,
        "substages_myframeidx": [list(places[1:-1])],
        "substages_timestamps": [[place / fps for place in places[1:-1]]],
    }


# ---- the user's own


def from_database(rows: Mapping[str, dict[str, Any]], file: str) -> dict[str, Any]:
    """Records of videos in the user's json.

    {"database": {"clip_01": {"subset": "training", "duration": 10.0, "fps": 25.0,
        "boundaries_s": [[1.2, 4.52], [1.3]], "consistency": [0.8, 0.6]}}}

    `boundaries_s` has a list per rater; without `consistency` all raters count the same.

    Raises: BadRow or BadRows.
    """
    bad: list[BadRow] = []
    records = {}
    for video_id, row in rows.items():
        where = f"video {video_id!r}"
        try:
            duration_s = positive(row, "duration", file, where)
            frames = read_frame_count(row, duration_s, file, where)
            if frames is None:
                raise BadRow(file, where, "has no 'fps' and no 'frame'", "write one of the two")
            times = _lists(row, "boundaries_s", file, where)
            consistency = row.get("consistency", [1.0] * len(times))
            if not isinstance(consistency, list) or len(consistency) != len(times):
                reason = f"'consistency' is {consistency!r:.80}, a list of {len(times)} numbers is needed"
                raise BadRow(file, where, reason, "write one for each rater, or leave it out")
            if wrong := [one for one in consistency if not is_number(one) or not 0 <= one <= 1]:
                reason = f"'consistency' has {wrong[0]!r:.80}, a number from 0 to 1 is needed"
                raise BadRow(file, where, reason, "write shares, not percent")
        except BadRow as error:
            bad.append(error)
            continue
        fps = frames / duration_s
        records[video_id] = {
            "num_frames": frames,
            "fps": fps,
            "video_duration": duration_s,
            "f1_consis": consistency,
            "f1_consis_avg": math.fsum(consistency) / len(consistency),
            "substages_timestamps": [list(some) for some in times],
            "substages_myframeidx": [  # times far outside stay outside, and are whole numbers
                [float(math.floor(max(-frames, min(frames - 1, time * fps)))) for time in some]
                for some in times
            ],
        }
    raise_bad_rows(bad)
    return records
