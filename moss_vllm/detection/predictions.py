"""Detected actions, and the file of them: OpenTAD's and ActivityNet's json.

    {"results": {"video_test_0000004": [{"segment": [4.4, 4.57], "label": "Billiards", "score": 0.9333}]}}

The file comes from this project or from another's; what cannot be meant is named with its video and row.
"""

import json
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moss_vllm.data.actions.files import class_id, class_ids
from moss_vllm.data.annotated_videos import is_number, name_first, read_object
from moss_vllm.data.annotations import text_field
from moss_vllm.data.detection.annotation import read_segment
from moss_vllm.data.rows import BadRow, raise_bad_rows
from moss_vllm.runtime.files import write_whole

SEGMENT_DECIMALS = 2
SCORE_DECIMALS = 4
REWRITE = "repair the row, or write the file again"


@dataclass(frozen=True)
class Detections:
    """Actions detected in one video.

    Shape: segments_s float64 (N, 2), start and end in seconds; scores float64 (N,), in [0, 1]; labels int64
    (N,), class ids.
    """

    segments_s: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: np.ndarray) -> "Detections":
        """The detections of these indices, or of True."""
        return Detections(self.segments_s[rows], self.scores[rows], self.labels[rows])

    def rounded(self) -> "Detections":
        """Times in hundredths of a second and scores in ten thousandths, as a file has them."""
        segments = _round(self.segments_s.ravel(), SEGMENT_DECIMALS).reshape(-1, 2)
        return Detections(segments, _round(self.scores, SCORE_DECIMALS), self.labels)


def no_detections() -> Detections:
    """Of a video in which nothing was found."""
    return Detections(np.zeros((0, 2)), np.zeros(0), np.zeros(0, np.int64))


def join_detections(parts: Sequence[Detections]) -> Detections:
    """All detections of the parts, in their order."""
    parts = [*parts, no_detections()]
    columns = zip(*((part.segments_s, part.scores, part.labels) for part in parts), strict=True)
    return Detections(*map(np.concatenate, columns))


def same_detections(one: Mapping[str, Detections], other: Mapping[str, Detections]) -> bool:
    """Whether the detections of all videos are the same, in the same order."""
    empty = no_detections()
    return all(
        np.array_equal(getattr(one.get(name, empty), column), getattr(other.get(name, empty), column))
        for name in one.keys() | other.keys()
        for column in ("segments_s", "scores", "labels")
    )


def _round(values: np.ndarray, decimals: int) -> np.ndarray:
    """Round as Python does: numpy multiplies first, and rounds 0.285 up that is 0.28499 in binary."""
    return np.array([round(value, decimals) for value in values.tolist()], np.float64) + 0.0  # -0.0 is 0.0


def write_predictions(path: Path, predictions: Mapping[str, Detections], classes: Sequence[str]) -> None:
    """Write detections by video, rounded; the file is whole or not there at all."""
    results = {name: list(_as_rows(one.rounded(), classes)) for name, one in predictions.items()}
    write_whole(path, json.dumps({"results": results}, ensure_ascii=False) + "\n")


def _as_rows(detections: Detections, classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    columns = (detections.segments_s.tolist(), detections.labels.tolist(), detections.scores.tolist())
    for segment, label, score in zip(*columns, strict=True):
        yield {"segment": segment, "label": classes[label], "score": score}


def read_predictions(
    path: str | os.PathLike[str], classes: Sequence[str], videos: Sequence[str] | None = None
) -> dict[str, Detections]:
    """Read detections by video; keys beside `results` are free.

    Args:
        videos: the annotated ones. Ids become theirs where they differ in their Unicode form alone.

    Raises: BadRow or BadRows for a file of another form, an unknown class, a time or score that is no number,
    a segment that ends before it starts, a score outside 0 to 1, or detections in none of `videos`.
    """
    file, ids = str(path), class_ids(classes, "the class list")
    results = read_object(Path(path), REWRITE).get("results")
    if not isinstance(results, dict):
        reason = "has no object 'results'"
        raise BadRow(file, "file", reason, 'it must be {"results": {"video id": [{"segment": ...}]}}')
    bad: list[BadRow] = []
    found = {}
    for video_id, rows in results.items():
        read = []
        if not isinstance(rows, list):
            reason = f"is a {type(rows).__name__}, not a list of detections"
            bad.append(BadRow(file, f"video {video_id!r}", reason, "write [] for a video without any"))
            continue
        for number, row in enumerate(rows):
            try:
                read.append(_read_row(row, ids, file, f"video {video_id!r}, row {number}"))
            except BadRow as error:
                bad.append(error)
        table = np.array(read, np.float64).reshape(-1, 4)
        found[video_id] = Detections(table[:, :2], table[:, 2], table[:, 3].astype(np.int64))
    raise_bad_rows(bad)
    return found if videos is None else _by_annotated_id(found, videos, file)


def _by_annotated_id(
    found: Mapping[str, Detections], videos: Sequence[str], file: str
) -> dict[str, Detections]:
    """The detections by the annotation's ids; those of other videos keep theirs."""
    annotated = {unicodedata.normalize("NFC", name): name for name in videos}
    named: dict[str, Detections] = {}
    for name, detections in found.items():
        known = annotated.get(unicodedata.normalize("NFC", name), name)
        if known in named:
            reason = "is there twice, in two Unicode forms of its name"
            raise BadRow(file, f"video {name!r}", reason, "keep one of them")
        named[known] = detections
    if named and not named.keys() & set(videos):
        reason = f"none of its {len(named):,} videos is annotated: it names {name_first(list(named))}; "
        reason += f"annotated are {name_first(videos)}"
        raise BadRow(file, "file", reason, "name them as the annotation does, or pass their own annotation")
    return named


def _read_row(row: Any, ids: dict[str, int], file: str, where: str) -> tuple[float, float, float, int]:
    start_s, end_s = read_segment(row, file, where)
    if end_s < start_s:
        raise BadRow(file, where, f"segment {row['segment']} ends before it starts", REWRITE)
    label = row.get("label")
    if not isinstance(label, str) or label not in ids:  # most rows need no more than this
        label_id = class_id(text_field(row, "label", file=file, where=where), ids, file, where)
    else:
        label_id = ids[label]
    score: Any = row.get("score")
    if not is_number(score) or not 0 <= score <= 1:
        reason = f"'score' is {score!r}" if "score" in row else "has no 'score'"
        raise BadRow(file, where, f"{reason}, a number from 0 to 1 is needed", REWRITE)
    return start_s, end_s, score, label_id
