"""Ask a model a benchmark's questions, a video at a time, judge its answers, keep every one on disk.

    videos of this process -> read ahead (threads) -> answering.answer, all questions of a video -> store
    stores of all processes -> collect -> Result

Processes do not talk to each other: each asks about its own videos, and whoever ends last finds all answers.
"""

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moss_vllm import report
from moss_vllm.answer_store import AnswerFile, Shard, Stored, describe_run, read_answers
from moss_vllm.answering import Answers, Prompts, answer, choose, prepare
from moss_vllm.core import MOSS
from moss_vllm.data.frames import short_side_within
from moss_vllm.data.probe import probe_all
from moss_vllm.data.rows import BenchmarkVideo, Question
from moss_vllm.data.video import BadVideo, Clip, native_size, read_clip
from moss_vllm.errors import RunStopped
from moss_vllm.files import whole_file
from moss_vllm.protocols import LETTERS, Benchmark, Protocol
from moss_vllm.scoring import Judged, Score, chance_accuracy, score
from moss_vllm.vlm.checkpoint import Loaded

READERS = 2  # threads; each holds one decoded video, and as many wait decoded
STORE = "answers"
RESULTS = ("result.json", "table.md", "table.tex", "submission.json", "captions.json")


@dataclass
class Result:
    """What a run found; `records` are answers in the order of the data, without those still to come."""

    header: dict[str, Any]
    benchmark: Benchmark
    protocol: Protocol
    records: list[dict[str, Any]]
    chance: dict[str, float]
    pending: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    resumed: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def judged(self) -> list[Judged]:
        """Every question asked whose answer is public."""
        scored = [record for record in self.records if record["answer"] is not None]
        return [Judged(r["uid"], r["task"], r["correct"], r["parsed"] is not None) for r in scored]

    @property
    def score(self) -> Score | None:
        """Counts and percent; None where no question asked has a public answer."""
        return score(self.judged, self.benchmark.tasks) if self.judged else None

    @property
    def partial(self) -> str:
        """How many of the questions were asked, if not all."""
        asked, total = len(self.records), self.header["questions"]
        return f"partial: {asked} of {total} questions" if asked < total else ""

    def table(self) -> report.Table:
        """The benchmark's part of Table 5: the paper's rows, chance, this model, number of questions."""
        notes = [f"protocol {self.protocol}", *self.notes]
        if self.failed:
            unseen = sum(record["output"] is None for record in self.records)
            notes.append(
                f"{len(self.failed)} videos missing or unreadable: their {unseen} questions count as wrong"
            )
        name, found = self.header["checkpoint"], self.score
        return report.benchmark_table(
            self.benchmark.name, name, found, self.chance, partial=self.partial, notes=notes
        )

    def save(self, out: Path) -> None:
        """Write `result.json` (unrounded), `table.md` and `table.tex`, each whole."""
        found, table = self.score, self.table()
        counts = {} if found is None else {k: getattr(found, k) for k in ("correct", "answered", "total")}
        told = {
            **self.header,
            "asked": len(self.records),
            "partial": self.partial or None,
            "accuracy_percent": {} if found is None else found.accuracy,
            "interval_95_percent": {} if found is None else found.intervals,
            "counts": counts,
            "chance_percent": self.chance,
            "failed": self.failed,
            "seconds": self.seconds,
            "answered_by_earlier_runs": self.resumed,
            "notes": [*self.notes],
        }
        texts = {"result.json": json.dumps(told, indent=2) + "\n", "table.md": table.markdown()}
        for name, text in {**texts, "table.tex": table.latex()}.items():
            with whole_file(out / name) as part:
                part.write_text(text, encoding="utf-8")


