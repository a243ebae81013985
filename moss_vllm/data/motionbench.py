"""MotionBench (multiple choice, options inside the question string) and its captioned training clips.

Layout of the hub's `zai-org/MotionBench`: `MotionBench/{video_info.meta.jsonl, self-collected/,
public-dataset/}`, `MotionBenchCaption-train/{train.jsonl, videos/}`. No field names the split: a test
question's answer is the string "NA" (4,034 of 8,052), the other 4,018 are the dev split of the paper's
Table 5. `start` and `end` of a question are not applied: the hosted file is the clip.
"""

import re
from pathlib import Path
from typing import Any, Literal

from moss_vllm.data.annotations import (
    collect_videos,
    find_annotation,
    find_video,
    name_field,
    open_rows,
    read_clip_rows,
    read_json_rows,
    text_field,
    video_stem,
)
from moss_vllm.data.rows import CAPTION_PROMPT, BadRow, BenchmarkVideo, ClipRow, Question, Rows, Turn

# The paper's codes in the order of Table 5 -> the files' `question_type`.
MOTIONBENCH_TASKS = {
    "MR": "Motion Recognition",
    "LM": "Location-related Motion",
    "CM": "Camera Motion",
    "MO": "Motion-related Objects",
    "AO": "Action Order",
    "RC": "Repetition Count",
}
META_FILES = ("video_info.meta.jsonl", "MotionBench/video_info.meta.jsonl")
MOTIONBENCH_FOLDERS = (
    "",
    "videos",
    "self-collected",
    "public-dataset",
    "MotionBench/self-collected",
    "MotionBench/public-dataset",
)
CAPTION_FILES = ("train.jsonl", "MotionBenchCaption-train/train.jsonl")
CAPTION_FOLDERS = ("", "videos", "MotionBenchCaption-train/videos")
WITHHELD_ANSWER = "NA"
SPLITS = ("dev", "test", "all")


def read_motionbench(
    meta: str | Path,
    video_root: str | Path,
    *,
    split: Literal["dev", "test", "all"] = "dev",
    allow_missing: bool = False,
) -> list[BenchmarkVideo]:
    """Read the questions of one split; only their videos have to exist.

    With `allow_missing`, a missing video has no path.

    Raises: BadRow or BadRows.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown MotionBench split {split!r}; use one of {', '.join(SPLITS)}")
    path = find_annotation(meta, META_FILES)
    file, bad = str(path), list[BadRow]()
    listed: list[tuple[str, str, Question]] = []  # video name, place, question
    for index, row in enumerate(read_json_rows(path)):
        try:
            name = name_field(row, "video_path", file=file, where=f"row {index}")
            where = f"row {index} (video {name!r})"
            if not isinstance(row.get("qa"), list) or not row["qa"]:
                raise BadRow(file, where, "'qa' is not a filled list", "fill it or remove the row")
        except BadRow as error:
            bad.append(error)
            continue
        for item in row["qa"]:
            try:
                question, place = _read_question(item, row, split, file, where)
            except BadRow as error:
                bad.append(error)
                continue
            if question is not None:
                listed.append((name, place, question))
    if not listed and not bad:
        raise BadRow(file, "file", f"has no question of split {split!r}", f"choose from {', '.join(SPLITS)}")
    return collect_videos(
        listed,
        lambda name, where: find_video(video_root, name, MOTIONBENCH_FOLDERS, file=file, row=where),
        file,
        bad,
        allow_missing=allow_missing,
    )


def read_motionbench_captions(
    annotation: str | Path | Rows, video_root: str | Path, *, bad: list[BadRow] | None = None
) -> list[ClipRow]:
    """Read MotionBenchCaption-train: a line each with `video_path` and `motion_caption`, at least.

    `bad` and Raises: as in `annotations.read_clip_rows`.
    """
    found = open_rows(annotation, CAPTION_FILES)
    file = found.file

    def read_row(row: dict[str, Any], index: int) -> ClipRow:
        name = name_field(row, "video_path", file=file, where=f"row {index}")
        where = f"row {index} (video {name!r})"
        caption = text_field(row, "motion_caption", file=file, where=where)
        clip = find_video(video_root, name, CAPTION_FOLDERS, file=file, row=where)
        return ClipRow(video_stem(name), clip, (Turn(CAPTION_PROMPT, caption),), None, None)

    return read_clip_rows(found, read_row, bad, repeated="its video was already captioned")


def _read_question(
    item: Any, row: dict[str, Any], split: str, file: str, where: str
) -> tuple[Question | None, str]:
    """Check one entry of `qa`; return its question (None: of another split) and its place for messages."""
    if not isinstance(item, dict):
        raise BadRow(file, where, f"an entry of 'qa' is a {type(item).__name__}", "make it an object {...}")
    uid = text_field(item, "uid", file=file, where=where)
    where = f"{where}, uid {uid!r}"
    answer = text_field(item, "answer", file=file, where=where)
    if split not in ("all", "test" if answer == WITHHELD_ANSWER else "dev"):
        return None, where
    kind = text_field(row, "question_type", file=file, where=where)
    codes = {name: code for code, name in MOTIONBENCH_TASKS.items()}
    if kind not in codes:
        raise BadRow(file, where, f"unknown question_type {kind!r}", f"use one of {', '.join(codes)}")
    raw = text_field(item, "question", file=file, where=where)
    text, options = _split_options(raw, file, where)
    letters = "ABCDEF"[: len(options)]
    if answer != WITHHELD_ANSWER and answer not in list(letters):
        reason = f"answer {answer!r} is not among its options {', '.join(letters)}"
        raise BadRow(
            file, where, reason, f"write one of these letters, or {WITHHELD_ANSWER!r} if it is withheld"
        )
    return Question(
        uid, codes[kind], text, options, None if answer == WITHHELD_ANSWER else answer, raw
    ), where


def _split_options(raw: str, file: str, where: str) -> tuple[str, tuple[str, ...]]:
    """Split a question into its text and options A, B, ...; a line without a letter continues the last."""
    text: list[str] = []
    options: list[list[str]] = []
    letters = ""
    for line in raw.splitlines():
        # No question has more than six options; "G" is matched to refuse it, "U.S. ..." is text.
        option = re.match(r"\s*([A-G])[.)](.*)", line)
        if option:
            letters += option[1]
            options.append([option[2]])
        else:
            (options[-1] if options else text).append(line)
    joined = tuple("\n".join(lines).strip() for lines in options)
    if letters not in ("ABC", "ABCD", "ABCDE", "ABCDEF") or "" in joined:
        reason = f"options are lettered {', '.join(letters) or 'not at all'}, with {joined.count('')} empty"
        raise BadRow(file, where, reason, "write 3 to 6 lines 'A. ...', 'B. ...' in order into 'question'")
    return "\n".join(text).strip(), joined


def motionbench_prompt(question: Question) -> str:
    """Ask with the question string as distributed and VideoLLaMA3's multiple-choice request.

    MotionBench publishes no prompt of its own.

    Reference: DAMO-NLP-SG/VideoLLaMA3, evaluation/benchmarks/mvbench.py (the last sentence).
    """
    return (
        f"{question.raw}\n"
        "Answer with the option's letter from the given choices directly and only give the best option."
    )
