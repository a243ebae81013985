"""THUMOS-14, and the user's own or drawn videos in the same json, as videos with actions at known times.

split = read_detection("thumos14", Path("/data/thumos-14"), "test")
print(split.report())  # thumos14 test: kept 211 of 211 videos, 0 missing, 3,325 actions of 20 classes; ...
print(*split.notes)    # what was left out or kept against expectation, counted
"""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from moss_vllm.data.actions.files import Files
from moss_vllm.data.annotated_videos import Notes, choose_subset, list_videos, missing_videos, read_database
from moss_vllm.data.detection.annotation import (
    Action,
    ListedVideo,
    collect_labels,
    read_classes,
    read_videos,
)
from moss_vllm.data.rows import BadRow, Rejected, digest_rows, raise_bad_rows
from moss_vllm.video.clip import count_shown
from moss_vllm.video.frames import BadVideo

DETECTION_DATASETS = ("thumos14", "json", "mini")
DETECTION_SPLITS = ("train", "test")
CLASS_FILE = "category_idx.txt"
DETECTION_FILES = {
    "thumos14": ("thumos_14_anno.json", "thumos14.json"),
    "json": ("annotations.json", "*.json"),
    "mini": ("thumos_14_anno.json",),
}
# A file's names of (train, test); THUMOS trains on its validation videos.
SUBSETS = {"OpenTAD": ("training", "validation"), "ActionFormer": ("Validation", "Test")}
# Below the root, unless folders are named.
DETECTION_FOLDERS = (
    "raw_data/video",
    "raw_data/videos",
    "video",
    "videos",
    "validation",
    "test",
    "frames",
    "",
)
# Left out of the 213 test videos by AdaTAD, which is scored on the other 211.
REMOVED = {
    "video_test_0000270": "is another video than annotated; ActionFormer's evaluation scores it",
    "video_test_0001292": "has only Ambiguous actions",
}
# (videos, actions) of (train, test) without Ambiguous ones; those of the test without repeats, as scored.
PUBLISHED_DETECTION = {"thumos14": ((200, 3_007), (211, 3_325))}


@dataclass(frozen=True)
class DetectionVideo:
    """One video, a file or a folder of frames, and what happens in it.

    `frames` is the annotation's count, by which times become frames; the file may decode to another.
    """

    video_id: str
    path: str
    duration_s: float
    frames: int
    actions: tuple[Action, ...]

    @property
    def fps(self) -> float:
        """Frames a second: `frames` over the duration, as in AdaTAD, whatever the file says."""
        return self.frames / self.duration_s


@dataclass(frozen=True)
class DetectionSplit:
    """The videos of one split that are on disk; `missing` has those that are not.

    Args:
        dataset, split: the arguments of `read_detection`.
        classes: names by class id.
        videos: in the order of the file.
        missing: annotated videos that are not on disk.
        notes: what was left out, or kept against expectation, one sentence each.
        file: the annotation file.
        arguments: those of `read_detection`, but for `split`, that read the same videos again; for json.
    """

    dataset: str
    split: str
    classes: tuple[str, ...]
    videos: tuple[DetectionVideo, ...]
    missing: tuple[Rejected, ...]
    notes: tuple[str, ...]
    file: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def actions(self) -> int:
        """The number of actions of all videos."""
        return sum(len(video.actions) for video in self.videos)

    def digest(self) -> str:
        """A digest of its classes and videos: ids, names of files, lengths and actions; not of folders."""
        return digest_rows(
            self.classes,
            [
                [
                    *(video.video_id, os.path.basename(video.path), video.duration_s, video.frames),
                    [[action.start_s, action.end_s, action.label] for action in video.actions],
                ]
                for video in self.videos
            ],
        )

    def report(self) -> str:
        """Counts in one line."""
        total = len(self.videos) + len(self.missing)
        published = "no published count"
        if self.dataset in PUBLISHED_DETECTION:
            counts = PUBLISHED_DETECTION[self.dataset][DETECTION_SPLITS.index(self.split)]
            published = "published count {:,} videos, {:,} actions".format(*counts)
        kept = f"kept {len(self.videos):,} of {total:,} videos, {len(self.missing):,} missing"
        actions = f"{self.actions:,} actions of {len(self.classes)} classes"
        return f"{self.dataset} {self.split}: {kept}, {actions}; {published}"


