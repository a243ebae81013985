"""Measuring every row before training: its tokens, and whether and why it is rejected.

No picture is decoded: frame times come from the packets of a file and frame sizes from its header, and the
text goes through the tokenizer. Without token compression the counts are exact. With it they are upper
bounds, and the plan rejects only the rows that would be too long under any compression.
"""

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from moss_vllm.data.rows import ClipRow, Rejected, digest_rows
from moss_vllm.data.sources import Sources
from moss_vllm.data.streams import STREAMED
from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.files import whole_file
from moss_vllm.video.clip import Sampling
from moss_vllm.video.frames import BadVideo
from moss_vllm.video.probe import ClipPart, Probe, probe_all
from moss_vllm.vlm.families import family_with

REJECTED_KINDS = ("too long", "bad", "missing")
REMEDIES = {
    "too long": "raise max_tokens, lower sample_fps, max_frames or short_side_px, or leave the rows out",
    "bad": "repair or remove the rows",
    "missing": "download the videos, or pass the folder that holds them",
}
REJECTED_FIELDS = ("row_id", "source", "kind", "reason")  # of rejected.jsonl


@dataclass
class Plan:
    """The rows to train on, the tokens of each, and the rejected rows.

    `shares` has the number of rows and the weight of each source, in the order of `rows` and `names`; and
    `origins` its name, format, revision and fingerprint.
    """

    rows: list[ClipRow]
    tokens: list[int]
    names: list[str]
    shares: list[tuple[int, float]]
    rejected: list[Rejected]
    file: Path | None = None
    origins: list[dict[str, str | None]] = field(default_factory=list)
    held_out: int = 0  # rows that were split off

    @property
    def streamed(self) -> list[str]:
        """Names of the sources of which only the first rows are here."""
        return [str(origin["name"]) for origin in self.origins if origin["format"] == STREAMED]

    def line(self) -> str:
        """How many rows are kept and how many are rejected, in one line."""
        kept, rejected = self._measured()
        total = kept + self.held_out + len(rejected)
        lines = [f"kept {kept:,} of {total:,} rows: {_count_kinds(rejected)}"]
        if self.held_out:
            lines.append(f"{self.held_out:,} more are held out of training")
        if self.streamed:
            first = [row for row in self.rejected if row.source in self._sampled()]
            total = len(self.rows) - kept + len(first)
            told = f"streamed, each row checked as it comes; of the first {total:,}: {_count_kinds(first)}"
            lines = [told] if len(self.streamed) == len(self.names) else [*lines, told]
        return "; ".join(lines)

    def _sampled(self) -> set[str]:
        """Names of the streamed sources; one none of whose first rows can be used is not among them."""
        counts = {name: count for name, (count, _) in zip(self.names, self.shares, strict=True)}
        return {name for name in self.streamed if counts[name]}

    def _measured(self) -> tuple[int, list[Rejected]]:
        """How many rows are kept and which are rejected, of all sources that are not `_sampled`."""
        sampled = self._sampled()
        shares = zip(self.names, self.shares, strict=True)
        kept = sum(count for name, (count, _) in shares if name not in sampled)
        return kept, [row for row in self.rejected if row.source not in sampled]

    def digest(self) -> str:
        """A digest of the rows that are kept: ids, names of files, times and turns; not of folders."""
        return digest_rows(
            [
                [
                    *(row.row_id, row.path and row.path.name, row.start_s, row.end_s),
                    [[turn.question, turn.answer] for turn in row.turns],
                ]
                for row in self.rows
            ]
        )

    def spread(self) -> tuple[int, int, int]:
        """Tokens of the shortest, the median and the longest row that is kept."""
        return min(self.tokens), round(statistics.median(self.tokens)), max(self.tokens)

    def write(self, out: Path) -> Path:
        """Write `out/rejected.jsonl` whole; without a rejected row it is empty.

        Of a streamed source rows are named when they are read in training.
        """
        self.file = out / "rejected.jsonl"
        with whole_file(self.file) as part:
            part.write_text(
                "".join(
                    json.dumps({name: getattr(row, name) for name in REJECTED_FIELDS}) + "\n"
                    for row in self._measured()[1]
                )
            )
        return self.file

    def check(self, max_share: float = 0.01) -> None:
        """RunStopped if more than `max_share` of all rows are rejected, or every row of a source.

        Of a streamed source only the second is looked at: its first rows are too few for a share.
        """
        kept, rejected = self._measured()
        total = kept + len(rejected)
        share = len(rejected) / max(1, total)
        empty = [name for name, (rows, _) in zip(self.names, self.shares, strict=True) if not rows]
        if share <= max_share and not empty:
            return
        limit = f"no row of {', '.join(empty)} is left" if empty else f"more than {max_share:.1%}"
        last = "leave that source out" if empty else "raise max_rejected_share to train on the others"
        lines = [
            f"{len(rejected):,} of {total:,} rows ({share:.1%}) cannot be used, {limit}; all are in "
            f"{self.file or 'rejected.jsonl once the plan is written'}"
        ]
        for kind in REJECTED_KINDS:
            if rows := [row for row in rejected if row.kind == kind]:
                first = f"the first is {rows[0].row_id} of {rows[0].source}: {rows[0].reason}"
                lines.append(f"  {len(rows):,} {kind}: {REMEDIES[kind]}; {first}")
        raise RunStopped(*lines, f"  or {last}")


