"""What an evaluation found: stored answers in the order of the data, scored, printed and saved."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moss_vllm.data.rows import BenchmarkVideo, Question
from moss_vllm.evaluation.protocols import Benchmark, Protocol
from moss_vllm.evaluation.scoring import Judged, Score, chance_accuracy, score
from moss_vllm.report import plots
from moss_vllm.runtime.files import write_whole
from moss_vllm.runtime.line_store import Stored


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
    motion_world: bool = False  # then no number compares with the paper's

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

    def table(self) -> plots.Table:
        """The benchmark's part of Table 5: the paper's rows, chance, this model, number of questions."""
        notes = [f"protocol {self.protocol}", *self.notes]
        if rules := self.header.get("generation"):
            told = ", ".join(f"{name}={value}" for name, value in rules.items())
            notes.insert(1, f"greedy, by the model's generation config: {told}")
        if self.failed:
            unseen = sum(r["output"] is None and r["answer"] is not None for r in self.records)
            notes.append(
                f"{len(self.failed)} videos missing or unreadable: their {unseen} questions count as wrong"
            )
        name, found = self.header["checkpoint"], self.score
        return plots.benchmark_table(
            self.benchmark.name,
            name,
            found,
            self.chance,
            partial=self.partial,
            notes=notes,
            paper=not self.motion_world,
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
            "motion_world": self.motion_world,
        }
        texts = {"result.json": json.dumps(told, indent=2) + "\n", "table.md": table.markdown()}
        for name, text in {**texts, "table.tex": table.latex()}.items():
            write_whole(out / name, text)


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
                {"video_id": video.video_id, **record(question, protocol, None, (False, None), None)}
            )
        else:
            pending += 1
    scored = [question for _, question in places if question.answer is not None]
    chance = chance_accuracy(scored) if scored else {}
    mixed = stored.tell_environments()
    notes = [f"not all answers were given with the same: {mixed}"] if mixed else []
    return Result(stored.header or {}, benchmark, protocol, records, chance, pending, failed, notes=notes)


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
        **({"log_likelihood": dict(scores)} if scores else {}),
    }
