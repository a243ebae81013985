"""Ask a model a benchmark's questions, a video at a time, judge its answers, keep every one on disk.

    videos of this process -> read ahead (threads) -> answering.answer, questions of videos together -> store
    stores of all processes -> collect -> Result

Processes do not talk to each other: each asks about its own videos, and whoever ends last finds all answers.
"""

import hashlib
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moss_vllm.core import MOSS
from moss_vllm.data.rows import BenchmarkVideo, Question
from moss_vllm.evaluation.answering import Answers, Prompts, answer, base_model, choose, prepare
from moss_vllm.evaluation.generation import followed, not_followed
from moss_vllm.evaluation.protocols import LETTERS, Benchmark, Protocol
from moss_vllm.evaluation.result import Result, collect, record
from moss_vllm.runtime.errors import RunStopped, UnusableData
from moss_vllm.runtime.line_store import AnswerFile, Shard, Stored, read_answers
from moss_vllm.runtime.progress import show_progress
from moss_vllm.runtime.provenance import (
    answering_weights,
    describe_environment,
    fingerprint,
    settings_fingerprint,
    versions,
)
from moss_vllm.runtime.screen import say
from moss_vllm.video.clip import BadVideo, Clip, read_clip
from moss_vllm.video.container import native_size
from moss_vllm.video.file_state import describe_file, refuse_others
from moss_vllm.video.frames import short_side_within
from moss_vllm.video.probe import probe_all
from moss_vllm.vlm.checkpoint import Loaded
from moss_vllm.vlm.video_llama3.chat import has_special_token

