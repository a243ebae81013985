"""What the lines of a test hold, the scores of each clip's frames, and how they are read back."""

from pathlib import Path
from typing import Any

import numpy as np

from moss_vllm.boundaries.predictions import FrameScores
from moss_vllm.data.boundaries.datasets import BoundarySplit
from moss_vllm.runtime.line_store import ANSWERS, Fields, Schema, Stored, read_answers


def as_answer(video_id: str, scores: FrameScores) -> dict[str, Any]:
    """The scores of a clip as an answer of the store."""
    return {"uid": video_id, "numbers": scores.numbers.tolist(), "scores": scores.scores.tolist()}


def _as_scores(answer: dict[str, Any]) -> FrameScores:
    """The scores of an answer; ValueError for columns that do not fit each other."""
    numbers, scores = (np.array(answer[name], np.float64) for name in ("numbers", "scores"))
    if numbers.ndim != 1 or numbers.shape != scores.shape:
        raise ValueError(f"{numbers.size:,} frame numbers and {scores.size:,} scores")
    return FrameScores(numbers, scores)


# The header's `protocol` has the frames of a clip and whether it is cut in slices; `questions` is the number
# of clips. A threshold is chosen later, so the same lines are scored at any.
BOUNDARY_SCHEMA = Schema(
    header=Fields(
        {"benchmark": str, "checkpoint": str, "protocol": dict, "questions": int, "data": str},
        {"versions": dict, "run": dict, "weights": str, "dtype": str, "model_settings": str},
    ),
    parts={"protocol": Fields({"name": str})},
    is_of_task=lambda header: header["protocol"]["name"] == "boundaries",
    source="one that eval/boundaries.py wrote, or OUT/test of recipes/boundaries.py",
    answer=Fields({"numbers": list, "scores": list}),
    check_answer=lambda answer: (_as_scores(answer), None)[1],
)


def collect_scores(folder: Path, split: BoundarySplit) -> dict[str, FrameScores]:
    """The scores of a split's clips that all processes have stored in `folder` so far.

    Raises: ValueError for lines of another task, or that cannot be read.
    """
    return scores_of(read_answers(folder / ANSWERS, BOUNDARY_SCHEMA), split)


def scores_of(stored: Stored, split: BoundarySplit) -> dict[str, FrameScores]:
    """The scores of a split's clips in the order of its file; a clip that failed has none."""
    names = [video.video_id for video in split.videos]
    return {name: _as_scores(stored.answers[name]) for name in names if name in stored.answers}
