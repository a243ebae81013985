"""FAVOR-Train (captioned clips) and FAVOR-Bench (multiple choice; answers are option text, not letters).

Layout of the hub's `zl2048/FAVOR`: `video_perspective.json`, `question_perspective.json` (the same questions
as a flat list), a train annotation, `videos/FAVOR-Bench/`, `videos/FAVOR-Train/`.
"""

import math
import re
from pathlib import Path
from typing import Any

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
from moss_vllm.data.rows import (
    CAPTION_PROMPT,
    BadRow,
    BenchmarkVideo,
    ClipRow,
    MissingVideo,
    Question,
    Rows,
    Turn,
)

# Codes as in the files, order of the paper's Table 5.
FAVOR_TASKS = {
    "AS": "Action Sequence",
    "CM": "Camera Motion",
    "HAC": "Holistic Action Classification",
    "MAD": "Multiple Action Details",
    "NSM": "Non-subject Motion",
    "SAD": "Single Action Detail",
}
BENCH_FILES = ("video_perspective.json", "question_perspective.json")
TRAIN_FILES = ("train.json", "sft.json")
BENCH_FOLDERS = ("", "videos/FAVOR-Bench", "FAVOR-Bench", "videos")
TRAIN_FOLDERS = ("", "videos/FAVOR-Train", "FAVOR-Train", "videos")


def read_favor_train(
    annotation: str | Path | Rows, video_root: str | Path, *, bad: list[BadRow] | None = None
) -> list[ClipRow]:
    """Read a JSON list of rows with `video_name` and `caption`; other keys are allowed.

    `start` and `end` are seconds in the YouTube video at `url`. The file `video_name` is that part, cut out;
    without it, `start` and `end` are applied to the uncut `<YouTube id>.mp4`.

    Of the 17,152 rows 3,114 have a hosted file. `bad` and Raises: as in `annotations.read_clip_rows`.
    """
    found = open_rows(annotation, TRAIN_FILES)
    file = found.file

    def read_row(row: dict[str, Any], index: int) -> ClipRow:
        name = name_field(row, "video_name", file=file, where=f"row {index}")
        where = f"row {index} (video {name!r})"
        if "questions" in row:  # FAVOR-Bench's rows have captions too
            reason = "is a row of FAVOR-Bench, the test set"
            raise BadRow(file, where, reason, "train on FAVOR-Train's own annotation file")
        caption = text_field(row, "caption", file=file, where=where)
        clip, start_s, end_s = _find_clip(row, name, video_root, file, where)
        said = (Turn(CAPTION_PROMPT, caption),)
        return ClipRow(video_stem(name), clip, said, start_s, end_s, cut_from=youtube_id(row))

    return read_clip_rows(found, read_row, bad, repeated="its video was already captioned")


def _find_clip(
    row: dict[str, Any], name: str, video_root: str | Path, file: str, where: str
) -> tuple[Path, float | None, float | None]:
    """Find the cut clip, or the uncut YouTube video and the seconds to cut."""
    try:
        return find_video(video_root, name, TRAIN_FOLDERS, file=file, row=where), None, None
    except MissingVideo as missing:
        source = youtube_id(row)
        if source is None or "start" not in row or "end" not in row:
            raise
        try:
            path = find_video(video_root, f"{source}.mp4", TRAIN_FOLDERS, file=file, row=where)
        except MissingVideo:
            raise missing from None
    return path, *cut_times(row, file, where)


def youtube_id(row: dict[str, Any]) -> str | None:
    """The id in the row's `url`."""
    match = re.search(r"(?:v=|youtu\.be/|shorts/|embed/)([\w-]{11})(?![\w-])", str(row.get("url")), re.ASCII)
    return match[1] if match else None


def cut_times(row: dict[str, Any], file: str, where: str | int) -> tuple[float, float]:
    """The row's `start` and `end` in seconds, which may be written as text.

    Raises: BadRow.
    """
    try:
        start_s, end_s = float(row["start"]), float(row["end"])
    except (KeyError, TypeError, ValueError, OverflowError):
        start_s = end_s = math.nan
    if not 0 <= start_s < end_s < math.inf:
        times = f"start {row.get('start')!r:.1000} and end {row.get('end')!r:.1000}"
        reason = f"{times} are not seconds with 0 <= start < end"
        raise BadRow(file, where, reason, "write both as seconds in the YouTube video")
    return start_s, end_s


