"""What a test of a boundary model left: boundaries, scores of frames, raters, and what was tested."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moss_vllm.boundaries.f1 import F1_RULES
from moss_vllm.boundaries.peaks import PEAK_RULES, THRESHOLDS, PeakRule
from moss_vllm.boundaries.predictions import PICKLES, FrameScores, as_boundaries, read_entries
from moss_vllm.data.annotated_videos import is_number
from moss_vllm.data.boundaries.annotation import BoundaryVideo
from moss_vllm.data.boundaries.datasets import BoundarySplit, read_boundaries
from moss_vllm.data.rows import MissingVideo
from moss_vllm.report.detection_files import RESULT_FILE, choose_video, refuse_result
from moss_vllm.runtime.files import read_json

SCORES_FILE = "scores.json"
OF_BOUNDARIES = '"clips_left_out_as_raters_disagree"'  # a key of result.json that no other test's has
FIND_AGAIN = "test again with eval/boundaries.py, or name a file of predictions, with --root"


@dataclass(frozen=True)
class BoundaryTest:
    """Boundaries of a test, found and annotated.

    Args:
        folder: where pages and pictures go.
        about: what result.json holds; nothing, where there are predictions alone.
        split: the clips with their raters; clips that are not on disk have the path "".
        found: boundaries by clip, in seconds.
        scores: of frames by clip; none, where the predictions are seconds.
        threshold: at which boundaries were found in scores; None for seconds.
        rule: of F1.
        notes: what is missing.
    """

    folder: Path
    about: Mapping[str, Any]
    split: BoundarySplit
    found: Mapping[str, Sequence[float]]
    scores: Mapping[str, FrameScores]
    threshold: float | None
    rule: str
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The checkpoint, or the folder of the predictions."""
        return str(self.about.get("checkpoint") or self.folder)

    def video(self, video_id: str) -> BoundaryVideo:
        """An annotated clip by its id; ValueError for another id."""
        return choose_video(self.split.annotated, video_id, self.split.file)


def holds_boundaries(result: Path) -> bool:
    """Whether a folder is that of a boundary test which came to its end, or a file has its predictions.

    A pickle is taken for one, and a json without the "results" of a detector.
    """
    if result.is_dir():
        file = result / RESULT_FILE
        return file.is_file() and OF_BOUNDARIES in file.read_text(encoding="utf-8", errors="replace")
    if result.suffix in PICKLES:
        return True
    try:
        content = json.loads(result.read_bytes())
    except (OSError, ValueError, RecursionError):  # whoever reads it raises the better error
        return False
    return isinstance(content, dict) and "results" not in content


def read_boundary_test(result: Path, *, threshold: float | None = None, **changes: Any) -> BoundaryTest:
    """Read a test.

    Args:
        result: a folder with result.json and scores, or a file of predictions, of any project.
        threshold: of `find_peaks`, instead of the test's, or for a file that of its data set.
        changes: arguments of `read_boundaries`; those that are None are those of result.json.

    Raises: FileNotFoundError or ValueError for files that are missing or of another form, predictions alone
    without `root`, and a threshold for predictions in seconds; see `read_boundaries` and `read_entries`.
    """
    is_folder = result.is_dir()
    about = _read_result(result / RESULT_FILE) if is_folder else {}
    arguments = {"data": "kinetics_gebd", **about.get("split", {})}
    if changes.get("root") is not None:  # the other files are those of the other root
        arguments |= {"annotation": None, "videos": ()}
    arguments |= {name: value for name, value in changes.items() if value is not None}
    if arguments.get("root") is None:
        raise ValueError(f"{result} does not say where its annotation is; name the folder with --root")
    split, notes = _read_split(arguments)
    file = Path(about.get("predictions", result / SCORES_FILE)) if is_folder else result
    entries = read_entries(file)
    scores = {name: one for name, one in entries.items() if isinstance(one, FrameScores)}
    if scores and threshold is None:
        threshold = about.get("threshold", THRESHOLDS[split.dataset])
    peaks: PeakRule = about.get("peaks") or PEAK_RULES[0]
    return BoundaryTest(
        folder=result if is_folder else result.parent,
        about=about,
        split=split,
        found=as_boundaries(entries, split, str(file), threshold=threshold, rule=peaks),
        scores=scores,
        threshold=threshold,
        rule=about.get("rule", "official"),
        notes=notes,
    )


def _read_result(file: Path) -> dict[str, Any]:
    """What result.json holds; ValueError where it is not what a test writes."""
    about = read_json(file, FIND_AGAIN)
    at, threshold = about.get("f1_precision_recall"), about.get("threshold")
    fits = {
        "rule": about.get("rule") in F1_RULES,
        "threshold": threshold is None or is_number(threshold),
        "peaks": about.get("peaks") in (None, *PEAK_RULES),
        "F1@0.05": is_number(about.get("F1@0.05")),
        "f1_precision_recall": isinstance(at, dict),
    }
    refuse_result(file, about, fits, ("data", "root", "annotation", "subset", "version"), FIND_AGAIN)
    return about


def _read_split(arguments: dict[str, Any]) -> tuple[BoundarySplit, tuple[str, ...]]:
    """All annotated clips, with the paths of those on disk, and a note on the others."""
    try:
        split = read_boundaries(**arguments, split="test", allow_missing=True)
    except MissingVideo:
        split = read_boundaries(**arguments, split="test", find_videos=False)
    gone = sum(not video.path for video in split.annotated)
    note = f"{gone:,} of {len(split.annotated):,} clips are not below {arguments['root']}"
    return split, (f"{note}, and have no frames here",) if gone else ()
