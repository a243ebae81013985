"""Six action-recognition datasets, and the user's own lists, as labelled clips.

    split = read_action("ssv2", Path("/data/ssv2"), "train")
    print(split.report())  # ssv2 train: kept 168,913 of 168,913 clips, 0 missing, ...

`lists` reads the files of each.
"""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from moss_vllm.data.actions.files import Annotation, Files, Listed, check_repeats, plain_name
from moss_vllm.data.actions.lists import (
    read_diving48,
    read_finegym,
    read_k400,
    read_list,
    read_ssv1,
    read_ssv2,
)
from moss_vllm.data.rows import BadRow, MissingVideo, Rejected, digest_rows, raise_bad_rows

ACTION_SPLITS = ("train", "test")
# The files below the root, in the spelling of the release.
ANNOTATION_FILES = {
    "ssv1": "something-something-v1-{labels,train,validation}.csv, 20bn-something-something-v1/ID/00001.jpg",
    "ssv2": "labels/{labels,train,validation}.json, 20bn-something-something-v2/ID.webm",
    "diving48": "Diving48_V2_{train,test}.json, Diving48_vocab.json, rgb/NAME.mp4",
    "gym99": "gym99_{train_element_v1.1,val_element}.txt, gym99_categories.txt, subactions/ID.mp4",
    "gym288": "gym288_{train_element_v1.1,val_element}.txt, gym288_categories.txt, subactions/ID.mp4",
    "k400": "{train,val}.csv, {train,val}/CLASS/ID_000001_000011.mp4",
    "list": "{train,test}.txt, labels.csv, and what the lists name",
}
ACTION_READERS: dict[str, Callable[[Files, str], Annotation]] = {
    "ssv1": read_ssv1,
    "ssv2": read_ssv2,
    "diving48": read_diving48,
    "gym99": partial(read_finegym, data="gym99"),
    "gym288": partial(read_finegym, data="gym288"),
    "k400": read_k400,
    "list": read_list,
}
DATASETS = tuple(ACTION_READERS)
# Rows of (train, test) in the official files; FineGym is v1.1. No copy of Kinetics is complete.
PUBLISHED = {
    "ssv1": (86_017, 11_522),
    "ssv2": (168_913, 24_777),
    "diving48": (15_027, 1_970),
    "gym99": (26_320, 8_521),
    "gym288": (29_334, 9_646),
    "k400": (246_535, 19_907),
}
SHOWN_MISSING = 5
# Something-Something's pulling, pushing and turning the camera; they show that its classes are in order.
SOMETHING_CLASSES, SOMETHING_SWAPS = 174, {86: 87, 87: 86, 93: 94, 94: 93, 166: 167, 167: 166}
_NUMBER = re.compile(r"\s+[-+\d.,]+$")
_SIDE = re.compile(r"\b([Ll]eft|[Rr]ight)\b")


@dataclass(frozen=True)
class ActionClip:
    """One clip: a video file, or a folder of frames; `frames` is the number of images that its line gives."""

    clip_id: str
    path: str
    label: int
    frames: int | None = None


