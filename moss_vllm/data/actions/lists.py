"""The annotation files of the action-recognition datasets, as distributed: classes, and a label per clip.

Each reader returns what its files say, bad rows beside the good ones; `action.read_action` looks for the
videos. The test split is the one with published labels: "validation" of Something-Something and Kinetics.

Reference: the files of each dataset's own release; where a name may be spelled in several ways, the
spellings of open-mmlab/mmaction2 and KimManjin/CorrelationSideTuning are read too.
"""

import csv
import io
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moss_vllm.data.actions.files import (
    Annotation,
    Files,
    Listed,
    class_id,
    class_ids,
    clip_name,
    clip_path,
    json_places,
    label_id,
    read_lines,
    read_text,
    read_vocabulary,
    text_places,
)
from moss_vllm.data.rows import BadRow, text_field

_TRAIN_FOLDERS = ("train", "videos_train", "videos/train", "videos", "")
_TEST_FOLDERS = ("val", "validate", "validation", "videos_val", "videos/val", "videos", "")
_VALIDATION_WORDS = ("val", "validate", "validation")
_K400_PREFIXES = ("", "kinetics_400_", "kinetics-400_", "kinetics_", "k400_", "kinetics400/", "kinetics_400/")


def read_ssv1(files: Files, split: str) -> Annotation:
    """Something-Something V1: `id;name` lines, folders of frames. Class ids are those of the sorted names.

    Names hold commas, so `;` alone separates.
    """
    labels = files.find(("something-something-v1-labels.csv",))
    classes = tuple(sorted(line for _, line in read_lines(labels)))
    path = files.rows((f"something-something-v1-{_validation(split)}.csv",))
    file, ids = str(path), class_ids(classes, str(labels))

    def read_row(line: str, where: str) -> Listed:
        fields = line.split(";")
        if len(fields) != 2 or not all(part.strip() for part in fields):
            reason = f"{line[:80]!r} is not 'id;class name'"
            raise BadRow(file, where, reason, "use the train or validation csv: the test csv has no classes")
        clip = clip_name(fields[0].strip(), file, where)
        return Listed(clip, class_id(fields[1], ids, file, where), where, (clip,))

    folders = ("20bn-something-something-v1", "rawframes", "frames", "")
    return Annotation(file, classes, folders).add(text_places(path), read_row)


def read_ssv2(files: Files, split: str) -> Annotation:
    """Something-Something V2: json lists with `id` and `template`, webm files.

    The class is the template without its brackets; `label` has the objects in it.
    """
    labels = files.find(("something-something-v2-labels.json", "labels.json", "labels/labels.json"))
    classes = _ssv2_classes(labels)
    name = _validation(split)
    path = files.rows((f"something-something-v2-{name}.json", f"{name}.json", f"labels/{name}.json"))
    file, ids = str(path), class_ids(classes, str(labels))

    def read_row(row: dict[str, Any], where: str) -> Listed:
        clip = clip_name(text_field(row, "id", file=file, where=where), file, where)
        where = f"{where} (id {clip!r})"
        template = text_field(row, "template", file=file, where=where)
        label = class_id(re.sub(r"[\[\]]", "", template), ids, file, where)
        return Listed(clip, label, where, (f"{clip}.webm", f"{clip}.mp4"))

    folders = ("20bn-something-something-v2", "videos", "")
    return Annotation(file, classes, folders).add(json_places(path), read_row)


def _ssv2_classes(path: Path) -> tuple[str, ...]:
    """Names by index, from `{"name": "index", ...}`."""
    remedy = 'it must be {"class name": "0", ...}; download it again'
    table = read_vocabulary(path)
    if not isinstance(table, dict) or not table:
        raise BadRow(str(path), "file", f"is a {type(table).__name__}, not a filled object", remedy)
    names = {str(index): name for name, index in table.items()}
    if set(names) != {str(index) for index in range(len(table))}:
        raise BadRow(str(path), "file", f"its indices are not 0 to {len(table) - 1}, each once", remedy)
    return tuple(names[str(index)] for index in range(len(table)))


