"""What a result folder of a script in eval/ holds, complete or not: questions, what was chosen, the score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from moss_vllm.data.rows import Question
from moss_vllm.data.world.benchmarks import is_of_motion_world
from moss_vllm.evaluation.protocols import FAVOR_BENCH, LETTERS, Protocol
from moss_vllm.evaluation.result import OPTION_SCORES, read_evaluation
from moss_vllm.evaluation.scoring import OFFICIAL_COUNTS, Judged, Score, chance_accuracy, score
from moss_vllm.runtime.files import read_json
from moss_vllm.runtime.line_store import ANSWERS, Stored

RESULT = "result.json"


@dataclass(frozen=True)
class Asked:
    """A question and its answer; `right` and `chosen` are places in `options`.

    `outcome` is right, wrong, not read (which counts as wrong) or withheld (which counts as nothing).
    """

    uid: str
    video_id: str
    task: str
    question: str
    options: Sequence[str]
    output: str
    right: int | None
    chosen: Sequence[int]
    outcome: str
    scores: Mapping[str, float]

    @property
    def choice(self) -> int | str:
        """The place of the one option that was chosen, or what there is instead."""
        return self.chosen[0] if len(self.chosen) == 1 else "several" if self.chosen else "no option"


@dataclass
class Results:
    """`done` counts the questions with an answer and, in `unseen` by task, those of videos that failed."""

    folder: Path
    header: Mapping[str, Any]
    protocol: Protocol
    tasks: Mapping[str, str]
    asked: Sequence[Asked]
    stored: Stored
    written: datetime
    done: int
    score: Score | None
    chance: Mapping[str, float]
    unseen: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    motion_world: bool = False

    @property
    def benchmark(self) -> str:
        """Its name in Table 5, or another."""
        return str(self.header.get("benchmark"))

    @property
    def total(self) -> int:
        """Questions of the data, asked or not."""
        return int(self.header["questions"])

    @property
    def names_options(self) -> bool:
        """Whether options are chosen by their texts, not by letters."""
        return names_options(self.protocol, self.benchmark)


def names_options(protocol: Protocol, benchmark: str) -> bool:
    """Whether what was read from an answer are options' texts, not letters."""
    return benchmark == FAVOR_BENCH.name and protocol.name in ("favor_official", "option_text")


def read_results(folder: Path) -> Results:
    """The answers in `folder`, with what its result.json adds if that is of these answers.

    Raises: as `read_evaluation`.
    """
    evaluation = read_evaluation(folder)
    stored, protocol, benchmark = evaluation.stored, evaluation.protocol, evaluation.benchmark
    answers = [
        _read(answer, benchmark is FAVOR_BENCH, names_options(protocol, evaluation.header["benchmark"]))
        for answer in stored.answers.values()
    ]
    tasks = dict(benchmark.tasks) if benchmark else {}
    tasks |= {one.task: one.task for one in answers if one.task not in tasks}
    times = [file.stat().st_mtime for file in (folder / ANSWERS).glob("*.jsonl")]
    written = datetime.fromtimestamp(max(times), timezone.utc)
    scored = [one for one in answers if one.outcome != "withheld"]
    results = Results(
        folder,
        evaluation.header,
        protocol,
        tasks,
        answers,
        stored,
        written,
        len(answers),
        *_score(scored, tasks),
    )
    path = next((str(video.get("path", "")) for video in stored.videos.values()), "")
    results.motion_world = bool(path) and is_of_motion_world(Path(path))  # also before there is a result.json
    _add_result(results)
    _compare_counts(results)
    return results


def _read(answer: Mapping[str, Any], right_is_text: bool, chosen_are_texts: bool) -> Asked:
    options = [str(option) for option in answer["options"]]
    texts, letters = [option.strip() for option in options], list(LETTERS[: len(options)])
    right, parsed = answer["answer"], answer["parsed"]
    if parsed is None:
        named: list[str] = []
    else:  # a text may itself hold what joins several
        named = [parsed] if parsed in texts or not chosen_are_texts else parsed.split("; ")
    outcome = "right" if answer["correct"] else "wrong" if parsed is not None else "not read"
    return Asked(
        uid=answer["uid"],
        video_id=answer["video_id"],
        task=answer["task"],
        question=answer["question"],
        options=options,
        output=answer["output"],
        right=None if right is None else _place(right.strip(), texts if right_is_text else letters),
        chosen=_places(named, texts if chosen_are_texts else letters),
        outcome="withheld" if right is None else outcome,
        scores=next((answer[key] for key in OPTION_SCORES if key in answer), {}),
    )


def _place(one: str, among: Sequence[str]) -> int | None:
    return among.index(one) if one in among else None


def _places(some: Sequence[str], among: Sequence[str]) -> list[int]:
    return [place for one in some if (place := _place(one, among)) is not None]


def _score(scored: Sequence[Asked], tasks: Mapping[str, str]) -> tuple[Score | None, dict[str, float]]:
    """The score and what guessing would get."""
    if not scored:
        return None, {}
    judged = [Judged(one.uid, one.task, one.outcome == "right", one.outcome != "not read") for one in scored]
    questions = [Question(one.uid, one.task, "", tuple(one.options), None, "") for one in scored]
    return score(judged, tasks), chance_accuracy(questions)


def _add_result(results: Results) -> None:
    """Take from result.json its notes and the questions of failed videos, which have no line of answers."""
    file, ours = results.folder / RESULT, results.score
    if not file.is_file():
        results.notes.append(f"{RESULT} is not there, for the evaluation did not come to its end")
        return
    try:
        result = read_json(file, "it is left out here")
        asked, counts, failed = result["asked"], result["counts"], result["failed"]
        same = all(result[key] == value for key, value in results.header.items())
        same = same and (asked > len(results.asked) if failed else asked == len(results.asked))
        for key in ("correct", "answered"):
            same = same and all(counts[key][task] == n for task, n in getattr(ours, key, {}).items())
    except (ValueError, KeyError, TypeError) as error:
        results.notes.append(f"{RESULT} is left out, it is no result of this version ({error})")
        return
    if not same:
        results.notes.append(
            f"{RESULT} tells of {asked:,} questions, at another time or of another run; this page counts the "
            f"{len(results.asked):,} answers that are kept"
        )
        return
    results.done, results.chance = asked, result["chance_percent"]
    results.notes += result["notes"]
    results.motion_world |= result.get("motion_world") is True
    if counts:
        answered = dict.fromkeys(counts["total"], 0) if ours is None else ours.total
        results.unseen = {task: counts["total"][task] - n for task, n in answered.items()}
        results.score = Score(**counts)


def _compare_counts(results: Results) -> None:
    if results.score and results.benchmark in OFFICIAL_COUNTS and not results.motion_world:
        published = OFFICIAL_COUNTS[results.benchmark]
        total = results.score.total
        if {task: n for task, n in total.items() if task != "all" and n} != published:
            results.notes.append(
                f"{total['all']:,} questions are scored, the published benchmark has "
                f"{sum(published.values()):,}: the paper's rows are not comparable"
            )