def evaluate(
    loaded: Loaded,
    videos: Sequence[BenchmarkVideo],
    benchmark: Benchmark,
    protocol: Protocol,
    *,
    out: Path,
    batch_size: int = 16,
    limit: int | None = None,
    overwrite: bool = False,
    allow_missing: bool = False,
    shard: Shard | None = None,
    read: Callable[..., Clip] = read_clip,
) -> Result:
    """Answer the questions that `out` has no answer to, `limit` of the data's questions at most.

    Args:
        out: answers go to its folder `answers`.
        batch_size: questions of one video answered at once.
        allow_missing: count questions about videos that are missing or cannot be read as wrong.
        shard: which videos are this process's; None: all.
        read: has the arguments and the result of `read_clip`, as `FrameCache.read` has.

    Raises: ValueError for a number below 1, no question, a store of another run, or naming every video that
    is missing or unreadable before anything is asked; BadVideo for one that turns out so later.
    """
    for name, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    shard = shard or Shard()
    questions = [question for video in videos for question in video.questions]
    if not questions:
        raise ValueError("no question to ask; check that the reader returned any")
    known = describe_run(loaded, questions, settings=protocol.settings, prompt=protocol.prompt)
    header = json.loads(json.dumps({"benchmark": benchmark.name, **known, "run": loaded.run}))
    earlier = Stored(header) if overwrite else read_answers(out / STORE, header)
    left = {question.uid for question in questions[:limit]} - earlier.answers.keys()
    mine = [v for v in videos[shard.rank :: shard.processes] if any(q.uid in left for q in v.questions)]
    failed = find_unreadable(mine, protocol)
    if failed and not allow_missing:
        raise ValueError(tell_unreadable(failed))
    if moss := next((module for module in loaded.model.modules() if isinstance(module, MOSS)), None):
        print(moss.path(), file=sys.stderr)
    started = time.monotonic()
    with AnswerFile(out / STORE, header, shard, overwrite=overwrite) as file:
        if overwrite and shard.rank == 0:
            for name in RESULTS:
                (out / name).unlink(missing_ok=True)
        for video_id, reason in failed.items():
            file.add({"video_id": video_id, "failed": reason, "answers": []})
        readable = [video for video in mine if video.video_id not in failed]
        rows = _ask(loaded, readable, left, protocol, batch_size, read, allow_missing)
        total = sum(q.uid in left for video in readable for q in video.questions)
        with closing(report.show_progress(rows, total, size=lambda row: len(row["answers"]))) as shown:
            for row in shown:
                file.add(row)
    result = collect(
        read_answers(out / STORE, header), videos, benchmark, protocol, limit, allow_missing=allow_missing
    )
    result.seconds, result.resumed = time.monotonic() - started, len(questions[:limit]) - len(left)
    return result


def collect(
    stored: Stored,
    videos: Sequence[BenchmarkVideo],
    benchmark: Benchmark,
    protocol: Protocol,
    limit: int | None = None,
    *,
    allow_missing: bool = False,
) -> Result:
    """Put answers in the order of the data; what other processes have not answered yet is `pending`."""
    places = [(video, question) for video in videos for question in video.questions][:limit]
    records, failed, pending = [], dict[str, str](), 0
    for video, question in places:
        if question.uid in stored.answers:
            records.append(stored.answers[question.uid])
        elif allow_missing and video.video_id in stored.failed:
            failed[video.video_id] = stored.failed[video.video_id]
            records.append(
                {"video_id": video.video_id, **_record(question, protocol, None, (False, None), None)}
            )
        else:
            pending += 1
    scored = [question for _, question in places if question.answer is not None]
    chance = chance_accuracy(scored) if scored else {}
    return Result(stored.header or {}, benchmark, protocol, records, chance, pending, failed)


def _record(
    question: Question,
    protocol: Protocol,
    output: str | None,
    judged: tuple[bool, str | None],
    scores: Mapping[str, float] | None,
) -> dict[str, Any]:
    return {
        "uid": question.uid,
        "task": question.task,
        "question": question.text,
        "options": list(question.options),
        "prompt": protocol.prompt(question),
        "output": output,
        "parsed": judged[1],
        "answer": question.answer,
        "correct": None if question.answer is None else judged[0],
        **({"log_likelihood": dict(scores)} if scores else {}),
    }


def find_unreadable(videos: Sequence[BenchmarkVideo], protocol: Protocol) -> dict[str, str]:
    """Why videos cannot be read, by what their headers and packets say; nothing is decoded."""
    clips = [(video.path, None, None) for video in videos if video.path is not None]
    sampling = {key: getattr(protocol, key) for key in ("sample_fps", "short_side_px", "max_frames")}
    found = probe_all(clips, sampling, cache=None, workers=8)
    missing = {video.video_id: video.missing for video in videos if video.path is None}
    bad = {
        video.video_id: str(error)
        for video in videos
        if video.path is not None and isinstance(error := found[video.path, None, None], BadVideo)
    }
    return {**missing, **bad}


