"""Kinetics-GEBD, TAPOS, and the user's own videos, as clips with the boundaries that raters marked.

split = read_boundaries("kinetics_gebd", Path("/data/Kinetics-GEBD"), "test")
print(split.report())  # kinetics_gebd test: kept 18,000 of 18,000 clips, 0 missing, ...
print(*split.notes)    # which ground truth it is; what was left out or kept against expectation, counted
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from moss_vllm.data.actions.files import Files
from moss_vllm.data.annotated_videos import (
    Notes,
    choose_subset,
    missing_videos,
    read_database,
    read_object,
)
from moss_vllm.data.boundaries.annotation import (
    BoundaryVideo,
    check_raw,
    from_database,
    from_tapos,
    read_records,
)
from moss_vllm.data.boundaries.ground_truth import VERSIONS, Version, build_ground_truth
from moss_vllm.data.boundaries.on_disk import find_clips
from moss_vllm.data.boundaries.pickles import read_pickle
from moss_vllm.data.rows import BadRow, digest_rows

BOUNDARY_DATASETS = ("kinetics_gebd", "tapos", "json", "mini")
BOUNDARY_SPLITS = ("train", "test")
FILE_PARTS = {"train": "train", "test": "val"}  # the labels of both tests are private, so val is scored
BOUNDARY_FILES = {
    "kinetics_gebd": ("k400_mr345_{}_min_change_duration0.3.pkl", "k400_{}_raw_annotation.pkl"),
    "tapos": ("tapos_gt_{}.pkl", "TAPOS_for_GEBD_{}.pkl", "tapos_annotation.json"),
    "json": ("annotations.json", "*.json"),
    "mini": ("k400_mr345_{}_min_change_duration0.3.pkl",),
}
BOUNDARY_SUBSETS = {"train": "training", "test": "validation"}  # of the user's json
# Below the root, unless folders are named: EfficientGEBD's, the challenge's, and plainer ones.
BOUNDARY_FOLDERS = ("images/{}", "{}_split", "frames/{}", "videos/{}", "{}", "images", "frames", "videos", "")
PUBLISHED_BOUNDARIES = {"tapos": {"train": (12_822, 29_489), "test": (1_755, 4_150)}}  # clips, boundaries


@dataclass(frozen=True)
class BoundarySplit:
    """The clips of one split; scores count those that are `missing` on disk as well.

    Args:
        dataset, split: the arguments of `read_boundaries`.
        videos: on disk, in the order of the file.
        missing: annotated, but not on disk.
        notes: which ground truth it is, and what was left out or kept against expectation, a sentence each.
        file: the annotation file.
        arguments: those of `read_boundaries`, but for `split`, that read the same clips again; for json.
    """

    dataset: str
    split: str
    videos: tuple[BoundaryVideo, ...]
    missing: tuple[BoundaryVideo, ...]
    notes: tuple[str, ...]
    file: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def annotated(self) -> tuple[BoundaryVideo, ...]:
        """All clips, on disk or not."""
        return (*self.videos, *self.missing)

    def digest(self) -> str:
        """A digest of its clips: ids, names of files, lengths and the raters' boundaries; not of folders."""
        return digest_rows(
            [
                [
                    *(clip.video_id, os.path.basename(clip.path), clip.duration_s, clip.frames),
                    [[*rater.times_s] for rater in clip.raters],
                ]
                for clip in self.videos
            ],
        )

    def report(self) -> str:
        """Counts in one line."""
        every = self.annotated
        published = "no published count"
        if self.dataset in PUBLISHED_BOUNDARIES:
            published = "published count {:,} clips, {:,} boundaries".format(
                *PUBLISHED_BOUNDARIES[self.dataset][self.split]
            )
        kept = f"kept {len(self.videos):,} of {len(every):,} clips, {len(self.missing):,} missing"
        boundaries = sum(clip.boundaries for clip in every)
        lists = sum(len(clip.raters) for clip in every)
        told = f"{kept}, {boundaries:,} boundaries in {lists:,} lists of raters; {published}"
        return f"{self.dataset} {self.split}: {told}"


