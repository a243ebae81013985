"""The folder of a world that is drawn on first use: its settings, and what is drawn again after a change."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from moss_vllm.runtime.files import read_json, write_whole

Size = TypeVar("Size")


def open_world(
    root: Path,
    file: str,
    size: Size | None,
    standard: Size,
    *,
    drawn_format: int,
    parts: Sequence[str],
    what: str,
) -> Size:
    """The size of the world in a folder; its settings are written where it is new or of another format.

    Args:
        file: its settings, in `root`.
        size: None accepts a world of any size, or makes one of the `standard` size.
        drawn_format: of what is drawn; a world of another format loses its `parts`.
        parts: the files and folders below `root` that are drawn.
        what: is drawn, for errors.

    Raises:
        ValueError: `root` is a world of another size, or another folder.
    """
    settings = root / file
    if root.exists() and not settings.is_file() and any(root.iterdir()):
        raise ValueError(
            f"{root} is no world of {what} (no {file}), which --data mini draws; name another "
            "--data, or an empty folder"
        )
    existing = read_json(settings, f"remove {root}") if settings.is_file() else {}
    names: dict[str, Any] = asdict(standard)  # type: ignore[call-overload]
    wanted = {**asdict(size or standard), "format": drawn_format}  # type: ignore[call-overload]
    if existing.keys() != wanted.keys() or existing["format"] != drawn_format:
        for part in (root / name for name in parts):
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
    elif size is None:
        wanted = existing
    elif existing != wanted:
        raise ValueError(f"{root} holds {what} of {existing}, not {wanted}; remove it or name another folder")
    write_whole(settings, json.dumps(wanted, indent=2) + "\n")
    return type(standard)(*(wanted[name] for name in names))
