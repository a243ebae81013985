"""Measure the times and the size of the frames that `read_clip` would return, without their pixels."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from moss_vllm.runtime.progress import show_progress
from moss_vllm.video.cache import describe_clip
from moss_vllm.video.clip import Sampling, choose_frames
from moss_vllm.video.container import native_size
from moss_vllm.video.frames import BadVideo, target_size

ClipPart = tuple[Path, float | None, float | None]  # a file, start_s, end_s


@dataclass(frozen=True)
class Probe:
    """The times and the size of a clip's frames."""

    frame_times_s: tuple[float, ...]
    height: int
    width: int


def probe_clip(
    path: str | os.PathLike[str], sampling: Sampling, *, start_s: float = 0.0, end_s: float | None = None
) -> Probe:
    """Frame times and frame size that `read_clip` gives for a file, mostly without decoding.

    Raises: BadVideo for a file that cannot be opened or ends early.
    """
    path = os.fspath(path)
    index, _, times_s = choose_frames(path, sampling, start_s=start_s, end_s=end_s)
    size = index.look.shown_size if index.look else native_size(path)
    return Probe(tuple(times_s.tolist()), *target_size(*size, sampling.short_side_px, sampling.sides))


def probe_all(
    clips: Sequence[ClipPart], sampling: Sampling, *, cache: Path | None, workers: int
) -> dict[ClipPart, Probe | BadVideo]:
    """Probe each clip, or take its probe from the cache; bad videos are not cached, as they may be repaired.

    Args:
        clips: each once.
        cache: a jsonl file to read and to append to.
        workers: threads.
    """
    cached = _read_cache(cache) if cache else {}
    keys = {clip: _cache_key(clip, sampling) for clip in clips} if cache else {}
    probes: dict[ClipPart, Probe | BadVideo] = {c: cached[k] for c, k in keys.items() if k in cached}
    new = [clip for clip in clips if clip not in probes]
    if not new:
        return probes
    log = _open_cache(cache) if cache else None
    pool = ThreadPoolExecutor(workers)
    try:
        futures = {pool.submit(_probe_one, clip, sampling): clip for clip in new}
        for future in show_progress(as_completed(futures), len(futures), "videos measured"):
            clip, probe = futures[future], future.result()
            probes[clip] = probe
            if log and isinstance(probe, Probe):
                _append(log, {"key": keys[clip], **asdict(probe)})
    finally:
        pool.shutdown(cancel_futures=True)
        if log:
            log.close()
    return probes


def _probe_one(clip: ClipPart, sampling: Sampling) -> Probe | BadVideo:
    path, start_s, end_s = clip
    try:
        return probe_clip(path, sampling=sampling, start_s=start_s or 0.0, end_s=end_s)
    except BadVideo as error:
        return error


def _cache_key(clip: ClipPart, sampling: Sampling) -> str:
    """The file's path, size and time of change, and the sampling; empty for a file that is gone."""
    path, start_s, end_s = clip
    try:
        return describe_clip(path, sampling, start_s=start_s or 0.0, end_s=end_s)
    except OSError:
        return ""


def _read_cache(path: Path) -> dict[str, Probe]:
    """Probes by key. A line torn by a killed run is skipped: its clip is measured again."""
    probes = {}
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
            times_s = tuple(map(float, entry["frame_times_s"]))
            probes[str(entry["key"])] = Probe(times_s, int(entry["height"]), int(entry["width"]))
        except (ValueError, TypeError, KeyError):
            continue
    return probes


def _open_cache(path: Path) -> BinaryIO:
    """Open to append, unbuffered, so that each write is one whole line; ends a torn last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.open("ab", buffering=0)
    if path.read_bytes()[-1:] not in (b"", b"\n"):
        log.write(b"\n")
    return log


def _append(log: BinaryIO, entry: dict[str, Any]) -> None:
    try:
        log.write(json.dumps(entry).encode() + b"\n")
    except OSError as error:
        raise OSError(f"{log.name} cannot be written ({error.strerror}); make room there") from error