READERS = 16  # at most, unless more are asked for: each holds a video, decoded and prepared
STORE = "answers"
RECORDED_VERSIONS = ("moss_vllm", "torch", "transformers", "peft")
RESULTS = (
    *("result.json", "table.md", "table.tex", "about.json"),
    *("submission.json", "submission-partial.json", "captions.json", "captions-partial.json"),
)


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
    decoder: str = "auto",
    failed: Mapping[str, str] | None = None,
    workers: int | None = None,
) -> Result:
    """Answer the questions that `out` has no answer to, `limit` of the data's questions at most.

    Args:
        out: answers go to its folder `answers`.
        batch_size: videos are answered together until they have as many questions.
        allow_missing: count questions about videos that are missing or cannot be read as wrong.
        shard: which videos are this process's; None: all.
        read: has the arguments and the result of `read_clip`, as `FrameCache.read` has.
        decoder: the one that `read` takes, to be recorded.
        failed: what `look_over` returned, where it was called before.
        workers: threads that read videos ahead; None: `choose_workers`, 0: none.

    Raises: ValueError for a number that is too small, no question, a store of another run, a video that was
    another one when it was asked about, or as `look_over` does before anything is asked; BlockingIOError as
    `AnswerFile`; BadVideo for a video that turns out unreadable later; RunStopped if `out` is removed.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("limit", limit, 1), ("workers", workers, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    shard = shard or Shard()
    questions = [question for video in videos for question in video.questions]
    if not questions:
        raise ValueError("no question to ask; check that the reader returned any")
    known = describe_run(loaded, questions, settings=protocol.settings, prompt=protocol.prompt)
    known |= {} if decoder in ("auto", "pyav") else {"decoder": decoder}  # others deliver other pixels
    header = json.loads(json.dumps({"benchmark": benchmark.name, **known, "run": loaded.run}))
    earlier = Stored(header) if overwrite else read_answers(out / STORE, header)
    refuse_others({video.video_id: video.path for video in videos if video.path is not None}, earlier.files)
    left = {question.uid for question in questions[:limit]} - earlier.answers.keys()
    mine = [v for v in videos[shard.rank :: shard.processes] if any(q.uid in left for q in v.questions)]
    if failed is None:
        failed = look_over(videos, left, protocol, allow_missing=allow_missing)
    if moss := next((module for module in loaded.model.modules() if isinstance(module, MOSS)), None):
        say(moss.path(), file=sys.stderr)
    if protocol.max_new_tokens is not None and (ignored := not_followed(base_model(loaded))):
        say(ignored, file=sys.stderr)
    started = time.monotonic()
    with AnswerFile(out / STORE, header, shard, overwrite=overwrite) as file:
        if overwrite and shard.rank == 0:
            for name in RESULTS:
                (out / name).unlink(missing_ok=True)
        for video in mine:
            if video.video_id in failed:
                file.add(_failed_line(video, failed[video.video_id]))
        readable = [video for video in mine if video.video_id not in failed]
        workers = choose_workers() if workers is None else workers
        rows = _ask(loaded, readable, left, protocol, batch_size, read, allow_missing, workers)
        total = sum(q.uid in left for video in readable for q in video.questions)
        with closing(show_progress(rows, total, "questions", size=lambda row: len(row["answers"]))) as shown:
            for row in shown:
                file.add(row)
        stored = read_answers(out / STORE, header)
        file.check()
    result = collect(stored, videos, benchmark, protocol, limit, allow_missing=allow_missing)
    result.seconds, result.resumed = time.monotonic() - started, len(questions[:limit]) - len(left)
    return result


def look_over(
    videos: Sequence[BenchmarkVideo],
    uids: Collection[str],
    protocol: Protocol,
    *,
    allow_missing: bool = False,
) -> dict[str, str]:
    """Why videos that questions with these uids are about cannot be read; needs no model.

    A text with a special token (<|im_end|>, the video's) would be another conversation than the one meant,
    and to spell it otherwise another question: no such question is asked.

    Raises: ValueError naming every question with such a text, or without `allow_missing` every such video.
    """
    about = [video for video in videos if any(question.uid in uids for question in video.questions)]
    texts = {q.uid: protocol.prompt(q) for video in about for q in video.questions if q.uid in uids}
    special = {uid: text[text.find("<|") :][:40] for uid, text in texts.items() if has_special_token(text)}
    if special:
        lines = [f"  {uid}: {text!r}" for uid, text in special.items()]
        remedy = (
            "take '<|...|>' out of the annotation or the prompt, or these questions out of the annotation"
        )
        raise UnusableData(f"questions with a special token of the chat: {len(special)}", *lines, remedy)
    failed = find_unreadable(about, protocol)
    if failed and not allow_missing:
        raise UnusableData(*tell_unreadable(failed))
    return failed


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


def tell_unreadable(failed: Mapping[str, str]) -> list[str]:
    """The lines of one message for all of them."""
    lines = [f"  {video_id}: {reason}" for video_id, reason in failed.items()]
    remedy = "mend them, or pass --allow-missing, which goes on without them and says so"
    return [f"videos missing or unreadable: {len(failed)}", *lines, remedy]


def _ask(
    loaded: Loaded,
    videos: Sequence[BenchmarkVideo],
    left: set[str],
    protocol: Protocol,
    batch_size: int,
    read: Callable[..., Clip],
    allow_missing: bool,
    workers: int,
) -> Iterator[dict[str, Any]]:
    """A line of the store for each video."""
    encoding = threading.Lock()  # a fast tokenizer must not be set up by two threads at once
    waiting = deque[tuple[BenchmarkVideo, list[Question], dict[str, Any]]]()
    failed: list[dict[str, Any]] = []

    def read_video(video: BenchmarkVideo) -> tuple[Prompts, list[Question], dict[str, Any]] | BadVideo:
        started = time.perf_counter()
        state = describe_file(str(video.path))  # first: a file that changes meanwhile is another one then
        try:
            clip = read_as(protocol, str(video.path), read)
        except BadVideo as error:
            if allow_missing:
                return error
            raise
        asked = [question for question in video.questions if question.uid in left]
        texts = [protocol.prompt(question) for question in asked]
        with encoding:
            prompts = prepare(loaded.processor, clip, texts, compress=protocol.compress_tokens)
        if protocol.max_new_tokens is None:
            prompts.choices = [LETTERS[: len(question.options)] for question in asked]
        seconds = {"decode": time.perf_counter() - started}
        known = {"frames": len(clip.frames), "shared_tokens": prompts.shared, "seconds": seconds}
        return prompts, asked, {**known, **({"file": state} if state else {})}

    def prepared() -> Iterator[Prompts]:
        for video, found in _read_ahead(read_video, videos, workers):
            if isinstance(found, BadVideo):
                failed.append(_failed_line(video, str(found)))
                continue
            prompts, asked, known = found
            waiting.append((video, asked, known))
            yield prompts

    for said in _answer(loaded, prepared(), protocol, batch_size):
        video, asked, known = waiting.popleft()
        answers = []
        for number, (question, output) in enumerate(zip(asked, said.texts, strict=True)):
            judged = protocol.judge(output, question)
            scores = said.scores[number] if said.scores else None
            answers.append(record(question, protocol, output, judged, scores))
        known["seconds"] |= said.seconds
        path = os.path.abspath(str(video.path))
        yield {"video_id": video.video_id, "path": path, **known, "answers": answers}
    yield from failed


def _failed_line(video: BenchmarkVideo, reason: str) -> dict[str, Any]:
    uids = [question.uid for question in video.questions]
    return {"video_id": video.video_id, "failed": reason, "questions": uids, "answers": []}


def _answer(
    loaded: Loaded, videos: Iterator[Prompts], protocol: Protocol, batch_size: int
) -> Iterator[Answers]:
    try:
        if protocol.max_new_tokens is None:
            yield from choose(loaded, videos, batch_size=batch_size)
        else:
            yield from answer(loaded, videos, max_new_tokens=protocol.max_new_tokens, batch_size=batch_size)
    except torch.OutOfMemoryError as error:
        raise RunStopped(
            f"no memory for {batch_size} questions at once; lower --batch-size, --max-frames or "
            "--short-side-px. Answers so far are kept, the same command goes on"
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


def choose_workers() -> int:
    """A thread for each processor that this one of the machine's processes has, up to READERS."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(READERS, max(1, processors // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def _read_ahead(
    read: Callable[[BenchmarkVideo], Any], videos: Sequence[BenchmarkVideo], workers: int
) -> Iterator[tuple[BenchmarkVideo, Any]]:
    """`read` each video in threads while the caller answers; order is kept, an error comes at its place.

    One video more than there are threads is held at most: read, being read, or next to be.
    """
    if not workers:
        yield from ((video, read(video)) for video in videos)
        return
    pool = ThreadPoolExecutor(workers, "read")
    waiting: deque[tuple[BenchmarkVideo, Future[Any]]] = deque()
    try:
        for video in videos:
            waiting.append((video, pool.submit(read, video)))
            if len(waiting) > workers:
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


def describe_run(
    loaded: Loaded,
    questions: Sequence[Question],
    *,
    settings: Mapping[str, Any],
    prompt: Callable[[Question], str],
) -> dict[str, Any]:
    """The store's header: whatever could change an answer; `settings` and `prompt` are the protocol's.

    Another `environment` is told with the result; a run goes on with it.
    """
    found, base = versions(), base_model(loaded)
    return {
        "checkpoint": loaded.name,
        "weights": fingerprint(answering_weights(loaded.model)),
        "model_settings": settings_fingerprint(loaded.model, loaded.processor),
        "protocol": settings,
        "generation": {} if settings["max_new_tokens"] is None else followed(base),
        "questions": len(questions),
        "data": digest_data(questions, prompt),
        "versions": {package: found[package] for package in RECORDED_VERSIONS},
        "environment": describe_environment(base),
    }


def digest_data(questions: Sequence[Question], prompt: Callable[[Question], str]) -> str:
    """Tells data, or prompts, apart by what is asked and what is right."""
    data = json.dumps([[q.uid, q.task, prompt(q), q.answer] for q in questions])
    return hashlib.sha256(data.encode()).hexdigest()[:16]