def tell_unreadable(failed: Mapping[str, str]) -> str:
    """One message for all of them."""
    lines = "\n".join(f"  {video_id}: {reason}" for video_id, reason in failed.items())
    remedy = "mend them, or pass --allow-missing, which goes on without them and says so"
    return f"videos missing or unreadable: {len(failed)}\n{lines}\n{remedy}"


def _ask(
    loaded: Loaded,
    videos: Sequence[BenchmarkVideo],
    left: set[str],
    protocol: Protocol,
    batch_size: int,
    read: Callable[..., Clip],
    allow_missing: bool,
) -> Iterator[dict[str, Any]]:
    """A line of the store for each video."""
    encoding = threading.Lock()  # a fast tokenizer must not be set up by two threads at once

    def read_video(video: BenchmarkVideo) -> tuple[Prompts, int, float] | BadVideo:
        started = time.perf_counter()
        try:
            clip = read_as(protocol, str(video.path), read)
        except BadVideo as error:
            if allow_missing:
                return error
            raise
        texts = [protocol.prompt(question) for question in video.questions if question.uid in left]
        with encoding:
            prompts = prepare(loaded.processor, clip, texts, compress=protocol.compress_tokens)
        return prompts, len(clip.frames), time.perf_counter() - started

    for video, found in _read_ahead(read_video, videos):
        if isinstance(found, BadVideo):
            yield {"video_id": video.video_id, "failed": str(found), "answers": []}
            continue
        prompts, frames, decode_s = found
        asked = [question for question in video.questions if question.uid in left]
        said = _answer(loaded, video, asked, prompts, protocol, batch_size)
        answers = []
        for number, (question, output) in enumerate(zip(asked, said.texts, strict=True)):
            scores = said.scores[number] if said.scores else None
            answers.append(_record(question, protocol, output, protocol.judge(output, question), scores))
        yield {
            "video_id": video.video_id,
            "path": str(video.path),
            "frames": frames,
            "shared_tokens": prompts.shared,
            "seconds": {"decode": decode_s, **said.seconds},
            "answers": answers,
        }


def _answer(
    loaded: Loaded,
    video: BenchmarkVideo,
    asked: Sequence[Question],
    prompts: Prompts,
    protocol: Protocol,
    batch_size: int,
) -> Answers:
    try:
        if protocol.max_new_tokens is None:
            letters = [LETTERS[: len(question.options)] for question in asked]
            return choose(loaded, prompts, letters, batch_size=batch_size)
        return answer(loaded, prompts, max_new_tokens=protocol.max_new_tokens, batch_size=batch_size)
    except torch.OutOfMemoryError as error:
        raise RunStopped(
            f"video {video.video_id}: no memory for {len(prompts.ids)} questions of {len(prompts.ids[0])} "
            "tokens; lower --batch-size, --max-frames or --short-side. Answers so far are kept, the same "
            "command goes on"
        ) from error


def read_as(protocol: Protocol, path: str, read: Callable[..., Clip] = read_clip) -> Clip:
    """A clip with the protocol's sampling and size."""
    short_side_px = protocol.short_side_px
    if protocol.max_pixels:
        short_side_px = short_side_within(*native_size(path), protocol.max_pixels)
    clip = read(
        path, sample_fps=protocol.sample_fps, short_side_px=short_side_px, max_frames=protocol.max_frames
    )
    return hold_middle_frame(clip) if protocol.still else clip


def _read_ahead(
    read: Callable[[BenchmarkVideo], Any], videos: Sequence[BenchmarkVideo]
) -> Iterator[tuple[BenchmarkVideo, Any]]:
    """`read` each video in threads while the caller answers; order is kept, an error comes at its place."""
    pool = ThreadPoolExecutor(READERS, "read")
    waiting: deque[tuple[BenchmarkVideo, Future[Any]]] = deque()
    try:
        for video in videos:
            waiting.append((video, pool.submit(read, video)))
            if len(waiting) > 2 * READERS:
                video, future = waiting.popleft()
                yield video, future.result()
        while waiting:
            video, future = waiting.popleft()
            yield video, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def hold_middle_frame(clip: Clip) -> Clip:
    """The clip with its middle frame in place of every frame."""
    middle = clip.frames[len(clip.frames) // 2]
    return Clip(np.repeat(middle[None], len(clip.frames), axis=0), clip.frame_times_s)
