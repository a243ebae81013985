"""F1 at a relative distance: how many boundaries have a detection near them, over all clips together.

A detection may be as far from its boundary as a share of the clip's length, 0.05 to 0.5. Of a clip's raters
the one that fits the detections best counts, for each distance anew.

Reference: StanLei52/GEBD, Challenge_eval_Code/eval.py and its two notebooks; Ziwei-Zheng/EfficientGEBD,
utils/eval.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moss_vllm.data.boundaries.annotation import BoundaryVideo

DISTANCES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5)  # literals: arange's flip ties
MIN_CONSISTENCY = 0.3  # of a clip's raters; below it the clip is not scored
WHOLE_FRAME = 1e-6  # how far seconds * fps may be from the frame that was meant


@dataclass(frozen=True)
class F1Rule:
    """What the evaluations in use do differently.

    Args:
        in_frames: distances in frames instead of seconds; a detection on a clip's last frame is dropped.
        counts_missing: the boundaries of a clip without predictions count as missed; else it is left out.
        words: what the rule is, for a table's note.
    """

    in_frames: bool
    counts_missing: bool
    words: str


F1_RULES = {
    "official": F1Rule(False, True, "the challenge's evaluation, in seconds"),
    "efficientgebd": F1Rule(
        True, False, "EfficientGEBD's tables, in frames and without the clips that have no predictions"
    ),
    "official_tapos": F1Rule(True, True, "the official notebook for TAPOS, in frames"),
}


@dataclass(frozen=True)
class Matches:
    """What was found in each clip that is scored.

    Shape: raters, hits, positives int64 (V, distances): the rater that counts, how many of its boundaries
    were found, and how many it has; detections int64 (V,), those inside the clip.

    Args:
        names: of the V clips.
        missing: clips without predictions, which are among the V or not, as the rule has it.
        inconsistent: clips that are not scored as their raters agree too little.
        outside: detections that were dropped as they lie outside their clip.
    """

    names: tuple[str, ...]
    raters: np.ndarray
    hits: np.ndarray
    positives: np.ndarray
    detections: np.ndarray
    missing: tuple[str, ...]
    inconsistent: tuple[str, ...]
    outside: int

    def scores(self, weights: np.ndarray | None = None) -> np.ndarray:
        """F1, precision and recall at each distance, over all clips; `weights` counts clips several times.

        Shape: (3, distances).
        """
        weights = np.ones(len(self.names), np.int64) if weights is None else weights
        hits, positives = weights @ self.hits, weights @ self.positives
        return f1_scores(hits, positives, np.full_like(hits, weights @ self.detections))


def f1_scores(hits: np.ndarray, positives: np.ndarray, detections: np.ndarray) -> np.ndarray:
    """F1, precision and recall; without detections precision is 0, without boundaries recall is 1.

    Shape: three of (N,) -> float64 (3, N).
    """
    precision = np.where(detections > 0, hits / np.maximum(detections, 1), 0.0)
    recall = np.where(positives > 0, hits / np.maximum(positives, 1), 1.0)
    total = precision + recall
    f1 = np.where(total > 0, 2 * precision * recall / np.where(total > 0, total, 1), 0.0)
    return np.stack([f1, precision, recall])


def match_boundaries(
    videos: Sequence[BoundaryVideo],
    predictions: Mapping[str, Sequence[float]],
    rule: str = "official",
    distances: Sequence[float] = DISTANCES,
) -> Matches:
    """Match the detections of each clip, in seconds, with the boundaries of its raters.

    Raises: ValueError for another rule, or if no clip is left to score.
    """
    if rule not in F1_RULES:
        raise ValueError(f"the rule of F1 is {rule!r}; it must be one of {', '.join(F1_RULES)}")
    settings = F1_RULES[rule]
    names, rows, missing, inconsistent, outside = [], [], [], [], 0
    for video in videos:
        if video.mean_consistency < MIN_CONSISTENCY:
            inconsistent.append(video.video_id)
            continue
        found = predictions.get(video.video_id)
        if found is None:
            missing.append(video.video_id)
            if not settings.counts_missing:
                continue
        inside, length = inside_clip(video, found or (), settings)
        outside += len(found or ()) - len(inside)
        names.append(video.video_id)
        raters = [rater.frames if settings.in_frames else rater.times_s for rater in video.raters]
        rows.append(match_clip(raters, inside, [distance * length for distance in distances]))
    if not names:
        reason = f"{len(inconsistent):,} have raters that agree below {MIN_CONSISTENCY}"
        raise ValueError(f"no clip is left to score: {reason}, {len(missing):,} have no predictions")
    table = np.array([row for _, row in rows], np.int64)
    return Matches(
        tuple(names),
        table[:, 0],
        table[:, 1],
        table[:, 2],
        np.array([count for count, _ in rows], np.int64),
        tuple(missing),
        tuple(inconsistent),
        outside,
    )


def inside_clip(video: BoundaryVideo, found: Sequence[float], rule: F1Rule) -> tuple[list[float], float]:
    """The detections inside a clip, in the rule's unit and the order given, and the clip's length."""
    if not rule.in_frames:
        return [time for time in found if 0 <= time <= video.duration_s], video.duration_s
    frames = [_as_frame(time * video.fps) for time in found]
    return [frame for frame in frames if 0 <= frame <= video.frames - 1], video.frames


def _as_frame(number: float) -> float:
    """The whole frame that was meant, as seconds are frames / fps."""
    whole = round(number, 0)  # with 0 also of an infinite number, which lies outside of every clip
    return whole if abs(number - whole) < WHOLE_FRAME else number


def match_clip(
    raters: Sequence[Sequence[float]], found: Sequence[float], limits: Sequence[float]
) -> tuple[int, list[list[int]]]:
    """The number of detections; for each limit the best rater, its hits and its boundaries.

    Without a detection the first rater counts.
    """
    counts = np.zeros((len(raters), len(limits)), np.int64)
    sizes = np.array([len(boundaries) for boundaries in raters], np.int64)
    if found:
        for rater, boundaries in enumerate(raters):
            counts[rater] = _count_hits(boundaries, found, limits)
    every = np.repeat(sizes, len(limits))
    f1 = f1_scores(counts.ravel(), every, np.full_like(every, len(found)))[0].reshape(counts.shape)
    best = f1.argmax(axis=0) if found else np.zeros(len(limits), np.int64)  # the first one on ties
    hits = counts[best, np.arange(len(limits))]
    return len(found), [best.tolist(), hits.tolist(), sizes[best].tolist()]


def _count_hits(boundaries: Sequence[float], found: Sequence[float], limits: Sequence[float]) -> list[int]:
    """How many boundaries of a rater are found within each limit."""
    return [sum(place is not None for place in row) for row in pair(boundaries, found, limits)]


def pair(
    boundaries: Sequence[float], found: Sequence[float], limits: Sequence[float]
) -> list[list[int | None]]:
    """The detection that finds each boundary, by its place in `found`, for each limit; None for none.

    In their order, each takes the nearest detection that is left, the first in the list on ties. If that one
    is too far, the boundary is missed, and leaves it to the others.
    """
    offsets = np.abs(np.asarray(boundaries, np.float64)[:, None] - np.asarray(found, np.float64))
    nearest = [
        list(zip(order, row, strict=True))
        for order, row in zip(
            offsets.argsort(axis=1, kind="stable").tolist(), np.sort(offsets, axis=1).tolist(), strict=True
        )
    ]
    pairs = []
    for limit in limits:
        taken: set[int] = set()
        row: list[int | None] = []
        for candidates in nearest:
            place, offset = next((one for one in candidates if one[0] not in taken), (-1, np.inf))
            row.append(place if offset <= limit else None)
            taken |= {place} if offset <= limit else set()
        pairs.append(row)
    return pairs
