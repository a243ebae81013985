"""Average precision at thresholds of temporal IoU, as ActivityNet's and OpenTAD's evaluations count it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moss_vllm.data.detection.annotation import Action
from moss_vllm.detection.predictions import Detections, no_detections

TIOU_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)  # of THUMOS-14


@dataclass(frozen=True)
class ClassMatches:
    """The detections of one class in all videos by falling score, and which of them found an action.

    Shape: segments_s (N, 2); scores (N,); videos int64 (N,), places in `names`; found bool (thresholds, N).

    Args:
        label: the class id.
        actions: number of actions by video, in the order of `names`.
        names: video ids; first those of the ground truth, then others that have detections.
    """

    label: int
    segments_s: np.ndarray
    scores: np.ndarray
    videos: np.ndarray
    found: np.ndarray
    actions: np.ndarray
    names: tuple[str, ...]

    def average_precision(self, weights: np.ndarray | None = None) -> np.ndarray:
        """The area under the precision envelope over recall, all points, as shares of 1.

        Args:
            weights: how often each video counts, (names,); a class without actions then has NaN.

        Shape: (thresholds,).
        """
        each = np.ones(len(self.scores)) if weights is None else weights[self.videos]
        total = self.actions.sum() if weights is None else (self.actions * weights).sum()
        if not total:
            return np.full(len(self.found), np.nan)
        listed = np.maximum(np.cumsum(each), 1)  # 0 before the first that counts
        areas = np.zeros(len(self.found))
        for row, found in enumerate(self.found):
            places = np.flatnonzero(found)
            right = each[places]
            precision = np.cumsum(right) / listed[places]
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            areas[row] = (right * envelope).sum() / total
        return areas


def match_detections(
    truth: Mapping[str, Sequence[Action]],
    predictions: Mapping[str, Detections],
    thresholds: Sequence[float] = TIOU_THRESHOLDS,
) -> list[ClassMatches]:
    """Match detections with actions, class by class; classes without an action are left out.

    Detections take part by falling score. Each takes the action of its class and video that it overlaps most
    among those that are free and overlapped by the threshold; where there is none, or no such video, it is a
    false positive. Where scores are equal, the first counts as higher.

    Args:
        truth: the actions of each video; repeats and actions of no length are left out before, as
            `read_detection` does.
        predictions: may lack videos.

    Raises: ValueError for no action, or thresholds outside 0 to 1.
    """
    if not thresholds or not all(0 < threshold <= 1 for threshold in thresholds):
        raise ValueError(
            f"thresholds of temporal IoU are {list(thresholds)}; pass numbers above 0, at most 1"
        )
    labels = sorted({action.label for actions in truth.values() for action in actions})
    if not labels:
        raise ValueError("no video has an action to find; check that the right split was read")
    names = (*truth, *(name for name in predictions if name not in truth))
    return [_match_class(label, names, truth, predictions, thresholds) for label in labels]


def _match_class(
    label: int,
    names: tuple[str, ...],
    truth: Mapping[str, Sequence[Action]],
    predictions: Mapping[str, Detections],
    thresholds: Sequence[float],
) -> ClassMatches:
    nothing, parts = no_detections(), []
    actions = np.zeros(len(names), np.int64)
    for place, name in enumerate(names):
        annotated = segments_of(one for one in truth.get(name, ()) if one.label == label)
        actions[place] = len(annotated)
        detected = predictions.get(name, nothing)
        detected = detected.take(detected.labels == label)
        detected = detected.take(np.argsort(-detected.scores, kind="stable"))
        found = _match(segment_iou(detected.segments_s, annotated), thresholds)
        parts.append((detected.segments_s, detected.scores, np.full(len(detected), place), found.T))
    segments_s, scores, videos, found = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(-scores, kind="stable")
    return ClassMatches(
        label, segments_s[order], scores[order], videos[order], found[order].T, actions, names
    )


def segments_of(actions: Iterable[Action]) -> np.ndarray:
    """Start and end of actions in seconds.

    Shape: float64 (N, 2).
    """
    return np.array([(action.start_s, action.end_s) for action in actions], np.float64).reshape(-1, 2)


def segment_iou(segments_s: np.ndarray, others_s: np.ndarray) -> np.ndarray:
    """Overlap over union of each pair.

    Shape: (N, 2), (M, 2) -> (N, M).
    """
    overlap = np.minimum(segments_s[:, None, 1], others_s[:, 1])
    overlap = np.maximum(overlap - np.maximum(segments_s[:, None, 0], others_s[:, 0]), 0)
    lengths = (segments_s[:, 1] - segments_s[:, 0])[:, None] + (others_s[:, 1] - others_s[:, 0])
    return overlap / np.maximum(lengths - overlap, np.finfo(np.float64).tiny)


def _match(iou: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Which detections find an action.

    Shape: IoU (N, M) of detections by falling score -> bool (thresholds, N).
    """
    found = np.zeros((len(thresholds), len(iou)), bool)
    if not iou.size:
        return found
    best = iou.max(axis=1)
    for row, threshold in enumerate(thresholds):
        free = set(range(iou.shape[1]))
        for place in np.flatnonzero(best >= threshold).tolist():
            overlaps = iou[place]
            fitting = [action for action in free if overlaps[action] >= threshold]
            if fitting:
                free.remove(max(fitting, key=lambda action: (overlaps[action], action)))
                found[row, place] = True
                if not free:
                    break
    return found