def read_boundaries(
    data: str,
    root: str | os.PathLike[str],
    split: Literal["train", "test"],
    *,
    annotation: str | os.PathLike[str] | None = None,
    videos: Sequence[str | os.PathLike[str]] = (),
    subset: str | None = None,
    version: Version = "2022",
    allow_missing: bool = False,
    find_videos: bool = True,
) -> BoundarySplit:
    """Read one split of Kinetics-GEBD, TAPOS, the user's own json or a world drawn by `draw_boundaries`.

    Args:
        data: one of BOUNDARY_DATASETS.
        root: the folder with annotation and clips, unless they are named.
        split: "train" or "test"; the test of both data sets is their validation part.
        annotation: the file, or its folder.
        videos: folders of clips instead of the known ones below the root; the first that has a clip counts.
        subset: the name of this split in the user's json, if not one of BOUNDARY_SUBSETS.
        version: the rules by which a raw annotation of Kinetics-GEBD becomes ground truth.
        allow_missing: put clips that are not on disk into `missing` instead of raising.
        find_videos: look for the clips. Scores do not need them: without, all have the path "".

    Raises: BadRow or BadRows (ValueErrors) for a file that is missing or has another form and records that
    cannot be meant; MissingVideo for clips that are not on disk, unless `allow_missing` and some are;
    ValueError for an unknown dataset, split or version.
    """
    if data not in BOUNDARY_DATASETS or split not in BOUNDARY_SPLITS or version not in VERSIONS:
        allowed = f"{', '.join(BOUNDARY_DATASETS)}, {' or '.join(BOUNDARY_SPLITS)}, {' or '.join(VERSIONS)}"
        raise ValueError(f"{data!r}, {split!r}, {version!r} is not one of {allowed}")
    root, notes, part = Path(root), Notes(), FILE_PARTS[split]
    files = Files(root, None if annotation is None else Path(annotation))
    path = files.rows([name.format(part) for name in BOUNDARY_FILES[data]])
    if data == "json":
        wanted = subset or BOUNDARY_SUBSETS[split]
        rows = choose_subset(path, read_database(path), wanted, split, named=bool(subset))
        records = from_database(rows, str(path))
    elif path.suffix == ".json":
        content = read_object(path)
        records = from_tapos(content, part, str(path), notes) if data == "tapos" else content
    elif data == "mini":
        records = _as_dict(path)
    else:
        records = _read_pickled(path, files, part, version, notes)
    clips = read_records(records, str(path), notes)
    if not any(clip.boundaries for clip in clips):
        raise BadRow(
            str(path), "file", f"no clip to {split} with has a boundary", "check that it is the right file"
        )
    if data in ("kinetics_gebd", "tapos"):  # several files of each circulate
        counted = f"{len(clips):,} clips, {sum(clip.boundaries for clip in clips):,} boundaries"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        notes.texts.insert(0, f"the ground truth is {path.name}: {counted}, sha256 {digest}")
    folders = [Path(folder) for folder in videos] or [root / name.format(part) for name in BOUNDARY_FOLDERS]
    found = dict.fromkeys((clip.video_id for clip in clips), "")
    if find_videos:
        found = find_clips(clips, folders, str(path), notes, named=bool(videos))
    missing = [clip for clip in clips if clip.video_id not in found]
    if missing and not (allow_missing and found):
        names = [clip.video_id for clip in missing]
        raise missing_videos(str(path), names, len(clips), folders)
    there = (replace(clip, path=found[clip.video_id]) for clip in clips if clip.video_id in found)
    arguments = {
        "data": data,
        "root": os.path.abspath(root),
        "annotation": None if annotation is None else os.path.abspath(annotation),
        "videos": [os.path.abspath(folder) for folder in videos],
        "subset": subset,
        "version": version,
    }
    return BoundarySplit(data, split, tuple(there), tuple(missing), notes.lines(), str(path), arguments)


# ---- which ground truth


def _read_pickled(path: Path, files: Files, part: str, version: Version, notes: Notes) -> dict[str, Any]:
    """The records of a pickle; those of a raw annotation are built here."""
    records = _as_dict(path)
    if _is_raw(records):
        built = _build(path, records, version)
        dropped = len(records) - len(built)
        notes.texts.append(
            f"{path.name} is the raw annotation: its ground truth is built by the rules of {version}, "
            f"without {dropped:,} clips that have fewer than three raters or lack a field"
        )
        return built
    raw_file = BOUNDARY_FILES["kinetics_gebd"][1].format(part)
    if path.name == BOUNDARY_FILES["kinetics_gebd"][0].format(part):
        beside = files.find((raw_file,), optional=True)
        notes.texts.append(
            _tell_version(records, beside)
            if beside.is_file()
            else (
                f"without {raw_file} beside it, it cannot be told which of the two published versions "
                "this is, that of 2021 or that of May 2022"
            )
        )
    return records


def _as_dict(path: Path) -> dict[str, Any]:
    content = read_pickle(path)
    if not isinstance(content, dict) or not content:
        reason = "is empty" if content == {} else f"holds a {type(content).__name__}, not a dict of clips"
        raise BadRow(str(path), "file", reason, "check that it is the right file")
    return content


def _is_raw(records: Mapping[str, Any]) -> bool:
    first = next(iter(records.values()))
    return isinstance(first, dict) and "substages_myframeidx" not in first and "substages_timestamps" in first


def _build(path: Path, raw: Mapping[str, Any], version: Version) -> dict[str, Any]:
    check_raw(raw, str(path))
    return build_ground_truth(raw, version)


def _tell_version(records: Mapping[str, Any], raw_file: Path) -> str:
    """Which rules make these records from the raw annotation."""
    raw = _as_dict(raw_file)
    unlike = {
        version: sum(1 for _ in _differences(records, _build(raw_file, raw, version))) for version in VERSIONS
    }
    same = [version for version, count in unlike.items() if not count]
    if len(same) == len(VERSIONS):
        return f"it is what {raw_file.name} gives by the rules of 2021 and of 2022, which agree here"
    if same:
        other = next(version for version in VERSIONS if version not in same)
        told = f"by those of {other} {unlike[other]:,} clips are different"
        return f"it is what {raw_file.name} gives by the rules of {same[0]}; {told}"
    counts = ", ".join(f"{count:,} by those of {version}" for version, count in unlike.items())
    return f"it is not what {raw_file.name} gives: clips that are different: {counts}"


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    key = "substages_timestamps"
    for name in {**one, **other}:
        first, second = one.get(name, {}), other.get(name, {})
        if not isinstance(first, dict) or first.get(key) != second.get(key):
            yield name
