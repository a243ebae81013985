"""Ask a model a benchmark's questions, a video at a time, judge its answers, keep every one on disk.

    videos of this process -> read ahead (threads) -> answering.answer, questions of videos together -> store
    stores of all processes -> collect -> Result

Processes do not talk to each other: each asks about its own videos, and the last to end finds all answers.
"""

import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moss_vllm.core import MOSS
from moss_vllm.data.rows import BenchmarkVideo, Question
from moss_vllm.evaluation.answering import (
    Answers,
    Prompts,
    answer,
    base_model,
    choose,
    choose_text,
    prepare_prompts,
)
from moss_vllm.evaluation.generation import followed, not_followed
from moss_vllm.evaluation.protocols import Protocol, Questions
from moss_vllm.evaluation.questions import digest_data
from moss_vllm.evaluation.result import QUESTION_SCHEMA, Result, collect, record
from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.line_store import ANSWERS, AnswerFile, Shard, Stored, read_answers
from moss_vllm.runtime.progress import show_progress
from moss_vllm.runtime.provenance import (
    answering_weights,
    describe_environment,
    fingerprint,
    settings_fingerprint,
)
from moss_vllm.runtime.ranges import FROM_ONE, FROM_ZERO
from moss_vllm.runtime.screen import say
from moss_vllm.video.clip import Clip, read_clip
from moss_vllm.video.container import native_size
from moss_vllm.video.file_state import describe_file, refuse_others
from moss_vllm.video.frames import BadVideo, short_side_within
from moss_vllm.vlm.checkpoint import Loaded
from moss_vllm.vlm.families import family_with
from moss_vllm.vlm.processor import fit_clip_settings

MOST_READERS = 16  # the most threads by default: each holds a video, decoded and prepared
RECORDED_VERSIONS = ("moss_vllm", "torch", "transformers", "peft")  # with others, no evaluation is resumed
RESULTS = (
    *("result.json", "table.md", "table.tex", "about.json"),
    *("submission.json", "submission-partial.json", "captions.json", "captions-partial.json"),
)


@dataclass(frozen=True)
class Reading:
    """How videos are read.

    Args:
        read: has the arguments and the result of `read_clip`, as `FrameCache.read` has.
        decoder: the decoder that `read` uses, for the header.
        workers: threads that read ahead; None: one per processor, up to MOST_READERS; 0: none.
    """

    read: Callable[..., Clip] = read_clip
    decoder: str = "auto"
    workers: int | None = None

    def __post_init__(self) -> None:
        FROM_ZERO.check(workers=self.workers)


def evaluate(
    loaded: Loaded,
    questions: Questions,
    protocol: Protocol,
    *,
    out: Path,
    batch_size: int = 16,
    overwrite: bool = False,
    shard: Shard | None = None,
    reading: Reading | None = None,
) -> Result:
    """Ask the questions that `out` has no answer to.

    Args:
        questions: from `look_over`.
        out: answers go to its folder `answers`.
        batch_size: videos are answered together until they have as many questions.
        shard: which videos are this process's; None: all.

    Raises: ValueError for a batch size below 1, a store of another run, or a file that was another one when
    its video was asked about; BlockingIOError as `AnswerFile`; BadVideo for a video that turns out to be
    damaged, without `allow_missing`; RunStopped if `out` is removed.
    """
    FROM_ONE.check(batch_size=batch_size)
    shard, reading = shard or Shard(), reading or Reading()
    videos, selected = questions.videos, questions.every[: questions.limit]
    header = describe_evaluation(loaded, questions, protocol, reading.decoder)
    stored = Stored(header) if overwrite else read_answers(out / ANSWERS, QUESTION_SCHEMA, header)
    refuse_others({video.video_id: video.path for video in videos if video.path is not None}, stored.files)
    open_uids = {question.uid for question in selected} - stored.answers.keys()
    own = [v for v in videos[shard.rank :: shard.processes] if any(q.uid in open_uids for q in v.questions)]
    if moss := next((module for module in loaded.model.modules() if isinstance(module, MOSS)), None):
        say(moss.path(), file=sys.stderr)
    if protocol.max_new_tokens is not None and (ignored := not_followed(base_model(loaded))):
        say(ignored, file=sys.stderr)
    started = time.monotonic()
    with AnswerFile(out / ANSWERS, header, shard, overwrite=overwrite) as file:
        if overwrite and shard.rank == 0:
            for name in RESULTS:
                (out / name).unlink(missing_ok=True)
        for video in own:
            if video.video_id in questions.failed:
                file.add(_failed_line(video, questions.failed[video.video_id]))
        readable = [video for video in own if video.video_id not in questions.failed]
        rows = _ask(loaded, readable, open_uids, protocol, batch_size, reading, questions.allow_missing)
        total = sum(q.uid in open_uids for video in readable for q in video.questions)
        with closing(show_progress(rows, total, "questions", size=lambda row: len(row["answers"]))) as shown:
            for row in shown:
                file.add(row)
        stored = read_answers(out / ANSWERS, QUESTION_SCHEMA, header)
        file.check()
    result = collect(stored, questions, protocol)
    result.seconds, result.resumed = time.monotonic() - started, len(selected) - len(open_uids)
    return result


