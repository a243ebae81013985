"""Make FAVOR-Train ready to train on: cut the clips out of uncut YouTube videos, list what is missing or bad.

    python scripts/prepare_favor.py --data FAVOR                    # finds train.json and the hosted videos
    python scripts/prepare_favor.py --data sft.json --videos DIR --out DIR

Of its 17,152 clips 3,114 are hosted; for the others the annotation has the YouTube link, start and end. This
script downloads nothing. Run it once, fetch the videos on its lists with a downloader of your choice into the
folder of the videos, one file `<YouTube id>.mp4` (or .mkv, .webm) each, and run it again; for example

    yt-dlp -a OUT/missing_urls.txt -S vcodec:h264,res:480 -o "VIDEOS/%(id)s.%(ext)s"

Writes to `--out`: `kept.json`, the rows with a clip, to train on with `--data OUT/kept.json`;
`videos/FAVOR-Train/`, the clips cut (encoded again, without sound, every frame decoded to check) and links
to hosted clips; `missing.jsonl` and `missing_urls.txt`; `rejected.jsonl` with the reasons. A clip is cut
once, so the same command continues a run that was stopped.
"""

import json
import os
import shutil
import sys
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import av

from moss_vllm.commands.scripts.check_videos import LIMIT_S
from moss_vllm.data.annotations import (
    OTHER_SUFFIXES,
    find_annotation,
    find_video,
    name_field,
    read_json_rows,
    text_field,
    video_stem,
)
from moss_vllm.data.favor import TRAIN_FILES, TRAIN_FOLDERS, cut_times, youtube_id
from moss_vllm.data.rows import BadRow, MissingVideo
from moss_vllm.runtime.files import refuse_unwritable, whole_file
from moss_vllm.runtime.flags import Flags
from moss_vllm.runtime.progress import show_progress
from moss_vllm.runtime.ranges import FROM_ONE
from moss_vllm.runtime.screen import plain, say
from moss_vllm.runtime.spelling import command
from moss_vllm.video.cutting import cut_clip
from moss_vllm.video.frames import BadVideo
from moss_vllm.video.isolated import Failure, run_isolated
from moss_vllm.video.packets import index_frames

ROOM_BYTES = 200 * 2**20  # free on the disk; with less, good clips fail


class Cut(NamedTuple):
    """A part of a source video and the clip it becomes."""

    target: str
    start_s: float
    end_s: float


