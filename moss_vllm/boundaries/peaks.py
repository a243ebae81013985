"""A score per frame -> boundaries: one at the middle of each run of frames at the threshold or over it."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

PeakRule = Literal["efficientgebd", "official"]
PEAK_RULES: tuple[PeakRule, ...] = ("efficientgebd", "official")
# EfficientGEBD's test scripts; its code's default is 0.35, the challenge's baseline has 0.5.
THRESHOLDS = {"kinetics_gebd": 0.3, "tapos": 0.2, "json": 0.3, "mini": 0.3}


def find_peaks(
    numbers: Sequence[float] | np.ndarray,
    scores: Sequence[float] | np.ndarray,
    threshold: float,
    rule: PeakRule = "efficientgebd",
) -> list[float]:
    """The frame number at the middle of each run of scores that reach the threshold.

    Shape: numbers (T,), of the frames; scores (T,).

    Args:
        rule: which frame is the middle of an even run: the one before ("official", as the challenge's
            instructions have it) or the one with the even index ("efficientgebd").

    Raises: ValueError for another rule, or numbers and scores of different lengths.
    """
    if rule not in PEAK_RULES:
        raise ValueError(f"the rule of peaks is {rule!r}; it must be one of {', '.join(PEAK_RULES)}")
    if len(numbers) != len(scores):
        raise ValueError(f"{len(scores):,} scores for {len(numbers):,} frames; each frame needs one")
    above = np.asarray(scores, np.float64) >= threshold
    edges = np.flatnonzero(np.diff(above, prepend=False, append=False)).reshape(-1, 2)
    middles = [(start + end - 1) / 2 for start, end in edges.tolist()]
    places = [int(middle) if rule == "official" else round(middle) for middle in middles]
    return [float(numbers[place]) for place in places]