def read_diving48(files: Files, split: str) -> Annotation:
    """Diving48 V2: json lists with `vid_name` and `label`.

    The whole file is the clip, whatever `start_frame` and `end_frame` say. Class 30 has no clips.
    """
    vocabulary = files.find(("Diving48_vocab.json",))
    table = read_vocabulary(vocabulary)
    if not isinstance(table, list) or not all(isinstance(entry, list) and entry for entry in table):
        reason, remedy = "is not a list of lists of words", 'it must be [["Back", "15som", ...], ...]'
        raise BadRow(str(vocabulary), "file", reason, remedy)
    classes = tuple(" ".join(map(str, words)) for words in table)
    path = files.rows((f"Diving48_V2_{split}.json",))
    file = str(path)

    def read_row(row: dict[str, Any], where: str) -> Listed:
        clip = clip_name(text_field(row, "vid_name", file=file, where=where), file, where)
        where = f"{where} (clip {clip!r})"
        return Listed(clip, label_id(row.get("label"), classes, file, where), where, (f"{clip}.mp4",))

    folders = ("rgb", "Diving48_rgb/rgb", "Diving48_rgb", "videos", "")
    return Annotation(file, classes, folders).add(json_places(path), read_row)


def read_finegym(files: Files, split: str, data: str) -> Annotation:
    """FineGym's gym99 or gym288, v1.1: `id class` lines and a file of categories."""
    categories = files.find((f"{data}_categories.txt", f"categories/{data}_categories.txt"))
    classes, sets = _finegym_classes(categories)
    names = _finegym_sets(files.find(("set_categories.txt", "categories/set_categories.txt"), optional=True))
    path = files.rows((f"{data}_train_element_v1.1.txt" if split == "train" else f"{data}_val_element.txt",))
    file = str(path)

    def read_row(line: str, where: str) -> Listed:
        fields = line.split()
        if len(fields) != 2:
            raise BadRow(file, where, f"{line[:80]!r} is not 'id class'", "repair the line")
        clip = clip_name(fields[0], file, where)
        label = label_id(fields[1], classes, file, where)
        return Listed(clip, label, where, tuple(f"{clip}{end}" for end in (".mp4", ".mkv", ".webm")))

    folders = ("subactions", "videos", "videos/subactions", f"{data}/subactions", "")
    groups = tuple(names.get(number, f"set {number}") for number in sets)
    return Annotation(file, classes, folders, groups=groups).add(text_places(path), read_row)