def _ask(
    loaded: Loaded,
    videos: Sequence[BenchmarkVideo],
    open_uids: set[str],
    protocol: Protocol,
    batch_size: int,
    reading: Reading,
    allow_missing: bool,
) -> Iterator[dict[str, Any]]:
    """A line of the store for each video, with answers to its questions in `open_uids`."""
    encoding = threading.Lock()  # two threads must not set up a fast tokenizer at once
    waiting = deque[tuple[BenchmarkVideo, list[Question], dict[str, Any]]]()
    failed: list[dict[str, Any]] = []

    def read_video(video: BenchmarkVideo) -> tuple[Prompts, list[Question], dict[str, Any]] | BadVideo:
        started = time.perf_counter()
        state = describe_file(str(video.path))  # before reading, so that a change meanwhile is noticed
        try:
            clip = read_as(protocol, str(video.path), reading.read)
        except BadVideo as error:
            if allow_missing:
                return error
            raise
        open_questions = [question for question in video.questions if question.uid in open_uids]
        texts = [protocol.prompt(question) for question in open_questions]
        with encoding:
            prompts = prepare_prompts(loaded.processor, clip, texts, compress=protocol.compress_tokens)
        prompts.names = [f"question {question.uid!r} about {video.path}" for question in open_questions]
        if protocol.max_new_tokens is None:
            prompts.choices = list(map(protocol.choices, open_questions))
        seconds = {"decode": time.perf_counter() - started}
        about = {"frames": len(clip.frames), "shared_tokens": prompts.shared, "seconds": seconds}
        return prompts, open_questions, {**about, **({"file": state} if state else {})}

    def prepared() -> Iterator[Prompts]:
        workers = choose_workers() if reading.workers is None else reading.workers
        for video, content in _read_ahead(read_video, videos, workers):
            if isinstance(content, BadVideo):
                failed.append(_failed_line(video, str(content)))
                continue
            prompts, open_questions, about = content
            waiting.append((video, open_questions, about))
            yield prompts

    for answers in _answer(loaded, prepared(), protocol, batch_size):
        video, open_questions, about = waiting.popleft()
        records = []
        for number, (question, output) in enumerate(zip(open_questions, answers.texts, strict=True)):
            judged = protocol.judge(output, question)
            scores = answers.scores[number] if answers.scores else None
            records.append(record(question, protocol, output, judged, scores))
        about["seconds"] |= answers.seconds
        path = os.path.abspath(str(video.path))
        yield {"video_id": video.video_id, "path": path, **about, "answers": records}
    yield from failed


def _failed_line(video: BenchmarkVideo, reason: str) -> dict[str, Any]:
    uids = [question.uid for question in video.questions]
    return {"video_id": video.video_id, "failed": reason, "questions": uids, "answers": []}


def _answer(
    loaded: Loaded, videos: Iterator[Prompts], protocol: Protocol, batch_size: int
) -> Iterator[Answers]:
    try:
        if protocol.max_new_tokens is not None:
            yield from answer(loaded, videos, max_new_tokens=protocol.max_new_tokens, batch_size=batch_size)
        else:
            choosing = choose_text if protocol.by_text else choose
            yield from choosing(loaded, videos, batch_size=batch_size)
    except torch.OutOfMemoryError as error:
        raise RunStopped(
            f"no memory for {batch_size} questions at once; lower --batch-size, --max-frames or "
            "--short-side-px. Answers so far are kept, the same command continues"
        ) from error


def fit_protocol(protocol: Protocol, processor: Any, asked: Collection[str] = ()) -> Protocol:
    """The protocol with frames and tokens as a model's processor takes them.

    Raises: ValueError for one of the settings `asked` that is impossible, see `fit_clip_settings`.
    """
    settings = {name: getattr(protocol, name) for name in ("short_side_px", "compress_tokens")}
    fitted = fit_clip_settings(processor, settings, asked)
    sides = family_with(processor).chat.frame_size(processor)
    max_pixels = None if sides.square_px else protocol.max_pixels
    return replace(protocol, **fitted, sides=sides, max_pixels=max_pixels)


def read_as(protocol: Protocol, path: str, read: Callable[..., Clip] = read_clip) -> Clip:
    """A clip with the protocol's sampling and size."""
    sampling = protocol.sampling
    if protocol.max_pixels:
        short_side_px = short_side_within(*native_size(path), protocol.max_pixels, protocol.sides)
        sampling = replace(sampling, short_side_px=short_side_px)
    clip = read(path, sampling=sampling)
    return hold_middle_frame(clip) if protocol.still else clip


def choose_workers() -> int:
    """Threads for reading: this process's share of the machine's processors, up to MOST_READERS."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_READERS, max(1, processors // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def _read_ahead(
    read: Callable[[BenchmarkVideo], Any], videos: Sequence[BenchmarkVideo], workers: int
) -> Iterator[tuple[BenchmarkVideo, Any]]:
    """`read` videos in threads while the caller answers; results and errors come in the order of the videos.

    At most one video more than there are threads is in memory or under way.
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


def describe_evaluation(
    loaded: Loaded, questions: Questions, protocol: Protocol, decoder: str
) -> dict[str, Any]:
    """The store's header: everything that could change an answer.

    A run may be resumed in another `environment`; the result says so.
    """
    base, every = base_model(loaded), questions.every
    environment = describe_environment(base)
    header = {
        "benchmark": questions.benchmark.name,
        "checkpoint": loaded.name,
        "weights": fingerprint(answering_weights(loaded.model)),
        "model_settings": settings_fingerprint(loaded.model, loaded.processor),
        "protocol": protocol.settings,
        "generation": {} if protocol.max_new_tokens is None else followed(base),
        "questions": len(every),
        "data": digest_data(every, protocol.prompt),
        "versions": {package: environment[package] for package in RECORDED_VERSIONS},
        "environment": environment,
    }
    header |= {} if decoder in ("auto", "pyav") else {"decoder": decoder}  # other decoders: other pixels
    header["run"] = loaded.run
    content: dict[str, Any] = json.loads(json.dumps(header))
    return content
