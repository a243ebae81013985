"""What the false positives of a detector are: background, badly placed, of another class, or found before.

Reference: the kinds of Hoiem et al. (2012), for actions as in Alwassel et al. (2018).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from moss_vllm.data.detection.annotation import Action
from moss_vllm.detection.average_precision import ClassMatches, segment_iou, segments_of

FALSE_POSITIVES = ("double detection", "confusion", "localisation", "background")
TOUCHES = 0.1  # temporal IoU from which a detection is about an action at all
PER_ACTION = 10


def split_false_positives(
    truth: Mapping[str, Sequence[Action]],
    matches: Sequence[ClassMatches],
    thresholds: Sequence[float],
    *,
    threshold: float = 0.5,
    per_action: int = PER_ACTION,
) -> dict[int, dict[str, int]]:
    """How many detections of each class are right, and how many false positives of each kind there are.

    Only the best detections count, `per_action` times as many as the class has actions: a detector lists
    2000 a video, and nearly all are background. A false positive is, by the first that fits:

    - a double detection: it overlaps an action of its class by the threshold, which a better one found;
    - confusion: it overlaps an action of another class by the threshold;
    - localisation: it overlaps an action of its class by TOUCHES;
    - confusion: it overlaps an action of another class by TOUCHES;
    - background.

    Args:
        truth, matches, thresholds: what `match_detections` was given and returned.
        threshold: one of the thresholds.

    Returns: by class id the counts of "right" and of FALSE_POSITIVES.

    Raises: ValueError for a threshold that was not matched by.
    """
    if threshold not in thresholds:
        allowed = ", ".join(f"{one:g}" for one in thresholds)
        raise ValueError(
            f"detections were not matched at temporal IoU {threshold:g}; choose one of {allowed}"
        )
    row, counts = list(thresholds).index(threshold), {}
    for one in matches:
        best = per_action * int(one.actions.sum())
        counts[one.label] = {"right": int(one.found[row, :best].sum()), **dict.fromkeys(FALSE_POSITIVES, 0)}
        wrong = np.flatnonzero(~one.found[row, :best])
        for video in np.unique(one.videos[wrong]):
            actions = truth.get(one.names[video], ())
            segments = one.segments_s[wrong[one.videos[wrong] == video]]
            own, other = (
                segment_iou(segments, segments_of(a for a in actions if (a.label == one.label) == same))
                for same in (True, False)
            )
            for overlaps in zip(own.max(1, initial=0.0), other.max(1, initial=0.0), strict=True):
                counts[one.label][_kind(*overlaps, threshold)] += 1
    return counts


def _kind(own: float, other: float, threshold: float) -> str:
    """The kind of a false positive, from its highest IoU with actions of its class and of others."""
    if own >= threshold:
        return "double detection"
    if other >= threshold:
        return "confusion"
    if own >= TOUCHES:
        return "localisation"
    return "confusion" if other >= TOUCHES else "background"
