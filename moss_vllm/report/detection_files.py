"""What a test of a detector left: its detections, the actions they are held against, and what was tested."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moss_vllm.data.detection.datasets import DetectionSplit, DetectionVideo, read_detection
from moss_vllm.data.rows import MissingVideo
from moss_vllm.detection.average_precision import TIOU_THRESHOLDS, ClassMatches, match_detections
from moss_vllm.detection.predictions import Detections, read_predictions
from moss_vllm.runtime.files import read_json

RESULT, PREDICTIONS = "result.json", "predictions.json"
REMEDY = "test again with eval/detection.py, or name a file of predictions with --root"


@dataclass(frozen=True)
class DetectionTest:
    """Detections and actions of a test.

    Args:
        folder: where predictions and pages lie.
        about: what result.json holds; of a predictions file alone, nothing.
        split: the videos with their actions.
        predictions: detections by video.
    """

    folder: Path
    about: Mapping[str, Any]
    split: DetectionSplit
    predictions: Mapping[str, Detections]

    @property
    def name(self) -> str:
        """The checkpoint, or the folder of the predictions."""
        return str(self.about.get("checkpoint") or self.folder)

    def match(self) -> list[ClassMatches]:
        """`match_detections` at THUMOS-14's thresholds."""
        truth = {video.video_id: video.actions for video in self.split.videos}
        return match_detections(truth, self.predictions, TIOU_THRESHOLDS)

    def video(self, video_id: str) -> DetectionVideo:
        """An annotated video by its id; ValueError for another id."""
        found = next((video for video in self.split.videos if video.video_id == video_id), None)
        if found is None:
            names = ", ".join(video.video_id for video in self.split.videos[:5])
            raise ValueError(
                f"{video_id!r} is none of the {len(self.split.videos):,} test videos of {self.split.file}; "
                f"name one of them, such as {names}"
            )
        return found


def holds_detections(folder: Path) -> bool:
    """Whether the folder is that of a detector's test which came to its end."""
    return (folder / PREDICTIONS).is_file()


def read_test(
    result: Path,
    *,
    data: str | None = None,
    root: Path | None = None,
    annotation: Path | None = None,
) -> DetectionTest:
    """Read a test.

    Args:
        result: a folder with predictions.json and result.json, or a file of predictions, of any project.
        data, root, annotation: as in `read_detection`; those that are None are those of result.json.

    Raises: FileNotFoundError or ValueError for files that are missing or of another form, and for predictions
    alone without `root`; see `read_detection` and `read_predictions`.
    """
    about: dict[str, Any] = {}
    if result.is_dir():
        folder, predictions = result, result / PREDICTIONS
        about = read_json(result / RESULT, REMEDY)
    else:
        folder, predictions = result.parent, result
    root = root or about.get("root")
    if root is None:
        raise ValueError(f"{result} does not say where its videos and annotations are; name them with --root")
    split = _read_split(data or about.get("data") or "thumos14", root, annotation or about.get("annotation"))
    if "classes" in about and tuple(about["classes"]) != split.classes:
        raise ValueError(
            f"{result / RESULT} has {len(about['classes'])} classes and {split.file} {len(split.classes)}, or "
            "others; name the data of the test with --root"
        )
    return DetectionTest(folder, about, split, read_predictions(predictions, split.classes))


def _read_split(data: str, root: Path | str, annotation: Path | str | None) -> DetectionSplit:
    """The videos to test with; those that are not on disk may be missing, but not all of them."""
    try:
        return read_detection(data, root, "test", annotation=annotation, allow_missing=True)
    except MissingVideo as error:
        raise ValueError(f"{error}; or name another --root") from None