@dataclass(frozen=True)
class ActionSplit:
    """The clips of one split that are on disk; `missing` has those that are not.

    Args:
        dataset, split: the arguments of `read_action`.
        classes: names by class id.
        clips: in the order of the file.
        missing: clips in the list without a video.
        published: number of rows of the official file; None for the user's own lists.
        file: the file that lists the clips.
        groups: for FineGym, the name of each class's set.
    """

    dataset: str
    split: str
    classes: tuple[str, ...]
    clips: tuple[ActionClip, ...]
    missing: tuple[Rejected, ...]
    published: int | None
    file: str
    groups: tuple[str, ...] = ()

    @property
    def swaps(self) -> dict[int, int]:
        """Each class that mirroring changes, and what it becomes; none but Something-Something's do."""
        swaps = left_right_swaps(self.classes)
        listed = len(self.classes) == SOMETHING_CLASSES and swaps == SOMETHING_SWAPS
        return swaps if self.dataset in ("ssv1", "ssv2") or (self.dataset == "list" and listed) else {}

    @property
    def may_mirror(self) -> bool:
        """Whether training may mirror clips: not if a list's own classes tell left from right."""
        return self.dataset != "list" or bool(self.swaps) or not any(map(_SIDE.search, self.classes))

    def digest(self) -> str:
        """A digest of its classes and clips: ids, names of files and labels; not of folders."""
        clips = [[clip.clip_id, os.path.basename(clip.path), clip.label] for clip in self.clips]
        return digest_rows(self.classes, clips)

    def report(self) -> str:
        """Counts in one line."""
        total, occur = len(self.clips) + len(self.missing), len({clip.label for clip in self.clips})
        published = "no published count" if self.published is None else f"published count {self.published:,}"
        return (
            f"{self.dataset} {self.split}: kept {len(self.clips):,} of {total:,} clips, "
            f"{len(self.missing):,} missing, {len(self.classes)} classes ({occur} with clips); {published}"
        )


def read_action(
    data: str,
    root: str | os.PathLike[str],
    split: Literal["train", "test"],
    *,
    annotation: str | os.PathLike[str] | None = None,
    allow_missing: bool = False,
) -> ActionSplit:
    """Read one split of a dataset; "test" is the split with published labels.

    Args:
        data: one of DATASETS.
        root: the folder with the videos, and the annotation files unless they are named.
        split: "train" or "test".
        annotation: the file that lists the clips, or the folder of all annotation files.
        allow_missing: leave clips without a video out instead of raising.

    Raises: BadRow or BadRows (ValueErrors) for a file that is missing or has another form, an unknown class,
    a clip or a video listed twice, a path out of `root`; MissingVideo for clips without a video, unless
    `allow_missing` and some clips have one.
    """
    if data not in ACTION_READERS or split not in ACTION_SPLITS:
        raise ValueError(
            f"{data!r}, {split!r} is not one of {', '.join(DATASETS)} and {' or '.join(ACTION_SPLITS)}"
        )
    root = Path(root)
    listed = ACTION_READERS[data](Files(root, None if annotation is None else Path(annotation)), split)
    check_repeats(listed)
    videos = _find_videos(listed, _Disk(root))
    missing = [row for row, path in videos if path is None]
    if missing and not (allow_missing and len(missing) < len(videos)):
        raise _missing(listed, root, missing)
    return ActionSplit(
        dataset=data,
        split=split,
        classes=listed.classes,
        clips=tuple(
            ActionClip(row.clip_id, path, row.label, row.frames) for row, path in videos if path is not None
        ),
        missing=tuple(Rejected(row.clip_id, f"{row.names[0]} is not below {root}") for row in missing),
        published=PUBLISHED[data][ACTION_SPLITS.index(split)] if data in PUBLISHED else None,
        file=listed.file,
        groups=listed.groups,
    )


def tell_shared_clips(train: ActionSplit, test: ActionSplit) -> list[str]:
    """A warning, as a list of one line, if test clips are trained on; an empty list if none are."""
    trained = {clip.path for clip in train.clips}
    shared = [clip.clip_id for clip in test.clips if clip.path in trained]
    more = f" and {len(shared) - SHOWN_MISSING:,} more" if len(shared) > SHOWN_MISSING else ""
    clips = f"{len(shared):,} clips of {test.file} are trained on: {', '.join(shared[:SHOWN_MISSING])}{more}"
    return [f"WARNING: {clips}; leave them out of one of the two lists"] if shared else []


