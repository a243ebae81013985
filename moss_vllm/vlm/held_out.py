"""Which rows are kept out of training, for the loss on clips that no step has seen."""

import dataclasses
import hashlib
import os
from pathlib import PurePath

from moss_vllm.data.rows import ClipRow
from moss_vllm.vlm.plan import Plan


def hold_out(plan: Plan, most: int) -> tuple[Plan, Plan]:
    """Split a plan into the rows to train on and at most `most` others; no video is in both.

    Whole videos are taken by the digest of their names, as long as their rows fit: the same ones whatever the
    seed of a run, the order of the rows or the folder, so that the curves of several runs compare. A video is
    a file, or what several files were cut from where the rows tell it; a row without one is by itself.

    Raises:
        ValueError: every video has more rows, or a source would keep none.
    """
    videos: dict[str, list[int]] = {}
    for index, row in enumerate(plan.rows):
        videos.setdefault(_video(row), []).append(index)
    taken: set[int] = set()
    for video in sorted(videos, key=lambda video: (_digest(video), video)):  # names may repeat in folders
        if len(taken) + len(videos[video]) <= most:
            taken.update(videos[video])
    if not taken:
        fewest = min(map(len, videos.values()))
        raise ValueError(f"held_out is {most} and every video has {fewest} rows or more; give at least that")
    kept = _part(plan, [index for index in range(len(plan.rows)) if index not in taken])
    if bare := [name for name, (rows, _) in zip(kept.names, kept.shares, strict=True) if not rows]:
        raise ValueError(f"held_out is {most}, which leaves {', '.join(bare)} without a row; lower it")
    kept.held_out = len(taken)
    return kept, _part(plan, sorted(taken))


def _video(row: ClipRow) -> str:
    if row.cut_from or not row.path:
        return row.cut_from or f"without a video: {row.row_id}"
    return os.path.realpath(row.path)


def _digest(video: str) -> bytes:
    return hashlib.sha256(PurePath(video).name.encode()).digest()


def _part(plan: Plan, indices: list[int]) -> Plan:
    """The plan of some of the rows; weights stay, unless those of all sources are their numbers of rows."""
    by_rows = all(weight == whole for whole, weight in plan.shares)
    shares, first = [], 0
    for whole, weight in plan.shares:
        count = sum(first <= index < first + whole for index in indices)
        shares.append((count, float(count) if by_rows else weight))
        first += whole
    rows, tokens = [plan.rows[index] for index in indices], [plan.tokens[index] for index in indices]
    return dataclasses.replace(plan, rows=rows, tokens=tokens, shares=shares)
