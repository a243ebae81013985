"""Conversations to train on: VideoLLaMA3's own json or jsonl, and this project's jsonl (docs/data.md)."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moss_vllm.data.annotations import find_video, name_field, open_rows, read_clip_rows, text_field
from moss_vllm.data.rows import BadRow, ClipRow, Rows, Turn

VIDEO_FOLDERS = ("", "videos")
VIDEO_TAG, IMAGE_TAG = "<video>", "<image>"
# Misspelt optional keys are refused, or a part to cut would be ignored; other unknown keys are allowed.
MISSPELT = {
    **dict.fromkeys(("start", "start_time", "begin", "begin_s"), "start_s"),
    **dict.fromkeys(("end", "end_time", "stop", "stop_s"), "end_s"),
    **dict.fromkeys(("videos", "video_path", "video_name", "path", "file", "clip"), "video"),
    **dict.fromkeys(("row_id", "uid"), "id"),
}
REPAIR = "repair or remove the row"


def read_videollama3(
    annotation: str | Path | Rows, video_root: str | Path, *, bad: list[BadRow] | None = None
) -> list[ClipRow]:
    """Read VideoLLaMA3's conversations: `video` (a list of one name) and `conversations` (human, gpt, ...).

    The `<video>` tag may stand anywhere in a question or be missing; the video always comes first.
    Turns before the first human one are left out, as the authors do. `bad` and Raises: as in
    `annotations.read_clip_rows`.

    Reference: DAMO-NLP-SG/VideoLLaMA3, README.md (training data) and videollama3/train.py.
    """
    found = open_rows(annotation)
    file = found.file

    def read_row(row: dict[str, Any], index: int) -> ClipRow:
        where = f"row {index}"
        if row.get("stream"):
            raise BadRow(file, where, "stream records are not supported", "leave them out")
        if row.get("image"):
            reason = "image rows are not supported, this trains on videos"
            raise BadRow(file, where, reason, "leave them out")
        video = row.get("video")
        if isinstance(video, list) and len(video) != 1:
            raise BadRow(file, where, f"'video' lists {len(video)} videos, one is needed", REPAIR)
        name = video[0] if isinstance(video, list) else video
        if name is not None:
            name = name_field({"video": name}, "video", file=file, where=where)
            where = f"row {index} (video {name!r})"
        turns = _alternating(row.get("conversations"), name is not None, file, where)
        clip = None if name is None else find_video(video_root, name, VIDEO_FOLDERS, file=file, row=where)
        return ClipRow(f"{name or 'text'}#{index}", clip, turns, None, None)

    return read_clip_rows(found, read_row, bad)


def _alternating(parts: Any, has_video: bool, file: str, where: str) -> tuple[Turn, ...]:
    """Pair human and gpt values, with the tag of the video taken out."""
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise BadRow(file, where, "'conversations' is not a list of objects", REPAIR)
    speakers = [part.get("from") for part in parts]
    first = speakers.index("human") if "human" in speakers else len(parts)
    speakers, parts = speakers[first:], parts[first:]
    if not parts or speakers != ["human", "gpt"] * (len(parts) // 2):
        names = ", ".join(map(str, speakers)) or "nobody human"
        raise BadRow(file, where, f"speakers are {names}", "let 'human' and 'gpt' alternate and 'gpt' end")
    texts = [text_field(one, "value", file=file, where=where) for one in parts]
    tags = sum(text.count(VIDEO_TAG) for text in texts[::2])
    if tags > has_video:
        reason = f"{tags} {VIDEO_TAG} tags for {'one video' if has_video else 'no video'}"
        raise BadRow(file, where, reason, "give every tag its video, or remove it")
    if any(IMAGE_TAG in text for text in texts) or any(VIDEO_TAG in text for text in texts[1::2]):
        reason = f"has an {IMAGE_TAG} tag, or a {VIDEO_TAG} tag in an answer"
        raise BadRow(file, where, reason, REPAIR)
    questions = [text.replace(VIDEO_TAG, "").strip() for text in texts[::2]]
    if "" in questions:
        raise BadRow(file, where, f"a question is {VIDEO_TAG} alone", "ask something about the video")
    return tuple(Turn(question, answer) for question, answer in zip(questions, texts[1::2], strict=True))


def read_turns(
    annotation: str | Path | Rows, video_root: str | Path, *, bad: list[BadRow] | None = None
) -> list[ClipRow]:
    """Read this project's jsonl: `turns`, and optionally `video`, `start_s`, `end_s`, `id`.

    `bad` and Raises: as in `annotations.read_clip_rows`.
    """
    found = open_rows(annotation)
    file = found.file

    def read_row(row: dict[str, Any], index: int) -> ClipRow:
        where = f"row {index}"
        for key in row:
            if right := MISSPELT.get(key):
                raise BadRow(file, where, f"has {key!r}, which is not read", f"call it {right!r}")
        turns = row.get("turns")
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
            raise BadRow(file, where, "'turns' is not a filled list of objects", REPAIR)
        keys = ("question", "answer")
        pairs = [[text_field(turn, key, file=file, where=where) for key in keys] for turn in turns]
        start_s, end_s = (_seconds(row, key, file, where) for key in ("start_s", "end_s"))
        if not (start_s or 0.0) < (math.inf if end_s is None else end_s):
            raise BadRow(file, where, f"end_s {end_s} is not above start_s {start_s or 0.0}", REPAIR)
        name, clip = "text", None
        if "video" in row:  # null is refused: a row that lost its video would teach answers without looking
            name = name_field(row, "video", file=file, where=where)
            where = f"row {index} (video {name!r})"
            clip = find_video(video_root, name, VIDEO_FOLDERS, file=file, row=where)
        elif start_s is not None or end_s is not None:
            raise BadRow(file, where, "has start_s or end_s and no 'video'", REPAIR)
        row_id = _row_id(row, file, where) or f"{name}#{index}"
        return ClipRow(row_id, clip, tuple(Turn(*pair) for pair in pairs), start_s, end_s)

    return read_clip_rows(found, read_row, bad)


def _seconds(row: Mapping[str, Any], key: str, file: str, where: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise BadRow(file, where, f"{key} is {value!r}, not a number of seconds", "write it as a number >= 0")
    return float(value)


def _row_id(row: dict[str, Any], file: str, where: str) -> str | None:
    value = row.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None if value is None else text_field(row, "id", file=file, where=where)
