"""Soft-NMS: of detections that overlap, all but the best lose score.

Reference: Bodla et al. (2017), the Gaussian form, on segments; its details are those of ActionFormer's
compiled operation, which AdaTAD uses.
"""

import heapq

import numpy as np

from moss_vllm.detection.predictions import Detections

LEAST_SIGMA = 0.01  # with a smaller one equal segments would get the score 0 in float32, and be taken again
ADDED_LENGTH_S = 1e-6  # to every length, so that no division is by 0


class _Class:
    """The detections of one class that are left, in their first order; scores in float32 as the reference."""

    def __init__(self, segments_s: np.ndarray, scores: np.ndarray, sigma: float) -> None:
        segments = segments_s.astype(np.float32)
        self.order = np.argsort(segments[:, 0], kind="stable")
        self.starts, self.ends = segments[self.order].T.copy()
        self.lengths = self.ends - self.starts + np.float32(ADDED_LENGTH_S)
        self.left = scores.astype(np.float32)
        self.sigma = np.float32(sigma)
        # In the order of starts all that overlap a segment lie in one range: they start before its end, and
        # none before the range's begin ends after its start.
        latest = np.maximum.accumulate(self.ends)
        self.place = np.argsort(self.order)
        self.begins = np.searchsorted(latest, self.starts, side="right").tolist()
        self.stops = np.searchsorted(self.starts, self.ends, side="left").tolist()

    def best(self) -> tuple[int, float]:
        """The first detection of the highest score, and this score."""
        index = int(self.left.argmax())
        return index, float(self.left[index])

    def take(self, index: int) -> None:
        """Take one out; the others lose score by their overlap with it."""
        self.left[index] = -np.inf
        place = self.place[index]
        near = slice(self.begins[place], self.stops[place])
        overlap = np.minimum(self.ends[near], self.ends[place])
        overlap -= np.maximum(self.starts[near], self.starts[place])
        np.maximum(overlap, np.float32(0), out=overlap)
        iou = overlap / (self.lengths[near] + self.lengths[place] - overlap)
        self.left[self.order[near]] *= np.exp(iou * iou / -self.sigma)


def soft_nms(
    detections: Detections, *, sigma: float = 0.7, min_score: float = 0.0, max_seg_num: int = 2000
) -> Detections:
    """Detections by falling score, after each class's best have lowered the score of those they overlap.

    The best detection of a class is taken, the others of this class are multiplied by exp(-IoU^2 / sigma),
    and so on. A class ends where its best score is below `min_score`; its very best is always taken. Classes
    are taken from in turn, always the best that is left, so `max_seg_num` detections need as many steps.

    Raises: ValueError for a setting out of range, or a detection that is not finite.

    Reference: AdaTAD's settings are sigma 0.7, min_score 0 and 2000 detections.
    """
    if not sigma >= LEAST_SIGMA or not 0 <= min_score <= 1 or max_seg_num < 1:
        given = f"sigma {sigma}, min_score {min_score}, max_seg_num {max_seg_num}"
        raise ValueError(
            f"{given}: sigma is at least {LEAST_SIGMA}, min_score 0 to 1, max_seg_num at least 1"
        )
    if not (np.isfinite(detections.segments_s).all() and np.isfinite(detections.scores).all()):
        raise ValueError("a detection has a time or score that is not finite; the model's outputs are NaN")
    rows = [np.flatnonzero(detections.labels == label) for label in np.unique(detections.labels)]
    classes = [_Class(detections.segments_s[some], detections.scores[some], sigma) for some in rows]
    heap = []
    for number, one in enumerate(classes):
        index, score = one.best()
        heap.append((-score, number, index))
    heapq.heapify(heap)
    taken: list[int] = []
    scores: list[float] = []
    while heap and len(taken) < max_seg_num:
        falling, number, index = heap[0]
        taken.append(int(rows[number][index]))
        scores.append(-falling)
        classes[number].take(index)
        index, score = classes[number].best()
        if score >= min_score:  # -inf where none is left
            heapq.heapreplace(heap, (-score, number, index))
        else:
            heapq.heappop(heap)
    kept = detections.take(np.array(taken, np.int64))
    return Detections(kept.segments_s, np.array(scores, np.float64), kept.labels)
