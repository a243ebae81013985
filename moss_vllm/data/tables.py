"""Rows of tables: parquet, csv, Arrow, what `datasets` saved, and tar shards of WebDataset.

`datasets` finds the files of a folder's splits and reads them; nothing is decoded, and no code of a data set
runs. Tar shards are read here: the library ends at the first shard whose json has other keys than the rows
before.
"""

import importlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfFileSystem

from moss_vllm.data.annotations import read_json_rows
from moss_vllm.data.rows import BadRow, Rows
from moss_vllm.data.stored_videos import as_fields

# Suffixes of tables, and the library's names of what reads them.
MODULES = {".parquet": "parquet", ".csv": "csv", ".arrow": "arrow", ".tar": "webdataset"}
SAVED = ("state.json", "dataset_dict.json")  # beside what `save_to_disk` wrote
OLD_INFO = "dataset_infos.json"  # what older data sets of the hub say of themselves
INSTALL = "pip install 'moss_vllm[datasets]'"
AT_ONCE = 16  # rows in memory, each with its video


class SplitFiles(NamedTuple):
    """The files of one split, what reads them ("saved" for a folder of `save_to_disk`), and their folder."""

    module: str
    files: Sequence[Path | str]  # text: an address on the hub
    root: Path
    split: str | None = None


def library() -> Any:
    """The package `datasets`, an extra of this one."""
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise ImportError(
            "tables and data sets of the hub are read by the package datasets, which is not installed; "
            f"{INSTALL}, or name a .json or .jsonl file"
        ) from error


def find_table(path: Path, split: str | None) -> SplitFiles | None:
    """The table that a file or folder is; None for json, and for what holds no table.

    Raises: BadRow for a folder without that split, or with several and none called "train".
    """
    if path.is_file() and (module := MODULES.get(path.suffix.lower())) and not split:
        return SplitFiles(module, [path], path.parent)
    if any((path / name).is_file() for name in SAVED):
        return SplitFiles("saved", [path], path, split)
    annotations = {file.name for file in path.glob("*.json*")} - {OLD_INFO}
    if not path.is_dir() or annotations or not holds_table(path):
        return None
    module, files = find_split(str(path.resolve()), split, str(path))
    return SplitFiles(module, [Path(file) for file in files], path.resolve())


def holds_table(folder: Path) -> bool:
    """Whether a table lies anywhere below a folder."""
    return any(next(folder.rglob(f"*{suffix}"), None) for suffix in MODULES)


def find_split(place: str, split: str | None, file: str, **options: Any) -> tuple[str, list[str]]:
    """What reads a folder or data set of the hub, and the files of its split.

    Args:
        file: its name in messages.
        options: of `datasets.load_dataset_builder`.

    Raises: as `find_table`.
    """
    datasets = library()
    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(place, **options)
    except Exception as error:  # of several libraries
        raise BadRow(file, "data set", _one_line(error), "name its files, as they lie on disk") from error
    by_split = dict(builder.config.data_files or {})
    return builder.name, list(by_split[choose_split(list(by_split), split, file)])


def choose_split(splits: Sequence[str], split: str | None, file: str) -> str:
    """The split asked for, or the only one, or "train".

    Raises: BadRow that lists the splits.
    """
    chosen = split or ("train" if "train" in splits or len(splits) != 1 else splits[0])
    if chosen in splits:
        return chosen
    names = ", ".join(map(str, splits)) or "no split"
    raise BadRow(file, "data set", f"has no split {chosen!r}", f"it has {names}; write it as PATH:SPLIT")


def read_table(table: SplitFiles, file: str, folder: Path) -> Rows:
    """Every row of a table as the fields of a JSON row.

    Args:
        file: its name in messages.
        folder: where videos held as bytes are written.

    Raises: BadRow for a file that cannot be read, or without rows.
    """
    rows = [
        read_cells(cells, table.root, folder, file, number) for number, cells in numbered_cells(table, file)
    ]
    if not any(isinstance(row, dict) for row in rows):
        raise BadRow(file, "file", f"has {len(rows)} rows, none of which can be read", "check the path")
    return Rows(file, rows)