def main(argv: list[str] | None = None) -> int:
    """Sort, cut, write, print the summary; returns 0 if rows were kept, or 1."""
    parser = Flags(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with train.json, or the annotation file")
    add("--videos", type=Path, help="folder of hosted clips and uncut videos (default: the annotation's)")
    add("--out", type=Path, help="folder to write (default: `prepared` beside the annotation)")
    cores = os.cpu_count() or 1
    add("--workers", type=FROM_ONE, default=cores, help="processes that cut")
    limit = "seconds that all the clips of one uncut video may take"
    add("--limit-s", type=LIMIT_S, default=1800.0, help=limit)
    args = parser.parse_args(argv)
    try:
        annotation = find_annotation(args.data, TRAIN_FILES)
        rows = read_json_rows(annotation)
    except (ValueError, OSError) as error:
        parser.error(plain(error))
    videos, out = args.videos or annotation.parent, args.out or annotation.parent / "prepared"
    try:
        refuse_unwritable(out, "--out")
    except ValueError as error:
        parser.error(plain(error))
    if not videos.is_dir():
        parser.error(plain(f"--videos {videos} is not a folder"))
    out.mkdir(parents=True, exist_ok=True)

    for folder in out.glob(".cutting-*"):  # of a run that was killed
        shutil.rmtree(folder, ignore_errors=True)
    places: dict[str, int] = {}  # clip -> row
    missing: list[dict[str, Any]] = []
    rejected: dict[int, str] = {}
    todo: dict[str, list[Cut]] = defaultdict(list)  # source -> its parts
    for index, row in enumerate(rows):
        try:
            target, source = place_row(row, index, annotation, videos, out)
            if (first := places.setdefault(str(target), index)) != index:
                raise BadRow(str(annotation), index, f"its video is that of row {first}", "keep one of them")
            if source is not None:
                todo[str(source)].append(Cut(str(target), *cut_times(row, str(annotation), index)))
        except MissingVideo:
            missing.append(describe_missing(row, index))
        except BadRow as error:
            rejected[index] = error.reason
        except OSError as error:
            rejected[index] = f"its clip cannot be put in place: {error.strerror}"

    n_cut = 0
    try:
        for cut, reason in cut_all(todo, out, args.workers, args.limit_s):
            if not reason:
                n_cut += 1
                continue
            if (free := shutil.disk_usage(out).free) < ROOM_BYTES:
                parser.error(f"{out} has {free / 2**20:.0f} MiB free; free space and run this again")
            rejected[places[cut.target]] = reason
            say(f"bad: {Path(cut.target).name}: {reason}", file=sys.stderr)
    except KeyboardInterrupt:
        say("stopped; the same command continues from here", file=sys.stderr)
        return 130
    gone = rejected.keys() | {item["row"] for item in missing}
    kept = [row for index, row in enumerate(rows) if index not in gone]
    write_lists(out, rows, kept, rejected, missing)
    say(
        f"kept {len(kept):,} of {len(rows):,} rows: {n_cut:,} cut now, {len(rejected):,} bad, "
        f"{len(missing):,} missing"
    )
    if missing:
        say(f"missing videos go into {videos}; urls: {out / 'missing_urls.txt'}; then run this again")
    say("next:", command("scripts/check_videos.py", "--data", out / "kept.json"))
    return 0 if kept else 1


def place_row(
    row: dict[str, Any], index: int, annotation: Path, videos: Path, out: Path
) -> tuple[Path, Path | None]:
    """The path of the row's clip below `out`, and the uncut video if the clip is still to be cut.

    A hosted clip gets a link below `out`.

    Raises: MissingVideo, BadRow for a row that cannot be used, OSError if `out` cannot hold it.
    """
    file = str(annotation)
    name = name_field(row, "video_name", file=file, where=index)
    text_field(row, "caption", file=file, where=index)
    if "questions" in row:
        raise BadRow(file, index, "is a row of FAVOR-Bench, the test set", "take FAVOR-Train's annotation")
    try:
        return find_video(out, name, TRAIN_FOLDERS, file=file, row=index).absolute(), None
    except MissingVideo:
        pass  # names that lead out of the folder raise BadRow
    stem = name if name.lower().endswith(OTHER_SUFFIXES) else f"{video_stem(name)}.mp4"
    folder = (out / "videos" / "FAVOR-Train").absolute()
    target = folder / stem
    try:
        clip, source = find_video(videos, name, TRAIN_FOLDERS, file=file, row=index), None
    except MissingVideo:
        if (video_id := youtube_id(row)) is None:
            raise
        clip, source = None, find_video(videos, video_id, TRAIN_FOLDERS, file=file, row=index)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise BadRow(file, index, f"video name {name!r} follows a link out of {folder}", "remove the link")
    if clip is None:
        return target, source
    if not clip.stat().st_size:
        raise BadRow(file, index, f"{clip} is empty (0 bytes)", "download it again")
    link = target.with_name(f".{uuid.uuid4().hex}.link")
    link.symlink_to(os.path.relpath(clip.resolve(), target.parent.resolve()))
    os.replace(link, target)
    return target, None


def describe_missing(row: dict[str, Any], index: int) -> dict[str, Any]:
    """A line of missing.jsonl."""
    fields = {key: row.get(key) for key in ("video_name", "url", "start", "end")}
    return {"row": index, "video_id": youtube_id(row), **fields}


def cut_all(todo: dict[str, list[Cut]], out: Path, workers: int, limit_s: float) -> Iterator[tuple[Cut, str]]:
    """Cut every part of every source; yield each with the reason of its failure, or ""."""

    def outcomes(parts_folder: str) -> Iterator[tuple[Cut, str]]:
        work = partial(cut_source, parts_folder)
        for (_, cuts), reasons in run_isolated(work, todo.items(), workers=workers, limit_s=limit_s):
            if isinstance(reasons, Failure):  # a target is renamed last, so one that exists is whole
                reason = reasons.reason
                reasons = ["" if os.path.exists(cut.target) else reason for cut in cuts]
            yield from zip(cuts, reasons, strict=True)

    with TemporaryDirectory(prefix=".cutting-", dir=out) as folder:
        yield from show_progress(outcomes(folder), sum(map(len, todo.values())), "clips")


def cut_source(parts_folder: str, job: tuple[str, list[Cut]]) -> list[str]:
    """Cut all parts of one source; returns the reason of failure for each, or ""."""
    source, cuts = job
    try:
        index = index_frames(source)
    except BadVideo as error:
        return [str(error)] * len(cuts)
    reasons = []
    for cut in cuts:
        part = os.path.join(parts_folder, f"{uuid.uuid4().hex}.mp4")
        try:
            cut_clip(source, part, cut.start_s, cut.end_s, index=index)
            os.replace(part, cut.target)
            reasons.append("")
        except (BadVideo, av.FFmpegError, OSError) as error:
            reasons.append(str(error))
    return reasons


def write_lists(
    out: Path, rows: list[dict[str, Any]], kept: list[Any], rejected: dict[int, str], missing: list[Any]
) -> None:
    """Write kept.json, rejected.jsonl, missing.jsonl and missing_urls.txt."""
    with whole_file(out / "kept.json") as part:
        part.write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    bad = (
        {"row": i, "video_name": rows[i].get("video_name"), "reason": rejected[i]} for i in sorted(rejected)
    )
    _write_lines(out / "rejected.jsonl", map(json.dumps, bad))
    _write_lines(out / "missing.jsonl", map(json.dumps, missing))
    ids = dict.fromkeys(item["video_id"] for item in missing if item["video_id"])
    _write_lines(
        out / "missing_urls.txt", (f"https://www.youtube.com/watch?v={video_id}" for video_id in ids)
    )


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with whole_file(path) as part:
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
