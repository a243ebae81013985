"""Files and folders: written whole or not at all, read with their names, refused before the work starts."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EXISTING = 5  # folders that a message names


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; it takes the place of `path` once all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")  # others may write it as well
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_json(file: Path, remedy: str = "use an earlier checkpoint") -> dict[str, Any]:
    """A JSON object; ValueError names the file that holds none, and the remedy."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, not names with values")
    except ValueError as error:
        raise ValueError(f"{file}: cannot be read as JSON ({error}); {remedy}") from error
    return found


def refuse_unwritable(folder: Path, called: str) -> None:
    """ValueError unless the folder is there or can be made, and written to; makes nothing."""
    folder = folder.absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    reason = None if os.access(nearest, os.W_OK | os.X_OK) else f"{nearest} is read-only"
    if not nearest.is_dir():
        reason = f"{nearest} is a file"
    if reason:
        raise ValueError(f"{called} {folder} is not a folder that can be written to ({reason}); name another")


def tell_existing(file: str) -> str:
    """The newest folders below runs/ that hold `file`, to end a message with; empty for none."""
    found = [one for depth in ("*", "*/*", "*/*/*") for one in Path("runs").glob(f"{depth}/{file}")]
    newest = sorted(found, key=lambda one: one.stat().st_mtime, reverse=True)[:EXISTING]
    return f"; there are {', '.join(str(one.parent) for one in newest)}" if newest else ""
