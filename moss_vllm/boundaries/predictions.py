"""Detected boundaries, and the files of them: the challenge's layout, and EfficientGEBD's scores per frame.

    {"tdpHu69TU5w": [0.93, 4.2, 7.07]}                                       seconds
    {"tdpHu69TU5w": {"frame_idx": [1, 2, 4], "scores": [0.1, 0.7, 0.2]}}     frame numbers of the annotation

Both may be json or a pickle. Files come from this project or from another's; what cannot be meant is named
with its clip.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moss_vllm.boundaries.peaks import PeakRule, find_peaks
from moss_vllm.data.annotated_videos import is_number, read_object
from moss_vllm.data.boundaries.datasets import BoundarySplit
from moss_vllm.data.boundaries.pickles import read_pickle
from moss_vllm.data.rows import BadRow, raise_bad_rows
from moss_vllm.runtime.files import write_whole

REWRITE = "repair the entry, or write the file again"
PICKLES = (".pkl", ".pickle")


@dataclass(frozen=True)
class FrameScores:
    """How likely each frame of one clip is a boundary.

    Shape: numbers float64 (T,), frames of the annotation, from 1; scores float64 (T,), in [0, 1].
    """

    numbers: np.ndarray
    scores: np.ndarray

    def boundaries_s(self, fps: float, threshold: float, rule: PeakRule = "efficientgebd") -> list[float]:
        """Boundaries in seconds: their frame numbers over the frames a second, as in the authors' files."""
        return [number / fps for number in find_peaks(self.numbers, self.scores, threshold, rule)]


def pick_boundaries(
    split: BoundarySplit,
    scores: Mapping[str, FrameScores],
    threshold: float,
    rule: PeakRule = "efficientgebd",
) -> dict[str, list[float]]:
    """Boundaries in seconds of the clips that have scores."""
    rates = {video.video_id: video.fps for video in split.annotated}
    return {
        name: one.boundaries_s(rates[name], threshold, rule) for name, one in scores.items() if name in rates
    }


def write_predictions(path: Path, predictions: Mapping[str, Sequence[float]]) -> None:
    """Write boundaries in seconds by clip; the file is whole or not there at all."""
    write_whole(path, json.dumps({name: list(times) for name, times in predictions.items()}) + "\n")


def write_scores(path: Path, scores: Mapping[str, FrameScores]) -> None:
    """Write the score of each frame by clip, from which any threshold can be tried without the model."""
    rows = {
        name: {"frame_idx": one.numbers.tolist(), "scores": one.scores.tolist()}
        for name, one in scores.items()
    }
    write_whole(path, json.dumps(rows) + "\n")


def read_predictions(
    path: Path, split: BoundarySplit, *, threshold: float | None = None, rule: PeakRule = "efficientgebd"
) -> dict[str, list[float]]:
    """Read boundaries in seconds by clip, or find them in the scores of frames.

    Args:
        threshold, rule: of `find_peaks`; a file of seconds needs none.

    Raises: as `read_entries` and `as_boundaries`.
    """
    return as_boundaries(read_entries(path), split, str(path), threshold=threshold, rule=rule)


def read_entries(path: Path) -> dict[str, FrameScores | list[float]]:
    """What a file has of each clip: scores of frames, or boundaries in seconds.

    Raises: BadRow or BadRows for a file of another form, a time or score that is no number, a score outside
    0 to 1, or frames that are not in order.
    """
    file = str(path)
    content = read_pickle(path) if path.suffix in PICKLES else read_object(path, REWRITE)
    if not isinstance(content, dict):
        reason = f"holds a {type(content).__name__}, not a dict of clips"
        raise BadRow(file, "file", reason, 'it must be {"clip id": [seconds]}')
    bad: list[BadRow] = []
    entries: dict[str, FrameScores | list[float]] = {}
    for name, entry in content.items():
        where = f"video {name!r}"
        try:
            is_scores = isinstance(entry, dict)
            read = _read_scores(entry, file, where) if is_scores else None
            entries[name] = read or _read_numbers(entry, "the entry", file, where)
        except BadRow as error:
            bad.append(error)
    raise_bad_rows(bad)
    return entries