def plan(
    sources: Sources,
    processor: Any,
    *,
    sampling: Sampling,
    compress: bool,
    max_tokens: int,
    cache: Path | None = None,
    workers: int = 2,
) -> Plan:
    """Measure every row of the sources as `TrainingSet` would read it.

    Args:
        sources: from `data.sources.read_sources`.
        processor: of one of the families.
        sampling: how `read_clip` samples and resizes.
        compress: whether the processor drops tokens of patches that do not change.
        max_tokens: a longer conversation is rejected whole.
        cache: a jsonl file that keeps measured videos by path, size, time of change and sampling.
        workers: threads that measure.
    """
    clips = dict.fromkeys((row.path, row.start_s, row.end_s) for row in sources.rows if row.path)
    probes = probe_all(list(clips), sampling, cache=cache, workers=workers)
    result = Plan([], [], [], [], [])
    for source in sources.sources:
        for bad in source.bad:
            place = f"row {bad.row}" if isinstance(bad.row, int) else bad.row
            result.rejected.append(Rejected(place, f"{bad.reason}; {bad.remedy}", source.name, bad.kind))
        first = len(result.rows)
        for row, size in zip(source.rows, _sizes(source.rows, probes, processor), strict=True):
            if isinstance(size, ValueError):
                result.rejected.append(Rejected(row.row_id, str(size), source.name))
            elif (tokens := size.least_tokens if compress else size.tokens) > max_tokens:
                reason = too_long(tokens, size.frames, max_tokens, at_least=compress)
                result.rejected.append(Rejected(row.row_id, reason, source.name, "too long"))
            else:
                result.rows.append(row)
                result.tokens.append(size.tokens)
        kept = len(result.rows) - first
        result.names.append(source.name)
        result.origins.append(source.origin())
        result.shares.append((kept, float(kept if source.weight is None else source.weight)))
    return result


def _count_kinds(rejected: Sequence[Rejected]) -> str:
    counts = Counter(row.kind for row in rejected)
    return ", ".join(f"{counts[kind]:,} {kind}" for kind in REJECTED_KINDS)


def too_long(tokens: int, frames: int, max_tokens: int, *, at_least: bool = False) -> str:
    """The reason why a conversation of so many tokens is rejected, with the remedies."""
    return (
        f"{'at least ' * at_least}{tokens} tokens of {frames} frames and the text, more than "
        f"max_tokens={max_tokens}; raise it, or lower sample_fps, max_frames or short_side_px, or leave the "
        "row out"
    )


class _Size(NamedTuple):
    tokens: int
    least_tokens: int  # the fewest that token compression can leave
    frames: int


def _sizes(
    rows: Sequence[ClipRow], probes: Mapping[ClipPart, Probe | BadVideo], processor: Any
) -> Iterator[_Size | ValueError]:
    """The size of each row, or the error that makes it bad."""
    chat = family_with(processor).chat
    for row in rows:
        probe = probes[row.path, row.start_s, row.end_s] if row.path else None
        if isinstance(probe, BadVideo):
            yield probe
            continue
        times_s, *size = (probe.frame_times_s, probe.height, probe.width) if probe else (None, 0, 0)
        try:
            tokens, least = chat.count_tokens(processor, row.turns, times_s, *size)
            yield _Size(tokens, least, len(times_s or ()))
        except ValueError as error:  # a special token in the text
            yield error
