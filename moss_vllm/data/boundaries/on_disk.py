"""Where the clips of a boundary dataset are: videos, or folders of frames, in the layouts in use.

    images/val/tdpHu69TU5w_000004_000014/frame1.jpg           EfficientGEBD
    val_split/air_drumming/tdpHu69TU5w_000004_000014/image_00001.jpg    the challenge's baseline
    images/val/yqqJxDz1zXg_s00004_0_100_7_931/img_00001.png   TAPOS, DDM's frames
    val_split/yqqJxDz1zXg/s00004_0_100_7_931/image_00001.jpg  TAPOS, the challenge's

Frames are counted from 1, as the annotations' tools do.
"""

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from moss_vllm.data.annotated_videos import Notes, list_videos
from moss_vllm.data.boundaries.annotation import BoundaryVideo
from moss_vllm.data.rows import BadRow, raise_bad_rows
from moss_vllm.video.clip import count_shown
from moss_vllm.video.frames import IMAGE_EXTENSIONS, ONE_SEQUENCE, BadVideo, list_images

YOUTUBE_ID = 11  # characters, by which a clip of Kinetics begins


@dataclass
class _Folder:
    """A folder of clips, or of folders of clips; each is listed once, when it is needed."""

    path: Path
    below: dict[str, "_Folder"] = field(default_factory=dict)

    @cached_property
    def clips(self) -> dict[str, list[str]]:
        return list_videos(self.path)

    @cached_property
    def by_id(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, paths in self.clips.items():
            found.setdefault(name[:YOUTUBE_ID], []).extend(paths)
        return found

    @cached_property
    def groups(self) -> dict[str, str]:
        """Subfolders by name, with spaces for underscores: classes of Kinetics are written both ways."""
        return {_plain(name): paths[0] for name, paths in self.clips.items() if os.path.isdir(paths[0])}

    def group(self, name: str) -> "_Folder | None":
        path = self.groups.get(_plain(name)) if name else None
        if path is None:
            return None
        return self.below.setdefault(path, _Folder(Path(path)))


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold()


def find_clips(
    clips: Sequence[BoundaryVideo], folders: Sequence[Path], file: str, notes: Notes, *, named: bool
) -> dict[str, str]:
    """The file or folder of frames of each clip that is on disk; the first folder that has it counts.

    A clip of Kinetics is also found by its id alone, which is noted. A folder without an image is none.

    Raises: BadRow or BadRows for named folders that are none, and for a clip that a folder has twice.
    """
    bad: list[BadRow] = []
    for folder in folders if named else ():
        if not folder.is_dir():
            bad.append(BadRow(str(folder), "folder", "is not a folder", "pass a folder of clips or frames"))
    listed = [_Folder(folder) for folder in folders]
    found: dict[str, str] = {}
    for clip in clips:
        paths = next((paths for folder in listed if (paths := _look_up(folder, clip))), [])
        if not paths and (paths := next((some for folder in listed if (some := _by_id(folder, clip))), [])):
            notes.count("clips found by their id alone, under another name", os.path.basename(paths[0]))
        if len(paths) > 1:
            there = ", ".join(map(os.path.basename, paths[:3]))
            reason = f"is the name of {len(paths)} in {Path(paths[0]).parent}: {there}"
            bad.append(BadRow(file, f"video {clip.video_id!r}", reason, "keep one of them there"))
        elif paths and os.path.isdir(paths[0]) and not _has_image(paths[0]):
            notes.count("folders without an image, counted as missing", paths[0])
        elif paths:
            found[clip.video_id] = paths[0]
    raise_bad_rows(bad)
    return found


def _look_up(folder: _Folder, clip: BoundaryVideo) -> list[str]:
    name = unicodedata.normalize("NFC", clip.name)
    if name in folder.clips:
        return folder.clips[name]
    group = folder.group(clip.group)
    if group is None:
        return []
    # TAPOS: <video>/<instance>, where the clip's name has both.
    return group.clips.get(name) or group.clips.get(name.removeprefix(f"{clip.group}_"), [])


def _by_id(folder: _Folder, clip: BoundaryVideo) -> list[str]:
    """Clips of Kinetics with other times in their name, or none."""
    if len(clip.video_id) != YOUTUBE_ID or not clip.name.startswith(clip.video_id):
        return []
    group = folder.group(clip.group)
    return folder.by_id.get(clip.video_id) or (group.by_id.get(clip.video_id, []) if group else [])


def _has_image(folder: str) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(IMAGE_EXTENSIONS) for entry in entries)


def count_files(path: str | os.PathLike[str]) -> int:
    """The number of frames of a clip: images in a folder, or frames that a video shows.

    Raises: BadVideo as `count_shown`, and for a folder whose numbers do not follow one another: its k-th
    image is then not the k-th frame.
    """
    if not os.path.isdir(path):
        return count_shown(path)
    names = list_images(os.fspath(path))
    numbers = [int((re.findall(r"\d+", os.path.splitext(name)[0]) or ["1"])[-1]) for name in names]
    for expected, number in enumerate(numbers, min(numbers[0], 1)):
        if number != expected:
            reason = f"has {len(names):,} frames up to number {numbers[-1]}, but no frame {expected}"
            raise BadVideo(os.fspath(path), reason, f"extract the frames again; {ONE_SEQUENCE}")
    return len(names)