def as_boundaries(
    entries: Mapping[str, FrameScores | Sequence[float]],
    split: BoundarySplit,
    file: str,
    *,
    threshold: float | None,
    rule: PeakRule,
) -> dict[str, list[float]]:
    """Boundaries in seconds of what `file` has.

    Raises: BadRow or BadRows for clips of which the split has none, scores without a threshold, a threshold
    without scores, or times that are no seconds.
    """
    rates = {video.video_id: video.fps for video in split.annotated}
    if not rates.keys() & entries.keys():
        one, known = (next(iter(ids), None) for ids in (entries, rates))
        others = (
            f"has clips such as {one!r}, and none of the {len(rates):,} of {split.file}, such as {known!r}"
        )
        reason = others if entries else "has no clip"
        raise BadRow(file, "file", reason, "check that it is the right file, and the ids of its clips")
    scores = {name: one for name, one in entries.items() if isinstance(one, FrameScores)}
    if threshold is not None and not scores:
        reason = f"has boundaries in seconds, which a threshold of {threshold:g} does not change"
        raise BadRow(file, "file", reason, "leave the threshold out, or pass a file with scores of frames")
    if threshold is None:
        reason = "has scores of frames, which become boundaries at a threshold"
        raise_bad_rows([BadRow(file, f"video {name!r}", reason, "name the threshold") for name in scores])
    found = {
        name: one.boundaries_s(rates.get(name, 1.0), threshold or 0.0, rule)
        if isinstance(one, FrameScores)
        else list(one)
        for name, one in entries.items()
    }
    _check_unit(found, split, file)
    return found


def _read_numbers(values: Any, what: str, file: str, where: str) -> list[float]:
    if not isinstance(values, list):
        reason = f"{what} is a {type(values).__name__}, a list of numbers is needed"
        raise BadRow(file, where, reason, REWRITE)
    if wrong := [one for one in values if not is_number(one)]:
        raise BadRow(file, where, f"{what} has {wrong[0]!r:.80}, which is no number", REWRITE)
    return [float(one) for one in values]


def _read_scores(entry: Mapping[str, Any], file: str, where: str) -> FrameScores:
    """Keys beside `frame_idx` and `scores` are free; EfficientGEBD has a list of scores for each head."""
    numbers = _read_numbers(entry.get("frame_idx"), "'frame_idx'", file, where)
    scores = entry.get("scores")
    if isinstance(scores, list) and scores and all(isinstance(one, list) for one in scores):
        if len(scores) > 1:
            reason = f"'scores' has the lists of {len(scores)} heads"
            raise BadRow(file, where, reason, "keep that of one head")
        scores = scores[0]
    read = _read_numbers(scores, "'scores'", file, where)
    if len(read) != len(numbers):
        reason = f"has {len(numbers):,} frames and {len(read):,} scores"
        raise BadRow(file, where, reason, REWRITE)
    if at := next((at for at in range(1, len(numbers)) if numbers[at] < numbers[at - 1]), 0):
        reason = f"'frame_idx' has {numbers[at]:g} after {numbers[at - 1]:g}; frames must be in order"
        raise BadRow(file, where, reason, REWRITE)
    if wrong := [one for one in read if not 0 <= one <= 1]:
        raise BadRow(file, where, f"'scores' has {wrong[0]:g}, a number from 0 to 1 is needed", REWRITE)
    return FrameScores(np.array(numbers, np.float64), np.array(read, np.float64))


def _check_unit(found: Mapping[str, Sequence[float]], split: BoundarySplit, file: str) -> None:
    """Refuse times of which most lie outside their clip, as frame numbers would."""
    ends = {video.video_id: video.duration_s for video in split.annotated}
    times = [(time, ends[name]) for name, some in found.items() if name in ends for time in some]
    counts = {
        "before the start": sum(time < 0 for time, _ in times),
        "after the end": sum(time > end for time, end in times),
    }
    for where, count in counts.items():
        if count > len(times) / 2:
            reason = f"{count:,} of {len(times):,} boundaries lie {where} of their clip"
            raise BadRow(file, "file", reason, "write them in seconds from the clip's start")
