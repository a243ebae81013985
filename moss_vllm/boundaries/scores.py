"""The scores of a test: F1 at relative distances, with intervals and missing clips, beside Table 9."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moss_vllm.boundaries.f1 import DISTANCES, F1_RULES, MIN_CONSISTENCY, Matches, match_boundaries
from moss_vllm.boundaries.peaks import PeakRule
from moss_vllm.boundaries.predictions import pick_boundaries, write_predictions, write_scores
from moss_vllm.boundaries.schema import BOUNDARY_SCHEMA, scores_of
from moss_vllm.core.boundary_presets import PAPER_TABLE_9
from moss_vllm.data.annotated_videos import name_first
from moss_vllm.data.boundaries.datasets import BoundarySplit
from moss_vllm.runtime.files import whole_file, write_whole
from moss_vllm.runtime.line_store import ANSWERS, read_answers
from moss_vllm.runtime.tables import Cell, Table
from moss_vllm.runtime.versions import versions

TABLE_9_COLUMNS = ("F1@0.05", "Avg. F1")
TABLE_9_DATA = {"kinetics_gebd": "Kinetics-GEBD", "tapos": "TAPOS"}
PEAK_WORDS = {"efficientgebd": "EfficientGEBD", "official": "the challenge's instructions"}
OTHER_RULE = {"official": "efficientgebd", "efficientgebd": "official", "official_tapos": "official"}


@dataclass(frozen=True)
class BoundaryScores:
    """Scores of a test in percent.

    Args:
        rule: of F1_RULES.
        f1, precision, recall: at each of `distances`.
        intervals: 95 % interval of `mean` by column.
        matches: what was found in each clip.
        other: `mean` by `other_rule`, as evaluations in use disagree.
        notes: what is odd about the predictions, one sentence each.
    """

    rule: str
    distances: tuple[float, ...]
    f1: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]
    intervals: dict[str, tuple[float, float]]
    matches: Matches
    other_rule: str
    other: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def mean(self) -> dict[str, float]:
        """F1 at the first distance, and the mean over all of them."""
        return _columns(self.distances, np.array(self.f1))

    def summary(self) -> dict[str, Any]:
        """All scores and counts, as result.json holds them."""
        columns = (self.f1, self.precision, self.recall)
        at = {f"{distance:g}": values for distance, *values in zip(self.distances, *columns, strict=True)}
        return {
            "rule": self.rule,
            **self.mean,
            "interval_95": {name: list(ends) for name, ends in self.intervals.items()},
            "f1_precision_recall": at,
            "clips": len(self.matches.names),
            "clips_without_predictions": list(self.matches.missing),
            "clips_left_out_as_raters_disagree": len(self.matches.inconsistent),
            "detections": int(self.matches.detections.sum()),
            "other_rule": {"rule": self.other_rule, **self.other},
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """The scores in a line."""
        each = ", ".join(
            f"{name} {value:.2f} ({self.intervals[name][0]:.1f} to {self.intervals[name][1]:.1f})"
            for name, value in self.mean.items()
        )
        missing = f"{len(self.matches.missing):,} without predictions"
        return f"{each}; {len(self.matches.names):,} clips, {missing}; by {F1_RULES[self.rule].words}"


def score_boundaries(
    split: BoundarySplit,
    predictions: Mapping[str, Sequence[float]],
    *,
    rule: str = "official",
    distances: Sequence[float] = DISTANCES,
    draws: int = 1000,
    seed: int = 0,
) -> BoundaryScores:
    """Score the boundaries found in a split's clips, in seconds; those in other clips are ignored and noted.

    Args:
        rule: the challenge's evaluation, or another of F1_RULES.
        draws: of clips, for the intervals.

    Raises: ValueError if no clip has predictions; else as `match_boundaries` and `draw_clips`.
    """
    known = {video.video_id for video in split.annotated}
    if not known & predictions.keys():
        raise ValueError(f"predictions of none of the {len(known):,} clips of {split.file}; check the files")
    matches = match_boundaries(split.annotated, predictions, rule, distances)
    f1, precision, recall = (tuple((100 * row).tolist()) for row in matches.scores())
    ends = 100 * draw_clips(matches, draws=draws, seed=seed)
    other_rule = OTHER_RULE[rule]
    other = match_boundaries(split.annotated, predictions, other_rule, distances)
    kinds = {
        f"clips that are not in {split.file}, whose predictions are ignored": set(predictions) - known,
        "clips in which nothing was found": {name for name in known if predictions.get(name, [0]) == []},
        "clips whose boundaries are not in order of time, used as they stand": {
            name for name in known if (times := list(predictions.get(name, ()))) != sorted(times)
        },
    }
    notes = [f"{kind}: {len(some):,} ({name_first(sorted(some))})" for kind, some in kinds.items() if some]
    if matches.outside:
        notes.append(f"detections outside their clip, which are dropped: {matches.outside:,}")
    return BoundaryScores(
        rule=rule,
        distances=tuple(distances),
        f1=f1,
        precision=precision,
        recall=recall,
        intervals=dict(zip(TABLE_9_COLUMNS, map(tuple, ends.T.tolist()), strict=True)),
        matches=matches,
        other_rule=other_rule,
        other=_columns(distances, 100 * other.scores()[0]),
        notes=tuple(notes),
    )


def draw_clips(matches: Matches, *, draws: int, seed: int) -> np.ndarray:
    """95 % interval of F1 at the first distance and on average, had other clips of the kind been annotated.

    Clips are drawn with replacement, as many as there are. The ends are the 2.5th and 97.5th percentile.

    Shape: (2, 2), the ends of each column.

    Raises: ValueError for no draw.

    Reference: Efron and Tibshirani (1993), the percentile interval.
    """
    if draws < 1:
        raise ValueError(f"draws is {draws}; it must be at least 1")
    rng, clips = np.random.default_rng(seed), len(matches.names)
    drawn = (np.bincount(rng.integers(0, clips, clips), minlength=clips) for _ in range(draws))
    table = np.array([matches.scores(weights)[0] for weights in drawn])
    return np.percentile(np.stack([table[:, 0], table.mean(axis=1)], axis=1), (2.5, 97.5), axis=0)


def _columns(distances: Sequence[float], f1: np.ndarray) -> dict[str, float]:
    return {f"F1@{distances[0]:g}": float(f1[0]), "Avg. F1": float(f1.mean())}


def table_9(rows: Mapping[str, Mapping[str, Mapping[str, Cell]]], *, notes: Sequence[str] = ()) -> Table:
    """A table of rows, each F1 by data set and column as `BoundaryScores.mean`, below the paper's Table 9.

    The paper's rows show the data sets that the rows have; the user's own data have none.

    Raises: ValueError for no row.
    """
    if not rows:
        raise ValueError("a table needs at least one row of results")
    data = dict.fromkeys(name for row in rows.values() for name in row)
    shown: dict[str, Mapping[str, Mapping[str, Cell]]] = {}
    for place, (name, title) in enumerate(TABLE_9_DATA.items()):
        if name in data:
            for method, printed in PAPER_TABLE_9.items():
                cells = dict(zip(TABLE_9_COLUMNS, printed[2 * place : 2 * place + 2], strict=True))
                shown[f"{method} (paper)"] = {**shown.get(f"{method} (paper)", {}), title: cells}
    for row, values in rows.items():
        shown[row] = {TABLE_9_DATA.get(name, name): cells for name, cells in values.items()}
    columns = {TABLE_9_DATA.get(name, name): TABLE_9_COLUMNS for name in data}
    return Table("F1 of event boundaries (%)", columns, shown, notes)


def score_table(name: str, scores: BoundaryScores, data: str) -> Table:
    """One test as a row of `table_9`, with its interval, its counts and the other rule's scores as notes."""
    matches = scores.matches
    ends = ", ".join(f"{column} {low:.1f}-{high:.1f}" for column, (low, high) in scores.intervals.items())
    each = ", ".join(f"{value:.1f} at {at:g}" for at, value in zip(scores.distances, scores.f1, strict=True))
    missing = f"clips without predictions: {len(matches.missing):,}"
    missing += f" ({name_first(matches.missing)})" if matches.missing else ""
    found = f"{matches.hits[:, 0].sum():,} of {matches.positives[:, 0].sum():,} boundaries"
    other = ", ".join(f"{column} {value:.1f}" for column, value in scores.other.items())
    notes = [
        f"by {F1_RULES[scores.rule].words}; {missing}",
        f"by {F1_RULES[scores.other_rule].words}: {other}",
        f"95 % interval over clips: {ends}",
        f"F1 by relative distance: {each}",
        f"at {scores.distances[0]:g}: precision {scores.precision[0]:.1f}, recall {scores.recall[0]:.1f}, "
        f"{found} in {len(matches.names):,} clips, {matches.detections.sum():,} detections",
        f"clips left out as their raters agree below {MIN_CONSISTENCY}: {len(matches.inconsistent):,}",
        *scores.notes,
    ]
    return table_9({name: {data: scores.mean}}, notes=notes)


