"""Answers read from a result folder: put in the order of the data, scored, printed and saved."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moss_vllm.data.rows import Question
from moss_vllm.evaluation.protocols import BENCHMARKS, Benchmark, Protocol, Questions, restore_protocol
from moss_vllm.evaluation.scoring import Judged, Score, chance_accuracy, score
from moss_vllm.evaluation.tables import benchmark_table
from moss_vllm.runtime.files import write_whole
from moss_vllm.runtime.line_store import (
    ANSWERS,
    NUMBER,
    Fields,
    Schema,
    Stored,
    holds_answers,
    read_answers,
)
from moss_vllm.runtime.tables import Table

# Scores of options by letter: the letter's own as the next token, or its text's per token.
OPTION_SCORES = ("log_likelihood", "mean_loss")
TEXT, COUNT, YES_NO = (str, type(None)), (int, type(None)), (bool, type(None))


def _check_answer(answer: dict[str, Any]) -> None:
    withheld, judged = answer["answer"] is None, answer["correct"] is not None
    unread = bool(answer["correct"]) and answer["parsed"] is None
    if withheld == judged or unread or not (withheld or answer.get("options", True)):
        values = (f"{key!r} {answer.get(key)!r}" for key in ("parsed", "answer", "correct", "options"))
        raise ValueError(f"question {answer['uid']!r} has {', '.join(values)}")
    for key in OPTION_SCORES:
        if wrong := [value for value in answer.get(key, {}).values() if not isinstance(value, NUMBER)]:
            raise ValueError(f"question {answer['uid']!r} has {key!r} {wrong[0]!r}")


# What `record` and `asking.describe_evaluation` write.
QUESTION_SCHEMA = Schema(
    header=Fields(
        {"benchmark": str, "checkpoint": str, "protocol": dict, "questions": int},
        {"versions": dict, "run": dict, "generation": dict},
    ),
    parts={
        "protocol": Fields(
            {"name": str},
            {
                **{"sample_fps": NUMBER, "max_frames": int, "compress_tokens": bool, "still": bool},
                **dict.fromkeys(("short_side_px", "max_pixels", "max_new_tokens"), COUNT),
            },
        )
    },
    answer=Fields(
        {"task": str, "output": str, "parsed": TEXT, "answer": TEXT, "correct": YES_NO},
        {"question": str, "options": list, **dict.fromkeys(OPTION_SCORES, dict)},
    ),
    check_answer=_check_answer,
    is_of_task=lambda header: header["protocol"]["name"] not in ("views", "windows"),
    source="what was --out of eval/motionbench.py or eval/favor_bench.py",
)


@dataclass(frozen=True)
class Evaluation:
    """The contents of a result folder, complete or not."""

    name: str
    folder: Path
    protocol: Protocol
    stored: Stored

    @property
    def header(self) -> Mapping[str, Any]:
        """What was run."""
        return self.stored.header or {}

    @property
    def benchmark(self) -> Benchmark | None:
        """The benchmark; None for other questions, such as those for captions."""
        return BENCHMARKS.get(self.header["benchmark"])

    def __str__(self) -> str:
        where = f"checkpoint {self.header['checkpoint']} in {self.folder}"
        return f"{self.name}: {where}, protocol {self.protocol}"


def read_evaluation(folder: Path, name: str = "") -> Evaluation:
    """The answers of all processes in a result folder; `name` is its name in a comparison.

    Raises: ValueError for a folder without an answer, with damaged lines, or with those of an old version.
    """
    if not holds_answers(folder):
        raise ValueError(f"{folder} holds no answers; name {QUESTION_SCHEMA.source}")
    stored = read_answers(folder / ANSWERS, QUESTION_SCHEMA)
    if stored.header is None:
        raise ValueError(f"{folder / ANSWERS} holds no whole line yet; wait for the evaluation to write one")
    absent = {"data"} - stored.header.keys()
    for answer in stored.answers.values():
        absent |= {"question", "options"} - answer.keys()
    if absent:
        remedy = "evaluate again with this version, to another --out"
        raise ValueError(f"{folder / ANSWERS} lacks {', '.join(sorted(absent))}; {remedy}")
    return Evaluation(name or folder.name, folder, restore_protocol(stored.header["protocol"]), stored)


@dataclass
class Result:
    """Answers of a benchmark; `records` are in the order of the data, without the `pending` ones."""

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
    motion_world: bool = False  # then the paper's rows are left out: they are of other data

    @property
    def judged(self) -> list[Judged]:
        """Verdicts on the questions with a public answer."""
        scored = [record for record in self.records if record["answer"] is not None]
        return [Judged(r["uid"], r["task"], r["correct"], r["parsed"] is not None) for r in scored]

    @property
    def score(self) -> Score | None:
        """Counts and percent; None if no question has a public answer."""
        return score(self.judged, self.benchmark.tasks) if self.judged else None

    @property
    def partial(self) -> str:
        """A label with the number of questions asked; empty if all were."""
        done, total = len(self.records), self.header["questions"]
        return f"partial: {done} of {total} questions" if done < total else ""

    def table(self) -> Table:
        """The benchmark's part of Table 5: the paper's rows, chance, this model, numbers of questions."""
        notes = [f"protocol {self.protocol}", *self.notes]
        if rules := self.header.get("generation"):
            listed = ", ".join(f"{name}={value}" for name, value in rules.items())
            notes.insert(1, f"greedy, by the model's generation config: {listed}")
        if self.failed:
            unseen = sum(r["output"] is None and r["answer"] is not None for r in self.records)
            notes.append(
                f"{len(self.failed)} videos missing or unreadable: their {unseen} questions count as wrong"
            )
        return benchmark_table(
            self.benchmark.name,
            self.header["checkpoint"],
            self.score,
            self.chance,
            partial=self.partial,
            notes=notes,
            paper=not self.motion_world,
        )

    def save(self, out: Path) -> None:
        """Write `result.json` (unrounded), `table.md` and `table.tex`, each whole."""
        scored, table = self.score, self.table()
        counts = {} if scored is None else {k: getattr(scored, k) for k in ("correct", "answered", "total")}
        content = {
            **self.header,
            "asked": len(self.records),
            "partial": self.partial or None,
            "accuracy_percent": {} if scored is None else scored.accuracy,
            "interval_95_percent": {} if scored is None else scored.intervals,
            "counts": counts,
            "chance_percent": self.chance,
            "failed": self.failed,
            "seconds": self.seconds,
            "answered_by_earlier_runs": self.resumed,
            "notes": [*self.notes],
            "motion_world": self.motion_world,
        }
        texts = {"result.json": json.dumps(content, indent=2) + "\n", "table.md": table.markdown()}
        for name, text in {**texts, "table.tex": table.latex()}.items():
            write_whole(out / name, text)


def collect(stored: Stored, questions: Questions, protocol: Protocol) -> Result:
    """Put answers in the order of the data; `pending` counts questions without one.

    With `allow_missing`, questions about videos that failed have a record without an output.
    """
    pairs = [(video, question) for video in questions.videos for question in video.questions]
    pairs = pairs[: questions.limit]
    records, failed, pending = [], dict[str, str](), 0
    for video, question in pairs:
        if question.uid in stored.answers:
            records.append(stored.answers[question.uid])
        elif questions.allow_missing and video.video_id in stored.failed:
            failed[video.video_id] = stored.failed[video.video_id]
            records.append(
                {"video_id": video.video_id, **record(question, protocol, None, (False, None), None)}
            )
        else:
            pending += 1
    scored = [question for _, question in pairs if question.answer is not None]
    chance = chance_accuracy(scored) if scored else {}
    header, notes = stored.header or {}, stored.tell_mixed()
    return Result(header, questions.benchmark, protocol, records, chance, pending, failed, notes=notes)


def record(
    question: Question,
    protocol: Protocol,
    output: str | None,
    judged: tuple[bool, str | None],
    scores: Mapping[str, float] | None,
) -> dict[str, Any]:
    """An answer as it is stored."""
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
        **({OPTION_SCORES[protocol.by_text]: protocol.scores_by_letter(question, scores)} if scores else {}),
    }
