"""The cells of a table's row -> the fields of a JSON row; a video held as bytes is written once to a file."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants

from moss_vllm.data.annotations import VIDEO_SUFFIXES
from moss_vllm.data.rows import StoredVideo
from moss_vllm.runtime.files import whole_file

VIDEO_COLUMNS = ("video", *(suffix[1:] for suffix in VIDEO_SUFFIXES))
NAME_FIELDS = ("video_name", "video_path")  # of FAVOR-Train and MotionBenchCaption
FOLDER = "videos"


def video_folder(cache: Path | None) -> Path:
    """Where videos held as bytes are written: below the cache, or without one below the hub's folder."""
    return (cache or Path(constants.HF_HOME, "moss_vllm")) / FOLDER


def as_fields(cells: Mapping[str, Any], root: Path, folder: Path) -> dict[str, Any]:
    """The fields of a row without its empty cells; the name of the video it holds is a `StoredVideo`.

    A cell with a video is bytes, or `bytes` and `path` together. Its name becomes the field that the row's
    format reads: `video_name` or `video_path` where the row has one or a caption, else `video`.

    Args:
        cells: by column.
        root: the folder of the table; absolute paths below it become relative to it.
        folder: where videos are written.

    Raises: ValueError for a row with several videos, or an empty one, or one that is no bytes and no path.
    """
    fields: dict[str, Any] = {}
    videos: dict[str, dict[str, Any]] = {}
    for column, cell in cells.items():
        one = cell[0] if isinstance(cell, list) and len(cell) == 1 else cell
        one = {"bytes": one} if isinstance(one, bytes) else one
        if isinstance(one, dict) and one and one.keys() <= {"bytes", "path"}:
            if any(one.values()) or one.get("bytes") == b"":
                videos[column] = one
        elif cell is not None:
            fields[column] = cell
    if not videos:
        return fields
    named = [column for column in videos if column.lower().rpartition(".")[2] in VIDEO_COLUMNS]
    if len(columns := named or list(videos)) > 1:
        raise ValueError(f"holds a video in each of the columns {', '.join(columns)}, one is needed")
    video = _check_cell(videos[columns[0]], columns[0])
    name = _below(root, video.get("path"))
    if data := video.get("bytes"):
        path = write_once(data, Path(name).suffix.lower(), folder)
        name = fields.get("video_name") or fields.get("video_path") or name or path.name
        name = StoredVideo(str(name), path)
    for field in _name_fields(fields):
        fields[field] = name
    return fields


def _check_cell(video: dict[str, Any], column: str) -> dict[str, Any]:
    """The cell; a video of no bytes must not become a row without a video."""
    for key, kind in (("bytes", bytes), ("path", str)):
        if not isinstance(value := video.get(key), kind | None):
            raise ValueError(f"{key} of its {column} is a {type(value).__name__}, not {kind.__name__}")
    if video.get("bytes") == b"":
        raise ValueError(f"its {column} is empty, 0 bytes")
    return video


def _below(root: Path, path: str | None) -> str:
    return os.path.relpath(path, root) if path and Path(path).is_relative_to(root) else path or ""


def _name_fields(fields: Mapping[str, Any]) -> list[str]:
    """The fields that the row's format reads the name of its video from."""
    if "turns" in fields or "conversations" in fields:
        return ["video"]
    present = [field for field in NAME_FIELDS if field in fields]
    by_caption = {"motion_caption": "video_path", "caption": "video_name"}
    return present or [field for caption, field in by_caption.items() if caption in fields][:1] or ["video"]


def write_once(data: bytes, suffix: str, folder: Path) -> Path:
    """The file of these bytes, named by their digest; written whole, by one process or several at once."""
    suffix = suffix if suffix in VIDEO_SUFFIXES else VIDEO_SUFFIXES[0]
    file = folder / f"{hashlib.sha256(data).hexdigest()}{suffix}"
    if file.is_file() and file.stat().st_size == len(data):
        return file
    with whole_file(file) as part:
        part.write_bytes(data)
    return file