def score_test(
    folder: Path,
    split: BoundarySplit,
    about: Mapping[str, Any],
    *,
    threshold: float,
    peaks: PeakRule = "efficientgebd",
    rule: str = "official",
) -> BoundaryScores:
    """Score what all processes stored in `folder`; write predictions, scores of frames, result and clips.

    A clip that could not be read has no predictions, as one that is missing.

    Args:
        about: further entries of result.json, which has a reason for each such clip as well.
        threshold, peaks: of `find_peaks`.

    Raises: ValueError if no clip could be read.
    """
    stored = read_answers(folder / ANSWERS, BOUNDARY_SCHEMA)
    failed = {
        video.video_id: stored.failed[video.video_id]
        for video in split.videos
        if video.video_id in stored.failed
    }
    if len(failed) == len(split.videos):
        first = next(iter(failed.values()), "none is there")
        raise ValueError(f"none of the {len(failed):,} clips could be read; the first one: {first}")
    frames = scores_of(stored, split)
    found = pick_boundaries(split, frames, threshold, peaks)
    scores = score_boundaries(split, found, rule=rule)
    if failed:
        note = f"clips that could not be read: {len(failed):,} ({name_first(list(failed))})"
        scores = replace(scores, notes=(note, *scores.notes))
    scores = replace(scores, notes=(*scores.notes, *stored.tell_mixed(versions())))
    scores = tell_peaks(scores, threshold, peaks)
    write_predictions(folder / "predictions.json", found)
    write_scores(folder / "scores.json", frames)
    choice = {"threshold": threshold, "peaks": peaks, "environment": stored.environment}
    save_boundary_scores(scores, split, folder, {**about, **choice, "failed": failed})
    return scores