def _find_videos(listed: Annotation, disk: "_Disk") -> list[tuple[Listed, str | None]]:
    """Pair each row with its video, or None; raises the bad rows."""
    videos: list[tuple[Listed, str | None]] = []
    first: dict[str, Listed] = {}
    for row in listed.rows:
        reason, remedy, name = "", "repair the line", row.names[0]
        path, cut, stem = None, name, None
        try:
            path = disk.find(listed.folders, row.names)
            while path is stem is None and (match := _NUMBER.search(cut)):
                cut = cut[: match.start()]
                stem = disk.find(listed.folders, (cut,))
        except _TwoForms as error:
            reason, remedy = str(error), "rename one of them, or write the name as it is on disk"
        # A folder of frames may have the name of its video.
        if path and row.frames is not None and "." in os.path.basename(path) and os.path.isfile(path):
            reason = f"{name!r} is a video file; it takes one class, and no number of frames"
        elif stem:
            behind = name[len(cut) :].strip()
            reason = f"{behind!r} and a class stand behind {cut!r}; that takes 'class', or 'frames class'"
        elif path and path in first:
            reason = f"{name!r} is the file of {first[path].where} ({first[path].names[0]!r})"
        if reason:
            listed.bad.append(BadRow(listed.file, row.where, reason, remedy))
        first.setdefault(path or "", row)
        videos.append((row, path))
    raise_bad_rows(listed.bad)
    return videos


class _TwoForms(ValueError):
    """A name that is on disk in two Unicode forms, neither of them the one looked for."""


class _Disk:
    """Finds files by listing each folder once: 200,000 look-ups on a network disk take minutes.

    A name is also found in another Unicode form than the annotation's: some disks and archives change it.
    """

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._names: dict[str, tuple[frozenset[str], dict[str, list[str]]]] = {}

    def find(self, folders: tuple[str, ...], names: tuple[str, ...]) -> str | None:
        """The first path `root/folder/name` that exists."""
        for folder in folders:
            for name in names:
                parts = [part for part in f"{folder}/{name}".split("/") if part not in ("", ".")]
                place: str | None = self.root if parts else None
                for part in parts:
                    place = place and self._inside(place, part)
                if place:
                    return place
        return None

    def _inside(self, folder: str, name: str) -> str | None:
        if folder not in self._names:
            try:
                entries = os.listdir(folder)
            except (FileNotFoundError, NotADirectoryError):
                entries = []
            forms: dict[str, list[str]] = defaultdict(list)
            for entry in entries:
                if not entry.isascii():
                    forms[unicodedata.normalize("NFC", entry)].append(entry)
            self._names[folder] = frozenset(entries), forms
        exact, others = self._names[folder]
        if name in exact:
            return os.path.join(folder, name)
        alike = others.get(unicodedata.normalize("NFC", name), [])
        if len(alike) > 1:
            raise _TwoForms(
                f"{folder} has {name!r} in {len(alike)} Unicode forms, none as it is written here"
            )
        return os.path.join(folder, alike[0]) if alike else None


def _missing(listed: Annotation, root: Path, missing: list[Listed]) -> MissingVideo:
    shown = ", ".join(row.names[0] for row in missing[:SHOWN_MISSING])
    more = f", ... and {len(missing) - SHOWN_MISSING:,} more" if len(missing) > SHOWN_MISSING else ""
    folders = ", ".join(folder or "." for folder in listed.folders)
    every = len(missing) == len(listed.rows)
    remedy = "download them, or allow missing videos (--allow-missing)"
    remedy = "pass the folder of the videos as root" if every else remedy
    where = f"{'all ' if every else ''}{len(missing):,} of {len(listed.rows):,} clips"
    return MissingVideo(listed.file, where, f"no video in {folders} of {root}: {shown}{more}", remedy)


def left_right_swaps(classes: tuple[str, ...]) -> dict[int, int]:
    """Pairs of classes whose names differ only in left and right: the id of each to that of the other.

    Names that several classes share have no swap. For Something-Something the result is SOMETHING_SWAPS.
    """
    other = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    names = [plain_name(name) for name in classes]
    count = Counter(names)
    ids = {name: index for index, name in enumerate(names) if count[name] == 1}
    mirrored = {name: _SIDE.sub(lambda match: other[match[0]], name) for name in ids}
    return {ids[name]: ids[there] for name, there in mirrored.items() if there != name and there in ids}
