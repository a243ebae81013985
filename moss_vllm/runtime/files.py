"""Files and folders: written whole or not at all, named in errors, refused before the work starts."""

import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MOST_NAMED = 5  # folders in a message


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it replaces `path` at the end of the `with`.

    Raises: OSError naming `path` where the disk refuses it.
    """
    # Others may write it too, on other machines of a shared disk, where process ids repeat.
    part = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        # The error of a full disk has no file name; one with another file's name is not about this file.
        own = (None, *map(str, (part, path, *path.parents)))
        if error.errno is None or (error.filename and str(error.filename)) not in own:
            raise
        remedy = "make room there or name another place, and run it again"
        raise OSError(f"{path} cannot be written ({error.strerror}); {remedy}") from error
    finally:
        with suppress(OSError):  # it is missing if its folder could not be made
            part.unlink()


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole or not at all; raises as `whole_file`."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def readable(*files: Path) -> None:
    """Give files the mode of any file that is written beside them.

    safetensors 0.8 makes its files readable by their writer only (huggingface/safetensors#782).
    """
    for file in files:
        probe = file.with_name(f".{uuid.uuid4().hex}.mode")  # reading the umask would mean setting it
        probe.touch()
        mode = probe.stat().st_mode
        probe.unlink()
        file.chmod(mode)


def is_still(path: Path, status: os.stat_result) -> bool:
    """Whether the file that had this status still has this name."""
    try:
        return os.path.samestat(path.stat(), status)
    except OSError:
        return False


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


def refuse_unwritable(folder: Path, name: str) -> None:
    """ValueError unless the folder can be made and written to; leaves nothing behind.

    A folder is made for a moment in the nearest one that exists, since permissions do not tell all: root may
    write everywhere, and yet not in /proc or on a disk that is mounted read-only.
    """
    folder = folder.absolute()
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    reason = None
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            folder.lstat()  # refuses a name that is too long
        if nearest.is_dir():
            os.rmdir(tempfile.mkdtemp(prefix=".writable.", dir=nearest))
        else:
            reason = f"{nearest} is a {'file' if nearest.exists() else 'link to nothing'}"
    except OSError as error:
        reason = f"{nearest}: {error.strerror}"
    if reason:
        raise ValueError(f"{name} {folder} is not a folder that can be written to ({reason}); name another")


def is_filled(folder: Path) -> bool:
    """Whether a file stands there, or a folder with anything in it, whose place must not be taken."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def tell_existing(file: str) -> str:
    """The end of a message that names the newest folders below runs/ with `file`; empty without any."""
    files = [one for depth in ("*", "*/*", "*/*/*") for one in Path("runs").glob(f"{depth}/{file}")]
    newest = sorted(files, key=lambda one: one.stat().st_mtime, reverse=True)[:MOST_NAMED]
    return f"; there are {', '.join(str(one.parent) for one in newest)}" if newest else ""
