"""Identify video files, so that another file in a video's place is noticed, and a copy is accepted.

A file with the same size and time is the same. If only the time differs it may be a copy: then 1 MiB of the
contents decides. A folder of frames is identified by its images in the same way.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from moss_vllm.runtime.errors import UnusableData
from moss_vllm.video.frames import BadVideo, list_images

PIECES, PIECE_BYTES = 16, 64 * 1024  # spread evenly over a larger file
_NAMED = 10  # changed files that an error lists; it counts all


def describe_file(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Size, time of the last change and a digest of contents; None for a path that cannot be read."""
    try:
        files = _files(path)
        digest = hashlib.sha256()
        for part in _sample(path, files):
            digest.update(part)
    except (OSError, BadVideo):  # reading it raises the better error
        return None
    return {**_quick(files), "contents": digest.hexdigest()[:16]}


def tell_change(path: str | os.PathLike[str], earlier: Mapping[str, Any]) -> str:
    """How a file differs from what `describe_file` returned earlier; "" if it is the same or unreadable."""
    try:
        now: dict[str, Any] = _quick(_files(path))
    except (OSError, BadVideo):
        return ""
    if all(earlier.get(key) == now[key] for key in now):
        return ""
    if earlier.get("bytes") == now["bytes"]:
        full = describe_file(path)
        if full is None or full["contents"] == earlier.get("contents"):
            return ""
    was, is_now = (f"{one['bytes']:,} bytes of {_when(one)}" for one in (earlier, now))
    return f"was {was}, is {is_now}" + (", with other contents" if earlier["bytes"] == now["bytes"] else "")


def refuse_others(
    paths: Mapping[str, str | os.PathLike[str]], earlier: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raise UnusableData naming each of `paths` whose file is not the one in `earlier`; both are by video."""
    changes = {
        video: (path, tell_change(path, earlier[video])) for video, path in paths.items() if video in earlier
    }
    lines = [f"  {video}: {path} {change}" for video, (path, change) in changes.items() if change]
    if lines:
        more = [f"  and {len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
        raise UnusableData(
            f"videos that changed since they were asked about: {len(lines)}",
            *lines[:_NAMED],
            *more,
            "put the earlier files back, or evaluate again with --overwrite, or into another --out",
        )


def _files(path: str | os.PathLike[str]) -> list[tuple[str, os.stat_result]]:
    """Names and states of a folder's images; for a file, its state with an empty name.

    Raises: OSError for a pipe or a device, which may never end.
    """
    path = os.fspath(path)
    names = list_images(path) if os.path.isdir(path) else [""]
    files = [(name, os.stat(os.path.join(path, name) if name else path)) for name in names]
    if not all(stat.S_ISREG(state.st_mode) for _, state in files):
        raise OSError(f"{path} is or holds something other than files")
    return files


def _quick(files: list[tuple[str, os.stat_result]]) -> dict[str, Any]:
    listed = [(name, state.st_size, state.st_mtime_ns) for name, state in files]
    return {
        "bytes": sum(size for _, size, _ in listed),
        "mtime_ns": max(mtime for _, _, mtime in listed),
        "listed": hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16],
    }


def _sample(path: str | os.PathLike[str], files: list[tuple[str, os.stat_result]]) -> Iterator[bytes]:
    """All sizes, then pieces of the file, or of some of the images, spread evenly."""
    yield json.dumps([(name, state.st_size) for name, state in files]).encode()
    picked = {number * (len(files) - 1) // (PIECES - 1) for number in range(PIECES)}
    for name, state in (files[number] for number in sorted(picked)):
        pieces = PIECES if len(files) == 1 else 1
        last = max(0, state.st_size - PIECE_BYTES)
        with open(os.path.join(path, name) if name else path, "rb") as file:
            for offset in sorted({number * last // max(1, pieces - 1) for number in range(pieces)}):
                file.seek(offset)
                yield file.read(PIECE_BYTES)


def _when(state: Mapping[str, Any]) -> str:
    changed = datetime.fromtimestamp(state["mtime_ns"] / 1e9).astimezone()
    return changed.isoformat(" ", timespec="seconds")
