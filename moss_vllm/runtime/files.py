"""Files and folders: written whole or not at all, read with their names, refused before the work starts."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

EXISTING = 5  # folders that a message names


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; it takes the place of `path` once all is written.

    Raises: OSError naming `path` where the disk refuses it.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")  # others may write it as well
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        # A full disk is told without a name. With the name of another file the error is not of this one.
        own = (None, *map(str, (part, path, *path.parents)))
        if error.errno is None or (error.filename and str(error.filename)) not in own:
            raise
        remedy = "make room there or name another place, and run it again"
        raise OSError(f"{path} cannot be written ({error.strerror}); {remedy}") from error
    finally:
        with suppress(OSError):  # as where its folder could not be made
            part.unlink()


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all; raises as `whole_file`."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def readable(*files: Path) -> None:
    """Give files the mode that any file written beside them gets.

    safetensors 0.8 leaves its files to their writer alone (huggingface/safetensors#782).
    """
    for file in files:
        probe = file.with_name(f".{file.name}.{os.getpid()}.mode")  # asking for the umask would set it
        probe.touch()
        mode = probe.stat().st_mode
        probe.unlink()
        file.chmod(mode)


def read_json(file: Path, remedy: str = "use an earlier checkpoint") -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError, ValueError: it is missing, or holds none; the message ends with the remedy.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}, not names with values")
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} is not there; {remedy}") from None
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{file}: cannot be read as JSON ({reason}); {remedy}") from error
    return value


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