def read_favor_bench(
    annotation: str | Path, video_root: str | Path, *, allow_missing: bool = False
) -> list[BenchmarkVideo]:
    """Read `video_perspective.json` or the flat `question_perspective.json`.

    A uid is the file's `question_key`, or `<video>_<n>` with n counted from 1 per video. With
    `allow_missing`, a missing video has no path.

    Raises: BadRow or BadRows.
    """
    path = find_annotation(annotation, BENCH_FILES)
    file, bad = str(path), list[BadRow]()
    listed: list[tuple[str, str, Question]] = []  # video name, place, question
    counts: dict[str, int] = {}
    for index, row in enumerate(read_json_rows(path)):
        try:
            name = name_field(row, "video_name", file=file, where=f"row {index}")
            where = f"row {index} (video {name!r})"
            questions = row.get("questions", [row])
            if not isinstance(questions, list) or not questions:
                raise BadRow(file, where, "'questions' is not a filled list", "fill it or remove the row")
        except BadRow as error:
            bad.append(error)
            continue
        counts.setdefault(video_stem(name), 0)
        if "questions" in row and counts[video_stem(name)]:
            bad.append(BadRow(file, where, "its video was already listed", "keep one of the two rows"))
            continue
        for item in questions:
            counts[video_stem(name)] += 1
            uid = f"{video_stem(name)}_{counts[video_stem(name)]}"
            try:
                question, place = _read_question(item, uid, file, where)
                listed.append((name, place, question))
            except BadRow as error:
                bad.append(error)
    return collect_videos(
        listed,
        lambda name, where: find_video(video_root, name, BENCH_FOLDERS, file=file, row=where),
        file,
        bad,
        allow_missing=allow_missing,
    )


def _read_question(item: Any, uid: str, file: str, where: str) -> tuple[Question, str]:
    """Check one question; return it and its place for messages."""
    if not isinstance(item, dict):
        raise BadRow(file, f"{where}, question {uid!r}", "is not an object", "make it an object {...}")
    if "question_key" in item:
        uid = text_field(item, "question_key", file=file, where=where)
    where = f"{where}, question {uid!r}"
    raw = text_field(item, "question", file=file, where=where)
    answer = text_field(item, "correct_answer", file=file, where=where)
    task = text_field(item, "task_type", file=file, where=where)
    if task not in FAVOR_TASKS:
        raise BadRow(file, where, f"unknown task_type {task!r}", f"use one of {', '.join(FAVOR_TASKS)}")
    options = item.get("options")
    if not isinstance(options, list) or not 2 <= len(options) <= 26:
        raise BadRow(file, where, f"options are {options!r}", "give a list of 2 to 26 option texts")
    for number, option in enumerate(options):
        text_field({f"option {number}": option}, f"option {number}", file=file, where=where)
    if answer.strip() not in [option.strip() for option in options]:
        reason = f"answer {answer!r} is none of its options {options!r}"
        raise BadRow(file, where, reason, "copy the right option's text, not its letter, into correct_answer")
    return Question(uid, task, raw, tuple(options), answer, raw), where


def favor_prompt(question: Question) -> str:
    """Ask as FAVOR-Bench does: options as a Python list, "response" verbatim.

    Reference: FAVOR-Bench/FAVOR-Bench, inference_qa_qwen.py.
    """
    return (
        "Carefully watch the video and pay attention to temporal dynamics in this video, focusing on the "
        "camera motions, actions, activities, and interactions. Based on your observations, select the best "
        f"option that accurately addresses the question.\n{question.raw}\n"
        f"You can only response with the answer among {list(question.options)}"
    )


def favor_letter_prompt(question: Question) -> str:
    """Ask for a letter, as VideoLLaMA3's own multiple-choice evaluations do.

    Reference: DAMO-NLP-SG/VideoLLaMA3, evaluation/benchmarks/mvbench.py.
    """
    listed = "".join(f"({chr(ord('A') + n)}) {option}\n" for n, option in enumerate(question.options))
    suffix = "Answer with the option's letter from the given choices directly and only give the best option."
    return f"Question: {question.raw}\nOptions:\n{listed}{suffix}"


def favor_answer_letter(question: Question) -> str:
    """Return the letter of the right option, for answers to `favor_letter_prompt`."""
    if question.answer is None:
        raise ValueError(f"FAVOR question {question.uid!r} has no answer; score only questions that have one")
    position = [option.strip() for option in question.options].index(question.answer.strip())
    return chr(ord("A") + position)
