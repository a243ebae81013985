"""Two detectors' tests on the same videos: how far mAP differs, and whether that may be chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moss_vllm.data.annotated_videos import name_first
from moss_vllm.data.detection.datasets import DetectionSplit
from moss_vllm.detection.average_precision import TIOU_THRESHOLDS, match_detections
from moss_vllm.detection.predictions import Detections
from moss_vllm.detection.scores import AVERAGE, by_column, draw_videos

MAP_DRAWS, MAP_SEED = 1000, 0
FEW_VIDEOS_OF_A_CLASS = 10  # a normal interval from fewer says little


@dataclass(frozen=True)
class MapDifference:
    """The second test minus the first, in one column or class; `interval` is None for a single video.

    Args:
        actions: number of actions, in so many `videos`.
        precision: average precision, or its mean over classes, of both tests in percent.
        points: in percentage points, as `interval` is.
    """

    actions: int
    videos: int
    precision: tuple[float, float]
    points: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class DetectionComparison:
    """The differences between two tests.

    Args:
        columns: of mAP, averaged over thresholds first, then at each threshold.
        classes: of average precision over thresholds, by the name of the class.
        left_out: videos that are not compared, by the reason.
    """

    names: tuple[str, str]
    columns: Mapping[str, MapDifference]
    classes: Mapping[str, MapDifference]
    left_out: Mapping[str, Sequence[str]]

    @property
    def notes(self) -> list[str]:
        """Lines about videos left out, classes of few videos, and how the numbers are computed."""
        first, second = self.names
        few = [name for name, one in self.classes.items() if one.videos < FEW_VIDEOS_OF_A_CLASS]
        return [
            *(f"left out: {len(v):,} videos {why} ({name_first(v)})" for why, v in self.left_out.items()),
            *(
                [f"under {FEW_VIDEOS_OF_A_CLASS} videos, so doubtful intervals: {', '.join(few)}"]
                if few
                else []
            ),
            f"difference: {second} minus {first}, in points of (mean) average precision",
            f"interval: 95 %, 1.96 standard deviations of {MAP_DRAWS:,} draws of videos with replacement, "
            f"seed {MAP_SEED}; both tests see the same draws, as what is hard for one is hard for the other",
            "an interval of one class among many leaves out 0 by chance one time in twenty",
        ]


def compare_detections(
    names: tuple[str, str],
    splits: tuple[DetectionSplit, DetectionSplit],
    predictions: tuple[Mapping[str, Detections], Mapping[str, Detections]],
    *,
    thresholds: Sequence[float] = TIOU_THRESHOLDS,
    draws: int = MAP_DRAWS,
    seed: int = MAP_SEED,
) -> DetectionComparison:
    """The second test against the first, on the videos that both annotate with the same actions.

    A video without detections counts in both. Detections in videos that are not annotated count as false, as
    in `score_detections`, but for those of a video that is left out.

    Raises: ValueError for other classes, or no such video with an action.
    """
    first, second = splits
    if first.classes != second.classes:
        told = " and ".join(f"{len(one.classes)} of {one.file}" for one in splits)
        raise ValueError(f"the classes are not the same ({told}); compare tests on one annotation")
    a, b = ({video.video_id: video.actions for video in split.videos} for split in splits)
    truth = {name: actions for name, actions in a.items() if b.get(name) == actions}
    reasons = {
        f"annotated in {names[0]} only": [name for name in a if name not in b],
        f"annotated in {names[1]} only": [name for name in b if name not in a],
        "whose actions are not the same in both": [n for n in a if n in b and n not in truth],
    }
    left_out = {why: videos for why, videos in reasons.items() if videos}
    if not any(truth.values()):
        told = "".join(f"; {len(videos):,} videos {why}" for why, videos in left_out.items())
        raise ValueError(f"{first.file} and {second.file} share no video with an action{told}")
    others = {name for videos in left_out.values() for name in videos}
    tests = [
        match_detections(
            truth, {name: found for name, found in one.items() if name not in others}, thresholds
        )
        for one in predictions
    ]
    # Shape: (draws + 1, tests, classes, thresholds + 1); first without a draw, last the mean over thresholds.
    whole = np.stack([[one.average_precision() for one in test] for test in tests])
    drawn = draw_videos(tests, len(truth), draws=draws, seed=seed) if len(truth) > 1 else whole[None]
    areas = 100 * np.concatenate([whole[None], drawn])
    areas = np.concatenate([areas, areas.mean(axis=-1, keepdims=True)], axis=-1)
    counts = np.stack([one.actions[: len(truth)] for one in tests[0]])
    means = np.nanmean(areas, axis=2)

    def differ(values: np.ndarray, actions: np.ndarray) -> MapDifference:
        """The difference of values (draws + 1, tests), about actions by video (videos,)."""
        changes, videos = values[:, 1] - values[:, 0], int((actions > 0).sum())
        points = float(changes[0])
        reach = 1.96 * float(np.nanstd(changes[1:]))
        interval = (points - reach, points + reach) if videos > 1 else None
        return MapDifference(int(actions.sum()), videos, tuple(values[0].tolist()), points, interval)

    columns = list(by_column(thresholds, means[0, 0]))
    order = [columns.index(AVERAGE), *range(len(thresholds))]
    return DetectionComparison(
        names,
        {columns[place]: differ(means[:, :, place], counts.sum(axis=0)) for place in order},
        {
            first.classes[one.label]: differ(areas[:, :, place, -1], counts[place])
            for place, one in enumerate(tests[0])
        },
        left_out,
    )