def numbered_cells(table: SplitFiles, file: str) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """The cells of each row by column, with its number; a ValueError stands for a row that cannot be read.

    Raises: BadRow for a file that cannot be read on.
    """
    number = -1
    try:
        for number, cells in enumerate(_cells(table, file)):
            yield number, cells
    except (BadRow, ImportError):
        raise
    except Exception as error:  # of several libraries
        after = f"after row {number} " if number >= 0 else ""
        remedy = "repair it, or download it again"
        raise BadRow(file, "file", f"cannot be read {after}({_one_line(error)})", remedy) from error


def read_cells(cells: Any, root: Path, folder: Path, file: str, number: int) -> dict[str, Any] | BadRow:
    """The fields of a row, or why it has none; arguments as for `as_fields`."""
    try:
        if isinstance(cells, ValueError):
            raise cells
        return as_fields(cells, root, folder)
    except ValueError as error:
        return BadRow(file, f"row {number}", str(error), "repair or remove the row")


def _cells(table: SplitFiles, file: str) -> Iterator[dict[str, Any] | ValueError]:
    if table.module == "webdataset":
        for shard in table.files:
            opened = HfFileSystem().open(shard, block_size=0) if is_on_hub(shard) else open(shard, "rb")
            with opened, tarfile.open(fileobj=opened, mode="r|*") as tar:
                yield from read_shard(tar)
    elif table.module == "json":
        for one in table.files:
            yield from read_json_rows(one)
    elif table.module == "saved":
        saved = library().load_from_disk(str(table.files[0]))
        if isinstance(saved, dict):
            saved = saved[choose_split(list(saved), table.split, file)]
        elif table.split:
            raise BadRow(file, "data set", "has no splits", f"leave ':{table.split}' out")
        yield from plain_rows(saved)
    else:
        files = {"train": [str(one) for one in table.files]}
        yield from plain_rows(
            library().load_dataset(table.module, data_files=files, split="train", streaming=True)
        )


def is_on_hub(file: Path | str) -> bool:
    """Whether a file of a table is an address on the hub."""
    return str(file).startswith("hf://")


def plain_rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """The rows of a data set as they are stored: no video, image or sound is decoded."""
    # By `iter`: in a DataLoader's worker the data set itself would leave the rows of other workers out.
    for batch in dataset.with_format("arrow").iter(batch_size=AT_ONCE):
        yield from batch.to_pylist()


def read_shard(tar: tarfile.TarFile) -> Iterator[dict[str, Any] | ValueError]:
    """The samples of a tar file: files side by side whose names agree up to the first dot.

    The fields of its json are those of the row, and its txt is the caption.
    """
    sample: dict[str, dict[str, Any]] = {}
    key = None
    for member in tar:
        content = tar.extractfile(member) if member.isfile() else None
        if content is None:
            continue
        folder, _, name = member.name.rpartition("/")
        stem, _, column = name.partition(".")
        if (folder, stem) != key:
            if sample:
                yield _sample_row(sample)
            sample, key = {}, (folder, stem)
        sample[column] = {"path": member.name, "bytes": content.read()}
    if sample:
        yield _sample_row(sample)


def _sample_row(sample: dict[str, dict[str, Any]]) -> dict[str, Any] | ValueError:
    row: dict[str, Any] = {}
    try:
        for column, value in sample.items():
            if column == "json":
                fields = json.loads(value["bytes"])
                if not isinstance(fields, dict):
                    return ValueError(f"{value['path']} is a {type(fields).__name__}, not an object")
                row |= fields
            elif column == "txt":
                row.setdefault("caption", value["bytes"].decode().strip())
            else:
                row[column] = value
    except (ValueError, RecursionError) as error:
        return ValueError(f"{value['path']} cannot be read: {error}")
    return row


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
