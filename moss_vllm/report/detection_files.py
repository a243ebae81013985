"""What a test of a detector left: its detections, the actions they are held against, and what was tested."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from moss_vllm.data.boundaries.annotation import BoundaryVideo
from moss_vllm.data.detection.datasets import DetectionSplit, DetectionVideo, read_detection
from moss_vllm.data.rows import MissingVideo
from moss_vllm.detection.average_precision import TIOU_THRESHOLDS, ClassMatches, match_detections
from moss_vllm.detection.predictions import Detections, read_predictions
from moss_vllm.runtime.files import read_json

RESULT_FILE, PREDICTIONS_FILE = "result.json", "predictions.json"
ONLY_HERE = '"split_at_tiou"'  # a key of result.json that no other test's has
TEST_AGAIN = "test again with eval/detection.py, or name a file of predictions, with --root"


@dataclass(frozen=True)
class DetectionTest:
    """Detections and actions of a test.

    Args:
        folder: where pages and pictures go.
        about: what result.json holds; nothing, where there are predictions alone.
        split: the videos with their actions; videos that are not on disk have the path "".
        predictions: detections by video.
        notes: what is missing.
    """

    folder: Path
    about: Mapping[str, Any]
    split: DetectionSplit
    predictions: Mapping[str, Detections]
    notes: tuple[str, ...]

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
        return choose_video(self.split.videos, video_id, self.split.file)


Video = TypeVar("Video", DetectionVideo, BoundaryVideo)


def choose_video(videos: Sequence[Video], video_id: str, file: str) -> Video:
    """The video of this id; ValueError for another id."""
    found = next((video for video in videos if video.video_id == video_id), None)
    if found is None:
        names = ", ".join(video.video_id for video in videos[:5])
        raise ValueError(
            f"{video_id!r} is none of the {len(videos):,} test videos of {file}; name one of them, such as "
            f"{names}"
        )
    return found


def holds_detections(folder: Path) -> bool:
    """Whether a folder is that of a detector's test which came to its end."""
    file = folder / RESULT_FILE
    return file.is_file() and ONLY_HERE in file.read_text(encoding="utf-8", errors="replace")


def read_test(result: Path, *, find_videos: bool = True, **changes: Any) -> DetectionTest:
    """Read a test.

    Args:
        result: a folder with result.json and predictions, or a file of predictions, of any project.
        find_videos: look for the videos; without, all have the path "".
        changes: arguments of `read_detection`; those that are None are those of result.json.

    Raises: FileNotFoundError or ValueError for files that are missing or of another form, and for predictions
    alone without `root`; see `read_detection` and `read_predictions`.
    """
    is_folder = result.is_dir()
    about = _read_result(result / RESULT_FILE) if is_folder else {}
    arguments = {"data": "thumos14", **about.get("split", {})}
    if changes.get("root") is not None:  # the other files are those of the other root
        arguments |= dict.fromkeys(("annotation", "classes"), None) | {"videos": ()}
    arguments |= {name: value for name, value in changes.items() if value is not None}
    if arguments.get("root") is None:
        raise ValueError(f"{result} does not say where its annotation is; name the folder with --root")
    split, notes = _read_split(arguments, find_videos)
    if is_folder and tuple(about["classes"]) != split.classes:
        counts = f"{len(about['classes'])} classes and {split.file} {len(split.classes)}"
        raise ValueError(f"{result / RESULT_FILE} has {counts}, or others; name the test's data with --root")
    file = Path(about.get("predictions", result / PREDICTIONS_FILE)) if is_folder else result
    folder = result if is_folder else result.parent
    names = [video.video_id for video in split.videos]
    return DetectionTest(folder, about, split, read_predictions(file, split.classes, names), notes)


def _read_result(file: Path) -> dict[str, Any]:
    """What result.json holds; ValueError where it is not what a test writes."""
    about = read_json(file, TEST_AGAIN)
    scores = about.get("mAP", {})
    fits = {
        "classes": _are_texts(about.get("classes")),
        "mAP": isinstance(scores, dict) and all(isinstance(one, int | float) for one in scores.values()),
    }
    refuse_result(file, about, fits, ("data", "root", "annotation", "classes", "subset"), TEST_AGAIN)
    return about


def refuse_result(
    file: Path, about: Mapping[str, Any], fits: Mapping[str, bool], texts: Sequence[str], remedy: str
) -> None:
    """Raise ValueError where result.json is not what a test writes.

    Args:
        fits: whether entries are of the form that they need; those that all tests have are looked at here.
        texts: arguments of the split that are text.
    """
    split = about.get("split", {})
    fits = {
        **fits,
        "predictions": isinstance(about.get("predictions", ""), str),
        "environment": isinstance(about.get("environment", {}), dict),
        "split": isinstance(split, dict)
        and split.keys() <= {*texts, "videos"}
        and all(isinstance(split.get(name), str | None) for name in texts)
        and _are_texts(split.get("videos", [])),
    }
    if wrong := [name for name, is_fit in fits.items() if not is_fit]:
        told = ", ".join(f"{name!r} is {about.get(name)!r:.60}" for name in wrong)
        raise ValueError(f"{file}: {told}, which no test writes; {remedy}")


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _read_split(arguments: dict[str, Any], find_videos: bool) -> tuple[DetectionSplit, tuple[str, ...]]:
    """All annotated videos, with the paths of those on disk, and a note on the others."""
    split = read_detection(**arguments, split="test", find_videos=False)
    if not find_videos:
        return split, ()
    try:
        found = read_detection(**arguments, split="test", allow_missing=True).videos
    except MissingVideo:
        found = ()
    paths = {video.video_id: video.path for video in found}
    videos = tuple(replace(video, path=paths.get(video.video_id, "")) for video in split.videos)
    gone = len(videos) - len(paths)
    note = f"{gone:,} of {len(videos):,} videos are not below {arguments['root']}, and have no frames here"
    return replace(split, videos=videos), (note,) if gone else ()
