"""Find, before a model is opened, what cannot be asked: special tokens in texts, unreadable videos."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence

from moss_vllm.data.rows import BenchmarkVideo, Question
from moss_vllm.evaluation.protocols import Benchmark, Questions
from moss_vllm.runtime.errors import UnusableData
from moss_vllm.runtime.ranges import FROM_ONE
from moss_vllm.video.clip import PAPER_SAMPLING
from moss_vllm.video.frames import BadVideo
from moss_vllm.video.probe import probe_all
from moss_vllm.vlm.conversation import has_special_token


def look_over(
    benchmark: Benchmark,
    videos: Sequence[BenchmarkVideo],
    prompt: Callable[[Question], str],
    *,
    limit: int | None = None,
    allow_missing: bool = False,
) -> Questions:
    """Find the videos that cannot be read, and refuse what cannot be asked.

    A special token in a text (<|im_end|>, the video's) would change the conversation, and escaping it would
    change the question, so questions with one are refused.

    Raises: ValueError for a limit below 1 or no question, naming every question with a special token, or
    without `allow_missing` every video that cannot be read.
    """
    FROM_ONE.check(limit=limit)
    every = [question for video in videos for question in video.questions]
    if not every:
        raise ValueError("no question to ask; check that the reader returned any")
    texts = {question.uid: prompt(question) for question in every[:limit]}
    special = {uid: text[text.find("<|") :][:40] for uid, text in texts.items() if has_special_token(text)}
    if special:
        lines = [f"  {uid}: {text!r}" for uid, text in special.items()]
        remedy = (
            "take '<|...|>' out of the annotation or the prompt, or these questions out of the annotation"
        )
        raise UnusableData(f"questions with a special token of the chat: {len(special)}", *lines, remedy)
    failed = find_unreadable([v for v in videos if any(question.uid in texts for question in v.questions)])
    if failed and not allow_missing:
        raise UnusableData(*describe_unreadable(failed))
    return Questions(benchmark, videos, limit, allow_missing, failed)


def find_unreadable(videos: Sequence[BenchmarkVideo]) -> dict[str, str]:
    """Why videos cannot be read, by their ids; only headers and packets are read, nothing is decoded."""
    clips = [(video.path, None, None) for video in videos if video.path is not None]
    probes = probe_all(clips, PAPER_SAMPLING, cache=None, workers=8)  # faults do not depend on the sampling
    missing = {video.video_id: video.missing for video in videos if video.path is None}
    bad = {
        video.video_id: str(error)
        for video in videos
        if video.path is not None and isinstance(error := probes[video.path, None, None], BadVideo)
    }
    return {**missing, **bad}


def describe_unreadable(failed: Mapping[str, str]) -> list[str]:
    """The lines of one message about all of them."""
    lines = [f"  {video_id}: {reason}" for video_id, reason in failed.items()]
    remedy = "mend them, or pass --allow-missing, which continues without them and says so"
    return [f"videos missing or unreadable: {len(failed)}", *lines, remedy]


def digest_data(questions: Sequence[Question], prompt: Callable[[Question], str]) -> str:
    """A digest of prompts, tasks and right answers, which tells other data and other prompts apart."""
    data = json.dumps([[q.uid, q.task, prompt(q), q.answer] for q in questions])
    return hashlib.sha256(data.encode()).hexdigest()[:16]
