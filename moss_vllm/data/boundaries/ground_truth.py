"""Kinetics-GEBD's ground truth from its raw annotation, by the rules of the official notebook.

A rater marked events, cuts and gradual shot changes, each with start, end and a label. What counts is the
middle of a mark; marks at the ends of a clip and marks near each other go. The notebook was mended in May
2022, when published files already existed: both sets of rules are here. The quirks below are part of what
was published.

Reference: StanLei52/GEBD, data/export/prepare_k400_release.ipynb as of 2021 and of 2022-05-18.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Version = Literal["2021", "2022"]
VERSIONS: tuple[Version, ...] = ("2022", "2021")
MIN_CHANGE_S = 0.3
MIN_RATERS = 3
RAW_FIELDS = (
    "num_frames",
    "path_video",
    "fps",
    "video_duration",
    "f1_consis",
    "f1_consis_avg",
    "substages_timestamps",
)
RANGE = "ShotChangeGradualRange:"
EVENT = "EventChange"


def build_ground_truth(raw: Mapping[str, Mapping[str, Any]], version: Version = "2022") -> dict[str, Any]:
    """The records of the ground-truth file, without clips of fewer than three raters or lacking a field.

    Args:
        raw: by clip id; `substages_timestamps` has a list per rater; each mark has "start_time", "end_time",
            "label".
    """
    return {
        name: _build_record(record, version)
        for name, record in raw.items()
        if all(key in record for key in RAW_FIELDS) and len(record["substages_timestamps"]) >= MIN_RATERS
    }


def _build_record(record: Mapping[str, Any], version: Version) -> dict[str, Any]:
    last = record["num_frames"] - 1
    times = [
        _boundaries(marks, record["video_duration"], version) for marks in record["substages_timestamps"]
    ]
    return {
        **record,
        "path_frame": record["path_video"].removesuffix(".mp4"),
        "substages_timestamps": times,
        "substages_myframeidx": [
            [float(math.floor(min(last, time * record["fps"]))) for time in some] for some in times
        ],
    }


def _boundaries(marks: Sequence[Mapping[str, Any]], duration_s: float, version: Version) -> list[float]:
    """The boundaries of one rater in seconds."""
    events: list[float] = []
    cuts: list[float] = []
    ranges: list[tuple[float, float]] = []
    for mark in marks:
        middle = (mark["start_time"] + mark["end_time"]) / 2
        if middle < MIN_CHANGE_S or duration_s - middle < MIN_CHANGE_S:
            continue
        kind = mark["label"].split(" ")[0]
        if kind == RANGE:
            ranges.append((mark["start_time"], mark["end_time"]))
        else:
            (events if kind == EVENT else cuts).append(middle)
    merged = _merge(sorted(ranges) if version == "2022" else ranges)
    for some in (events, cuts):
        _remove_within(some, merged)
    events, cuts = _thin(sorted(events)), _thin(sorted(cuts))
    for cut in cuts[:-1]:  # the last cut removes no event, in both versions
        events = [time for time in events if abs(time - cut) > 2 * MIN_CHANGE_S]
    return sorted([*events, *cuts, *((start + end) / 2 for start, end in merged)])


def _merge(ranges: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Join neighbours of the list that touch; in 2021 they were not sorted before."""
    merged: list[tuple[float, float]] = []
    for start, end in ranges:
        if merged and merged[-1][1] >= start:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _remove_within(times: list[float], ranges: Sequence[tuple[float, float]]) -> None:
    """Remove what lies in a range or near it; as published, the one behind a removed time stays."""
    for start, end in ranges:
        for time in times:  # the list is walked while it shrinks
            if start - MIN_CHANGE_S <= time <= end + MIN_CHANGE_S:
                times.remove(time)  # noqa: B909


def _thin(times: Sequence[float]) -> list[float]:
    """Of two that are at most 0.6 s apart, the first."""
    kept: list[float] = []
    for time in times:
        if not kept or time - kept[-1] > 2 * MIN_CHANGE_S:
            kept.append(time)
    return kept
