"""Folders of evaluations, written without a model."""

from moss_vllm.data.rows import Question
from moss_vllm.evaluation.protocols import FAVOR_BENCH, MOTIONBENCH, Questions
from moss_vllm.evaluation.result import QUESTION_SCHEMA, collect, record
from moss_vllm.runtime.line_store import AnswerFile, Shard, read_answers

LETTER = MOTIONBENCH.protocols["letter"]
OFFICIAL = FAVOR_BENCH.protocols["favor_official"]


def ask(out, videos, benchmark, protocol, said, *, failed=None, total=None, limit=None, save=True):
    """What eval/*.py leaves in `out` where `said` gives the output (or scores by letter) to each question."""
    failed = failed or {}
    questions = [question for video in videos for question in video.questions]
    header = {"benchmark": benchmark.name, "checkpoint": "base", "weights": "0" * 16}
    header |= {"protocol": protocol.settings, "questions": total or len(questions), "data": "1" * 16}
    header |= {"versions": {"torch": "2"}, "run": {}}
    with AnswerFile(out / "answers", header, Shard()) as file:
        for video in videos:
            if video.video_id in failed:
                file.add({"video_id": video.video_id, "failed": failed[video.video_id], "answers": []})
                continue
            answers = [answer(question, protocol, said(question)) for question in video.questions]
            seconds = {"decode": 0.5, "encode": 1.0, "prefill": 0.25, "answer": 0.25}
            about = {"frames": 8, "shared_tokens": 200, "seconds": seconds}
            file.add({"video_id": video.video_id, "path": str(video.path), **about, "answers": answers})
    questions = Questions(benchmark, videos, limit, allow_missing=bool(failed))
    result = collect(read_answers(out / "answers", QUESTION_SCHEMA), questions, protocol)
    if save:
        result.save(out)
    return result


def answer(question, protocol, said):
    scores = said if isinstance(said, dict) else None
    if scores and protocol.by_text:  # by letter, and of each text
        output = dict(zip(scores, question.options, strict=False))[min(scores, key=scores.get)].strip()
        scores = dict(zip(map(str.strip, question.options), scores.values(), strict=False))
    else:
        output = max(scores, key=scores.get) if scores else said
    return record(question, protocol, output, protocol.judge(output, question), scores)


def in_turn(*outputs):
    """A model that gives these outputs, over and over."""
    left = []

    def say(question):
        left[:] = left or outputs
        return left.pop(0)

    return say


def question(uid, task, answer, options=("left", "right", "up")):
    return Question(uid, task, f"Where to, {uid}?", options, answer, f"Where to, {uid}?")
