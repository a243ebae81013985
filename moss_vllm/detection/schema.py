"""What the lines of a detector's test hold: the detections of a video, and how they are read back."""

from pathlib import Path
from typing import Any

import numpy as np

from moss_vllm.data.detection.datasets import DetectionSplit
from moss_vllm.detection.predictions import Detections
from moss_vllm.runtime.line_store import ANSWERS, Fields, Schema, Stored, read_answers


def as_answer(video_id: str, detections: Detections) -> dict[str, Any]:
    """The detections as an answer of the store; labels are class ids."""
    columns = {"segments": detections.segments_s, "scores": detections.scores, "labels": detections.labels}
    return {"uid": video_id, **{name: column.tolist() for name, column in columns.items()}}


def _as_detections(answer: dict[str, Any]) -> Detections:
    """The detections of an answer; ValueError for columns that do not fit each other."""
    segments, scores = (np.array(answer[name], np.float64) for name in ("segments", "scores"))
    labels = np.array(answer["labels"], np.int64)
    if segments.size != 2 * len(scores) or scores.shape != labels.shape:
        raise ValueError(f"{segments.shape} segments, {len(scores):,} scores and {len(labels):,} labels")
    return Detections(segments.reshape(-1, 2), scores, labels)


# The header's `protocol` has the windows, the size of frames and how outputs become detections; `questions`
# is the number of videos.
DETECTION_SCHEMA = Schema(
    header=Fields(
        {"benchmark": str, "checkpoint": str, "protocol": dict, "questions": int, "data": str},
        {"versions": dict, "run": dict, "weights": str, "dtype": str, "model_settings": str},
    ),
    parts={"protocol": Fields({"name": str})},
    is_of_task=lambda header: header["protocol"]["name"] == "windows",
    source="one that eval/detection.py wrote, or OUT/test of recipes/detection.py",
    answer=Fields({"segments": list, "scores": list, "labels": list}),
    check_answer=lambda answer: (_as_detections(answer), None)[1],
)


def collect_detections(folder: Path, split: DetectionSplit) -> dict[str, Detections]:
    """The detections of a split's videos that all processes have stored in `folder` so far.

    Raises: ValueError for lines of another task, or that cannot be read.
    """
    return detections_of(read_answers(folder / ANSWERS, DETECTION_SCHEMA), split)


def detections_of(stored: Stored, split: DetectionSplit) -> dict[str, Detections]:
    """The detections of a split's videos in the order of its file; a video that failed has none."""
    names = [video.video_id for video in split.videos]
    return {name: _as_detections(stored.answers[name]) for name in names if name in stored.answers}