def read_detection(
    data: str,
    root: str | os.PathLike[str],
    split: Literal["train", "test"],
    *,
    annotation: str | os.PathLike[str] | None = None,
    videos: Sequence[str | os.PathLike[str]] = (),
    classes: str | os.PathLike[str] | None = None,
    subset: str | None = None,
    allow_missing: bool = False,
    find_videos: bool = True,
) -> DetectionSplit:
    """Read one split of THUMOS-14 or of the user's own json.

    Args:
        data: one of DETECTION_DATASETS.
        root: the folder with annotation, class list and videos, unless they are named.
        split: "train" or "test".
        annotation: the json file, or its folder.
        videos: folders of videos or of folders of frames, instead of the known ones below the root; the
            first that has a video counts.
        classes: the class list, a name a line; by default `category_idx.txt` beside the annotation, and
            without that the labels of the json in alphabetical order.
        subset: the json's name of this split, if not one of SUBSETS.
        allow_missing: leave videos that are not on disk out instead of raising.
        find_videos: look for the videos. Scores do not need them: without, all have the path "", and those
            without a frame count have 0 frames.

    Raises: BadRow or BadRows (ValueErrors) for a file that is missing or has another form, an unknown class
    or subset, and segments that cannot be meant; MissingVideo for videos that are not on disk, unless
    `allow_missing` and some are; ValueError for an unknown dataset or split.
    """
    if data not in DETECTION_DATASETS or split not in DETECTION_SPLITS:
        allowed = f"{', '.join(DETECTION_DATASETS)} and {' or '.join(DETECTION_SPLITS)}"
        raise ValueError(f"{data!r}, {split!r} is not one of {allowed}")
    root, notes = Path(root), Notes()
    files = Files(root, None if annotation is None else Path(annotation))
    path = files.rows(DETECTION_FILES[data])
    database = read_database(path)
    names = _read_class_list(files, classes, database, notes)
    rows = _read_subset(path, database, split, subset, notes)
    if data == "thumos14":
        rows = _without_removed(rows, notes)
    listed = read_videos(path, rows, names, notes)
    if split == "train":
        for video in (one for one in listed if not one.actions):
            notes.count("videos left out as they have no action to train on", video.video_id)
        listed = [video for video in listed if video.actions]
    if not any(video.actions for video in listed):
        raise BadRow(str(path), "file", f"no video to {split} with has an action", "check the subsets")
    folders = [Path(folder) for folder in videos] or [root / folder for folder in DETECTION_FOLDERS]
    found = dict.fromkeys((video.video_id for video in listed), "")
    if find_videos:
        found = _find_files(listed, folders, str(path), named=bool(videos))
    missing = [video.video_id for video in listed if video.video_id not in found]
    if missing and not (allow_missing and found):
        raise missing_videos(str(path), missing, len(listed), folders)
    return DetectionSplit(
        dataset=data,
        split=split,
        classes=names,
        videos=tuple(
            _with_frames(video, found[video.video_id], str(path), notes)
            for video in listed
            if video.video_id in found
        ),
        missing=tuple(
            Rejected(name, f"{name} is in none of the folders", kind="missing") for name in missing
        ),
        notes=notes.lines(),
        file=str(path),
        arguments={
            "data": data,
            "root": os.path.abspath(root),
            "annotation": None if annotation is None else os.path.abspath(annotation),
            "videos": [os.path.abspath(folder) for folder in videos],
            "classes": None if classes is None else os.path.abspath(classes),
            "subset": subset,
        },
    )


def _read_class_list(
    files: Files, named: str | os.PathLike[str] | None, database: Mapping[str, Any], notes: Notes
) -> tuple[str, ...]:
    path = files.find((CLASS_FILE,), optional=True) if named is None else Path(named)
    if named is not None or path.is_file():
        return read_classes(path)
    names = collect_labels(database)
    notes.texts.append(
        f"there is no {CLASS_FILE}; the {len(names)} labels of the json are the classes, sorted"
    )
    return names


def _read_subset(
    path: Path, database: Mapping[str, dict[str, Any]], split: str, named: str | None, notes: Notes
) -> dict[str, dict[str, Any]]:
    subsets = {video["subset"] for video in database.values()}
    style = next((name for name, pair in SUBSETS.items() if subsets & set(pair)), "OpenTAD")
    wanted = SUBSETS[style][DETECTION_SPLITS.index(split)] if named is None else named
    rows = choose_subset(path, database, wanted, split, named=named is not None)
    if style == "ActionFormer" and named is None:
        notes.texts.append(f"the file has ActionFormer's subsets: {wanted!r} is what {split} reads")
    return rows


def _without_removed(rows: Mapping[str, dict[str, Any]], notes: Notes) -> dict[str, dict[str, Any]]:
    for name in (one for one in REMOVED if one in rows):
        notes.texts.append(f"{name} is left out: it {REMOVED[name]}")
    return {name: row for name, row in rows.items() if name not in REMOVED}


def _find_files(
    listed: Sequence[ListedVideo], folders: Sequence[Path], file: str, *, named: bool
) -> dict[str, str]:
    """The file or folder of frames of each video that is on disk; each folder is listed once."""
    bad: list[BadRow] = []
    indices = []
    for folder in folders:
        if named and not folder.is_dir():
            bad.append(BadRow(str(folder), "folder", "is not a folder", "pass a folder of videos or frames"))
        indices.append(list_videos(folder))
    found: dict[str, str] = {}
    for video in listed:
        name = unicodedata.normalize("NFC", video.video_id)
        paths = next((index[name] for index in indices if name in index), [])
        if len(paths) > 1:
            there = ", ".join(map(os.path.basename, paths))
            reason = f"is the name of {len(paths)} in {Path(paths[0]).parent}: {there}"
            bad.append(BadRow(file, f"video {video.video_id!r}", reason, "keep one of them there"))
        elif paths:
            found[video.video_id] = paths[0]
    raise_bad_rows(bad)
    return found


def _with_frames(video: ListedVideo, path: str, file: str, notes: Notes) -> DetectionVideo:
    """The video with the frame count of its file, where the annotation has none."""
    frames = video.frames
    if frames is None and path:
        try:
            frames = count_shown(path)
        except BadVideo as error:
            reason = f"has no 'frame', and its frames cannot be counted: {error.path}: {error.reason}"
            raise BadRow(file, f"video {video.video_id!r}", reason, error.remedy) from None
        notes.count("videos without 'frame' and 'fps', whose files were counted", video.video_id)
    return DetectionVideo(video.video_id, path, video.duration_s, frames or 0, video.actions)