def _finegym_classes(path: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and set numbers by class, from lines `Clabel: 0; set: 1; Glabel: 1; (VT) ...`."""
    found: dict[int, tuple[str, int]] = {}
    for number, line in read_lines(path):
        match = re.fullmatch(r"Clabel:\s*(\d+)\s*;\s*set:\s*(\d+)\s*;\s*Glabel:\s*\d+\s*;\s*(.+)", line)
        if not match or int(match[1]) in found:
            reason = f"{line[:80]!r} is not 'Clabel: N; set: N; Glabel: N; name' of a new class"
            raise BadRow(str(path), f"line {number}", reason, "download the file again")
        found[int(match[1])] = (match[3], int(match[2]))
    if set(found) != set(range(len(found))):
        reason = f"the labels of its {len(found)} classes are not 0 to {len(found) - 1}"
        raise BadRow(str(path), "file", reason, "download the file again")
    ordered = [found[label] for label in range(len(found))]
    return tuple(name for name, _ in ordered), tuple(number for _, number in ordered)


def _finegym_sets(path: Path) -> dict[int, str]:
    """Set names by number, from lines `set: 1; name`; none without the file."""
    lines = read_lines(path) if path.is_file() else []
    matches = [re.fullmatch(r"set:\s*(\d+)\s*;\s*(.+)", line, re.IGNORECASE) for _, line in lines]
    return {int(match[1]): match[2] for match in matches if match}


def read_k400(files: Files, split: str) -> Annotation:
    """Kinetics-400: csv files with a header; class ids are those of the sorted names in both of them."""
    words = {"train": ("train",), "test": _VALIDATION_WORDS}
    spellings = {
        part: [f"{before}{word}.csv" for before in _K400_PREFIXES for word in words[part]] for part in words
    }
    path = files.rows(spellings[split])
    file, table = str(path), list(_k400_rows(path))
    other = files.find(spellings["test" if split == "train" else "train"], optional=True)
    labels = {row["label"] for _, row in table}
    if other.is_file():
        labels |= {row["label"] for _, row in _k400_rows(other)}
    classes = tuple(sorted(labels))
    ids = class_ids(classes, file)

    def read_row(row: dict[str, str], where: str) -> Listed:
        try:
            start, end = (int(float(row[key])) for key in ("time_start", "time_end"))
        except (ValueError, OverflowError):  # infinity
            reason = f"time_start {row['time_start']!r} and time_end {row['time_end']!r} are not both numbers"
            raise BadRow(file, where, reason, "repair the row") from None
        clip = clip_name(f"{row['youtube_id']}_{start:06d}_{end:06d}", file, where)
        name, label = f"{clip}.mp4", class_id(row["label"], ids, file, where)
        folder = clip_name(row["label"], file, where)
        spelled = (f"{folder}/{name}", f"{folder.replace(' ', '_')}/{name}", name)
        return Listed(clip, label, where, spelled)

    folders = _TRAIN_FOLDERS if split == "train" else _TEST_FOLDERS
    return Annotation(file, classes, folders).add(iter(table), read_row)


def _k400_rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    needed = ("label", "youtube_id", "time_start", "time_end")
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
    lacking = [name for name in needed if name not in (reader.fieldnames or ())]
    if lacking:
        reason = f"its header has no {', '.join(lacking)}"
        raise BadRow(str(path), "line 1", reason, "use the train or validate csv: the test csv has no labels")
    try:
        for row in reader:
            where = f"line {reader.line_num}"
            lacking = [name for name in needed if not (row[name] or "").strip()]
            if lacking:
                raise BadRow(str(path), where, f"has no {', '.join(lacking)}", "repair the row")
            # The class ids are places of names: both lists need them in one Unicode form.
            yield where, {name: unicodedata.normalize("NFC", row[name].strip()) for name in needed}
    except csv.Error as error:
        raise BadRow(str(path), f"line {reader.line_num}", f"is no csv ({error})", "repair the row") from None


def read_list(files: Files, split: str) -> Annotation:
    """The authors' lists: `folder frames class` or `video class` lines, and a csv of `id,name`.

    A path may hold spaces. A number of frames must be that of the folder's images when they are read.
    """
    labels = files.find(("labels.csv", "*labels*.csv"))
    classes = _list_classes(labels)
    words = ("train",) if split == "train" else ("test", *_VALIDATION_WORDS)
    path = files.rows([f"{word}.txt" for word in words] + [f"*{word}*.txt" for word in words])
    file = str(path)

    def read_row(line: str, where: str) -> Listed:
        # From the right, for K400's folders have spaces; a video's own name never is a bare number.
        fields = line.rsplit(maxsplit=2)
        if len(fields) == 3 and not fields[1].isdecimal():
            fields = line.rsplit(maxsplit=1)
        if len(fields) < 2 or (len(fields) == 3 and int(fields[1]) < 1):
            reason = f"{line[:80]!r} is neither 'folder frames class' nor 'video class'"
            raise BadRow(file, where, reason, "repair the line")
        clip = clip_path(fields[0].rstrip("/"), file, where)
        frames = int(fields[1]) if len(fields) == 3 else None
        return Listed(clip, label_id(fields[-1], classes, file, where), where, (clip,), frames)

    return Annotation(file, classes, ("", "videos", "frames", "rawframes")).add(text_places(path), read_row)


def _list_classes(path: Path) -> tuple[str, ...]:
    lines = [line for _, line in read_lines(path)]
    if [part.strip() for part in lines[0].split(",")] != ["id", "name"]:
        raise BadRow(str(path), "line 1", f"{lines[0][:80]!r} is not the header 'id,name'", "add the header")
    # Only the first comma separates: names may have their own, quoted or not.
    fields = [line.partition(",") for line in lines[1:]]
    names = {number.strip(): name.strip().strip('"') for number, _, name in fields}
    if not names or len(names) != len(fields) or set(names) != {str(i) for i in range(len(fields))}:
        reason = f"the ids of its {len(fields)} classes are not 0 to {len(fields) - 1}, each once"
        raise BadRow(str(path), "file", reason, "number the classes from 0")
    return tuple(names[str(i)] for i in range(len(fields)))


def _validation(split: str) -> str:
    return "train" if split == "train" else "validation"
