"""Find the annotation files of action-recognition datasets, and check their classes and clip names.

Annotation files come from outside: an unknown class, a name that leaves its folder or a line of another form
is a `BadRow`.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from moss_vllm.data.annotations import MAX_ANNOTATION_BYTES, read_json_rows
from moss_vllm.data.rows import BadRow, raise_bad_rows

ANNOTATION_FOLDERS = ("", "annotations", "annotation", "labels", "lists")


@dataclass(frozen=True)
class Listed:
    """A row of an annotation file.

    Args:
        names: spellings of its video's path below the video folders.
        frames: the number of images that the row gives for its folder.
    """

    clip_id: str
    label: int
    where: str
    names: tuple[str, ...]
    frames: int | None = None


@dataclass
class Annotation:
    """One split as a dataset's files list it; `groups` has a name for each class, or is empty."""

    file: str
    classes: tuple[str, ...]
    folders: tuple[str, ...]
    rows: list[Listed] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    groups: tuple[str, ...] = ()

    def add(self, places: Iterator[tuple[str, Any]], read_row: Callable[[Any, str], Listed]) -> "Annotation":
        """Read (where, row) pairs; rows that cannot be read go to `bad`."""
        for where, row in places:
            try:
                self.rows.append(read_row(row, where))
            except BadRow as error:
                self.bad.append(error)
        return self


@dataclass(frozen=True)
class Files:
    """Where annotation files are looked for: beside (or in) `annotation`, then below the root."""

    root: Path
    annotation: Path | None

    def rows(self, names: Sequence[str]) -> Path:
        """The list of clips: the file `annotation`, or one of `names`."""
        if self.annotation is not None and self.annotation.is_file():
            return self.annotation
        return self.find(names)

    def find(self, names: Sequence[str], *, optional: bool = False) -> Path:
        """The first file of these names, which may be patterns; a pattern must fit one file of a folder.

        Raises: BadRow for a file that is missing; an optional one is returned as a path that does not exist.
        """
        for folder in self._folders():
            for name in names:
                files = sorted(path for path in folder.glob(name) if path.is_file())
                if len(files) > 1:
                    listed = ", ".join(path.name for path in files)
                    reason = f"{len(files)} files look like {name}: {listed}"
                    raise BadRow(
                        str(folder), "folder", reason, "name the one to read, or leave only that one there"
                    )
                if files:
                    return files[0]
        if optional:
            return self.root / names[0]
        if not self.root.is_dir():
            raise BadRow(str(self.root), "folder", "is not a folder", "pass the folder of the dataset")
        folders = ", ".join(dict.fromkeys(str(folder) for folder in self._folders()))
        reason = f"no {' or '.join(names)} in {folders}"
        raise BadRow(str(self.root), "folder", reason, "pass the folder that holds it as root or annotation")

    def _folders(self) -> list[Path]:
        folders = [self.root / folder for folder in ANNOTATION_FOLDERS]
        if self.annotation is not None:
            if not self.annotation.exists():
                raise BadRow(str(self.annotation), "file", "is not there", "check the annotation's path")
            folders.insert(0, self.annotation if self.annotation.is_dir() else self.annotation.parent)
        return folders


def plain_name(name: str) -> str:
    """A class name without commas and doubled spaces, in one Unicode form.

    The authors' lists leave the commas out.
    """
    return unicodedata.normalize("NFC", " ".join(name.replace(",", "").split()))


def class_ids(classes: Sequence[str], file: str) -> dict[str, int]:
    """Class ids by `plain_name`.

    Raises: BadRow for a name that occurs twice.
    """
    ids = {plain_name(name): index for index, name in enumerate(classes)}
    if len(ids) != len(classes):
        twice = next(name for index, name in enumerate(classes) if ids[plain_name(name)] != index)
        raise BadRow(file, "file", f"has class {twice!r} twice", "keep one of the two")
    return ids


def class_id(name: str, ids: dict[str, int], file: str, where: str) -> int:
    """The id of a class by its name."""
    if plain_name(name) not in ids:
        reason = f"class {name.strip()!r} is not among the {len(ids)} of the label file"
        raise BadRow(file, where, reason, "use the label file of the same release")
    return ids[plain_name(name)]


def label_id(value: Any, classes: Sequence[str], file: str, where: str) -> int:
    """A class id from a number, which may be written as text."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    label = int(value) if is_number or (isinstance(value, str) and value.isdecimal()) else -1
    if not 0 <= label < len(classes):
        reason = f"class {value!r} is not one of 0 to {len(classes) - 1}"
        raise BadRow(file, where, reason, "use the label file of the same release")
    return label


def clip_name(name: str, file: str, where: str) -> str:
    """Return `name` if it is a plain file name.

    Raises: BadRow.
    """
    if "/" in name or "\\" in name:
        raise BadRow(file, where, f"{name!r} is not a plain file name", "repair the row")
    return clip_path(name, file, where)


def clip_path(name: str, file: str, where: str) -> str:
    """Return `name` if it is a relative path that stays below its folder.

    Raises: BadRow.
    """
    absolute = name[:1] in ("/", "\\") or PureWindowsPath(name).is_absolute()
    controls = any(letter < " " or "\ud800" <= letter <= "\udfff" for letter in name)
    if not name.strip() or absolute or controls or ".." in re.split(r"[/\\]", name):
        reason = f"{name!r} is not a path below the video folder"
        raise BadRow(file, where, reason, "name a file below the video folder")
    return name


def read_json_file(path: Path) -> Any:
    """Read one json document.

    Raises: BadRow with the broken line.
    """
    try:
        return json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "file"
        raise BadRow(str(path), where, f"broken JSON: {error}", "download it again") from None


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, stripped, with their numbers from 1."""
    lines = [(number, line.strip()) for number, line in enumerate(read_text(path).split("\n"), 1)]
    return [(number, line) for number, line in lines if line]


def read_text(path: Path) -> str:
    """Read a whole text file.

    Raises: BadRow if it cannot be read, is not UTF-8, or is empty.
    """
    try:
        if path.stat().st_size > MAX_ANNOTATION_BYTES:
            reason = f"has more than {MAX_ANNOTATION_BYTES:,} bytes"
            raise BadRow(str(path), "file", reason, "check the path")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BadRow(str(path), "file", f"cannot be read ({error.strerror})", "check the path") from None
    except UnicodeDecodeError as error:
        raise BadRow(str(path), "file", f"is not UTF-8 text ({error})", "save it as UTF-8") from None
    if not text.strip():
        raise BadRow(str(path), "file", "is empty", "download it again")
    return text


def text_places(path: Path) -> Iterator[tuple[str, str]]:
    """(where, line) of a text file, for `Annotation.add`."""
    return ((f"line {number}", line) for number, line in read_lines(path))


def json_places(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of a list of json objects, for `Annotation.add`."""
    return ((f"row {index}", row) for index, row in enumerate(read_json_rows(path)))


def check_repeats(annotation: Annotation) -> None:
    """Raise the bad rows of an annotation; a clip that was listed before is one of them."""
    first: dict[str, str] = {}
    for row in annotation.rows:
        if row.clip_id in first:
            reason = f"clip {row.clip_id!r} is already listed at {first[row.clip_id]}"
            annotation.bad.append(BadRow(annotation.file, row.where, reason, "keep one of the two rows"))
        first.setdefault(row.clip_id, row.where)
    raise_bad_rows(annotation.bad)
    if not annotation.rows:
        raise BadRow(annotation.file, "file", "lists no clip", "check that it is the right file")
