"""The scores of a test: mAP at thresholds of temporal IoU, with intervals, per class, beside Table 8."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moss_vllm.data.annotated_videos import name_first
from moss_vllm.data.detection.datasets import DetectionSplit
from moss_vllm.detection.average_precision import TIOU_THRESHOLDS, ClassMatches, match_detections
from moss_vllm.detection.false_positives import FALSE_POSITIVES, PER_ACTION, split_false_positives
from moss_vllm.detection.predictions import Detections, write_predictions
from moss_vllm.detection.schema import DETECTION_SCHEMA, detections_of
from moss_vllm.runtime.files import whole_file, write_whole
from moss_vllm.runtime.line_store import ANSWERS, read_answers
from moss_vllm.runtime.tables import Cell, Table
from moss_vllm.runtime.versions import versions

AVERAGE = "avg"
BENCHMARK = "THUMOS-14"
# As printed: mAP at 0.3, 0.4, 0.5, 0.6, 0.7 and their mean. "rerun" is AdaTAD as MOSS's authors trained it.
PAPER_TABLE_8: dict[str, dict[str, tuple[float, ...]]] = {
    "b": {
        "AdaTAD-B, published": (87.0, 82.4, 75.3, 63.8, 49.2, 71.5),
        "AdaTAD-B, rerun": (85.7, 82.3, 75.3, 63.4, 50.1, 71.4),
        "AdaTAD-B + MOSS": (87.3, 82.9, 75.7, 64.8, 50.3, 72.2),
    },
    "l": {
        "AdaTAD-L, published": (87.7, 84.1, 76.7, 66.4, 52.4, 73.5),
        "AdaTAD-L, rerun": (87.5, 83.7, 77.6, 66.5, 51.9, 73.5),
        "AdaTAD-L + MOSS": (88.1, 84.5, 77.6, 67.7, 52.8, 74.1),
    },
}
PAPER_NOTE = "the paper counts 213 test videos and 224 x 224 pixels; AdaTAD's code has 211 and 160 x 160"


@dataclass(frozen=True)
class DetectionScores:
    """Scores of a test in percent.

    Args:
        thresholds: of temporal IoU.
        classes: average precision at each threshold by class id, for classes with actions.
        intervals: 95 % interval of `mean` by column.
        actions: number of actions by class id.
        false_positives: see `split_false_positives`, at `split_at`.
        videos, rows: numbers of annotated videos and of detections.
        notes: what is odd about the detections, one sentence each.
    """

    thresholds: tuple[float, ...]
    classes: dict[int, tuple[float, ...]]
    intervals: dict[str, tuple[float, float]]
    actions: dict[int, int]
    false_positives: dict[int, dict[str, int]]
    split_at: float
    videos: int
    rows: int
    notes: tuple[str, ...] = ()

    @property
    def mean(self) -> dict[str, float]:
        """mAP by column: each threshold, and "avg", the mean over thresholds."""
        return by_column(self.thresholds, np.mean(list(self.classes.values()), axis=0))

    def summary(self) -> dict[str, Any]:
        """All scores and counts, as result.json holds them."""
        return {
            "mAP": self.mean,
            "interval_95": {name: list(ends) for name, ends in self.intervals.items()},
            "false_positives": self.count_kinds(),
            "split_at_tiou": self.split_at,
            "videos": self.videos,
            "actions": sum(self.actions.values()),
            "detections": self.rows,
            "notes": list(self.notes),
        }

    def count_kinds(self) -> dict[str, int]:
        """Right detections and kinds of false positives, of all classes."""
        kinds = ("right", *FALSE_POSITIVES)
        return {kind: sum(one[kind] for one in self.false_positives.values()) for kind in kinds}

    def __str__(self) -> str:
        """The scores in a line."""
        low, high = self.intervals[AVERAGE]
        each = ", ".join(f"{name} {value:.2f}" for name, value in self.mean.items() if name != AVERAGE)
        counts = f"{sum(self.actions.values()):,} actions in {self.videos:,} videos"
        return f"average mAP {self.mean[AVERAGE]:.2f} ({low:.1f} to {high:.1f}); at tIoU {each}; {counts}"


def score_detections(
    split: DetectionSplit,
    predictions: Mapping[str, Detections],
    *,
    thresholds: Sequence[float] = TIOU_THRESHOLDS,
    split_at: float = 0.5,
    draws: int = 1000,
    seed: int = 0,
) -> DetectionScores:
    """Score the detections of a split's videos; a video without any has none that is right.

    Args:
        predictions: by video; rows of other videos are false positives, as in AdaTAD's evaluation, and noted.
        split_at: the threshold at which false positives are told apart.
        draws: of videos, for the intervals.

    Raises: as `match_detections` and `split_false_positives`.
    """
    truth = {video.video_id: video.actions for video in split.videos}
    matches = match_detections(truth, predictions, thresholds)
    low, high = 100 * bootstrap(matches, len(truth), draws=draws, seed=seed)
    intervals = zip(*(by_column(thresholds, ends).items() for ends in (low, high)), strict=True)
    strange = [name for name in predictions if name not in truth]
    silent = [name for name in truth if not len(predictions.get(name, ()))]
    kinds = {
        f"videos that are not in {split.file}, with detections that count as false": strange,
        "videos without any detection": silent,
    }
    notes = [f"{kind}: {len(names):,} ({name_first(names)})" for kind, names in kinds.items() if names]
    return DetectionScores(
        thresholds=tuple(thresholds),
        classes={one.label: tuple((100 * one.average_precision()).tolist()) for one in matches},
        intervals={name: (start, end) for (name, start), (_, end) in intervals},
        actions={one.label: int(one.actions.sum()) for one in matches},
        false_positives=split_false_positives(truth, matches, thresholds, threshold=split_at),
        split_at=split_at,
        videos=len(truth),
        rows=sum(map(len, predictions.values())),
        notes=tuple(notes),
    )


def bootstrap(matches: Sequence[ClassMatches], videos: int, *, draws: int, seed: int) -> np.ndarray:
    """95 % interval of mAP: how far it would move with other videos of the same kind.

    Videos are drawn with replacement, as many as there are, and mAP counted anew, over the classes that the
    drawn videos have. The interval reaches 1.96 standard deviations of the draws from mAP to both sides. The
    draws' own percentiles would lie too high: a video drawn twice ranks right detections together.

    Args:
        videos: number of annotated videos; detections in others count in every draw.

    Shape: (2, thresholds + 1); the last is the average over thresholds.

    Raises: ValueError for no draw.

    Reference: Efron and Tibshirani (1993), the standard normal interval.
    """
    drawn = np.nanmean(draw_videos([matches], videos, draws=draws, seed=seed)[:, 0], axis=1)
    table = np.stack([np.mean([one.average_precision() for one in matches], axis=0), *drawn])
    table = np.concatenate([table, table.mean(axis=1, keepdims=True)], axis=1)
    reach = 1.96 * table[1:].std(axis=0)
    return np.clip([table[0] - reach, table[0] + reach], 0, 1)


def draw_videos(tests: Sequence[Sequence[ClassMatches]], videos: int, *, draws: int, seed: int) -> np.ndarray:
    """Average precision where videos are drawn with replacement, in each draw the same ones for all tests.

    Args:
        tests: the classes of each, with the same actions in all.
        videos: as in `bootstrap`.

    Shape: (draws, tests, classes, thresholds); NaN for a class of which no action was drawn.

    Raises: ValueError for no draw.
    """
    if draws < 1:
        raise ValueError(f"draws is {draws}; it must be at least 1")
    rng = np.random.default_rng(seed)
    drawn: list[list[list[np.ndarray]]] = []
    while len(drawn) < draws:
        counts = np.bincount(rng.integers(0, videos, videos), minlength=videos)
        areas = [
            [
                one.average_precision(np.concatenate([counts, np.ones(len(one.names) - videos)]))
                for one in matches
            ]
            for matches in tests
        ]
        if not all(np.isnan(area).all() for area in areas[0]):  # videos without any action are drawn again
            drawn.append(areas)
    return np.array(drawn)


def by_column(thresholds: Sequence[float], values: np.ndarray) -> dict[str, float]:
    """Values by column; the average is counted where it is not among them."""
    names = [f"{threshold:g}" for threshold in thresholds]
    whole = [*values.tolist(), float(values.mean())][: len(names) + 1]
    return dict(zip((*names, AVERAGE), whole, strict=True))


def table_8(
    rows: Mapping[str, Mapping[str, Cell]], *, variant: str | None = None, notes: Sequence[str] = ()
) -> Table:
    """A table of rows, each mAP by column as `DetectionScores.mean`, below the paper's Table 8.

    Args:
        variant: "b" or "l", for the paper's rows of this size; None for none, as on other data.

    Raises: ValueError for another variant, no row, or rows of different columns.
    """
    if variant is not None and variant not in PAPER_TABLE_8:
        raise ValueError(f"Table 8 has no variant {variant!r}; it has {', '.join(PAPER_TABLE_8)}")
    if not rows:
        raise ValueError("a table needs at least one row of results")
    columns = list(by_column(TIOU_THRESHOLDS, np.zeros(len(TIOU_THRESHOLDS))))
    columns = columns if variant else list(next(iter(rows.values())))
    for row, values in rows.items():
        if list(values) != columns:
            raise ValueError(f"row {row!r} has the columns {list(values)}; the table has {columns}")
    paper = PAPER_TABLE_8.get(variant or "", {})
    shown: dict[str, dict[str, Mapping[str, Cell]]] = {
        f"{name} (paper)": {BENCHMARK: dict(zip(columns, values, strict=True))}
        for name, values in paper.items()
    }
    name = BENCHMARK if variant else "detection"
    shown |= {row: {name: values} for row, values in rows.items()}
    notes = [*([PAPER_NOTE] if variant else []), *notes]
    return Table("mAP at temporal IoU (%)", {name: columns}, shown, notes)


def score_table(name: str, scores: DetectionScores, *, variant: str | None = None) -> Table:
    """One test as a row of `table_8`, with its interval, counts and false positives as notes."""
    ends = ", ".join(f"{column} {low:.1f}-{high:.1f}" for column, (low, high) in scores.intervals.items())
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in scores.count_kinds().items())
    notes = [
        f"95 % interval over videos: {ends}",
        f"{scores.videos:,} videos, {sum(scores.actions.values()):,} actions, {scores.rows:,} detections",
        f"of the {PER_ACTION} best detections per action at tIoU {scores.split_at:g}: {kinds}",
        *scores.notes,
    ]
    return table_8({name: scores.mean}, variant=variant, notes=notes)


def class_table(scores: DetectionScores, classes: Sequence[str]) -> Table:
    """Average precision of each class at each threshold, and its number of actions."""
    rows = {
        classes[label]: {
            "classes": {**by_column(scores.thresholds, np.array(values)), "actions": scores.actions[label]}
        }
        for label, values in scores.classes.items()
    }
    columns = [*by_column(scores.thresholds, np.zeros(len(scores.thresholds))), "actions"]
    return Table("AP at temporal IoU by class (%)", {"classes": columns}, rows, rows_are="class")


def score_test(folder: Path, split: DetectionSplit, about: Mapping[str, Any]) -> DetectionScores:
    """Score what all processes stored in `folder`; write predictions.json, result.json and per_class.csv.

    A video that could not be read has no detections, so its actions count as missed.

    Args:
        about: further entries of result.json, which has a reason for each such video as well.

    Raises: ValueError if no video could be read.
    """
    stored = read_answers(folder / ANSWERS, DETECTION_SCHEMA)
    names = [video.video_id for video in split.videos]
    failed = {name: stored.failed[name] for name in names if name in stored.failed}
    if len(failed) == len(names):
        raise ValueError(
            f"none of the {len(names):,} videos could be read; the first one: {failed[names[0]]}"
        )
    found = detections_of(stored, split)
    scores = score_detections(split, found)
    if failed:
        note = f"videos that could not be read, whose actions count as missed: {len(failed):,}"
        scores = replace(scores, notes=(f"{note} ({name_first(list(failed))})", *scores.notes))
    scores = replace(scores, notes=(*scores.notes, *stored.tell_mixed(versions())))
    write_predictions(folder / "predictions.json", found, split.classes)
    about = {**about, "environment": stored.environment, "failed": failed}
    save_detection_scores(scores, split, folder, about)
    return scores


def save_detection_scores(
    scores: DetectionScores, split: DetectionSplit, folder: Path, about: Mapping[str, Any]
) -> None:
    """Write result.json and per_class.csv.

    Args:
        about: further entries of the first; without an `environment`, that of this process stands there.
    """
    of_split = {"classes": list(split.classes), "split": split.arguments}
    result = {"environment": versions(), **about, **of_split, **scores.summary()}
    write_whole(folder / "result.json", json.dumps(result, indent=2) + "\n")
    with whole_file(folder / "per_class.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        write = csv.writer(file, lineterminator="\n").writerow
        columns = [f"{threshold:g}" for threshold in scores.thresholds]
        write(["id", "class", *columns, AVERAGE, "actions", "right", *FALSE_POSITIVES])
        for label, values in scores.classes.items():
            shares = [f"{value:.2f}" for value in (*values, sum(values) / len(values))]
            kinds = scores.false_positives[label].values()
            write([label, split.classes[label], *shares, scores.actions[label], *kinds])