def tell_peaks(scores: BoundaryScores, threshold: float, peaks: PeakRule) -> BoundaryScores:
    """The scores, with a note on how boundaries were found in the scores of frames."""
    note = f"boundaries at a threshold of {threshold:g}, runs centred as in {PEAK_WORDS[peaks]}"
    return replace(scores, notes=(note, *scores.notes))


def save_boundary_scores(
    scores: BoundaryScores, split: BoundarySplit, folder: Path, about: Mapping[str, Any]
) -> None:
    """Write result.json and per_clip.csv: best rater and counts of each clip at the first distance.

    Args:
        about: further entries of the first; without an `environment`, that of this process stands there.
    """
    result = {"environment": versions(), **about, "split": split.arguments, **scores.summary()}
    write_whole(folder / "result.json", json.dumps(result, indent=2) + "\n")
    matches, missing = scores.matches, set(scores.matches.missing)
    with whole_file(folder / "per_clip.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        write = csv.writer(file, lineterminator="\n").writerow
        write(["clip", "rater", "found", "boundaries", "detections", "predicted"])
        columns = (matches.raters[:, 0], matches.hits[:, 0], matches.positives[:, 0], matches.detections)
        for name, *counts in zip(matches.names, *(column.tolist() for column in columns), strict=True):
            write([name, *counts, "no" if name in missing else "yes"])
