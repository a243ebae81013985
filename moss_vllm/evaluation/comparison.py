"""Two evaluations of one benchmark, question by question: gains, losses, and whether they may be chance.

Only questions answered in both are compared; the comparison counts and names the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moss_vllm.evaluation.result import Evaluation
from moss_vllm.runtime.versions import tell_changes

DRAWS, SEED = 10_000, 0
FEW_VIDEOS = 30  # a percentile bootstrap of fewer is too narrow: with 10 its 95 % interval covers 90 %
MOST_UIDS = 5
ASKED = ("video_id", "task", "question", "options", "answer")


@dataclass(frozen=True)
class Difference:
    """The second evaluation minus the first in one task; `interval` is None for a single video.

    `accuracy` and `interval` are in percent, `points` in percentage points.
    """

    questions: int
    videos: int
    accuracy: tuple[float, float]
    points: float
    interval: tuple[float, float] | None
    gained: int
    lost: int
    p: float


@dataclass(frozen=True)
class Comparison:
    """The differences between two evaluations.

    Args:
        about: a line about each evaluation.
        tasks: "all" first.
        changed: questions gained or lost.
        left_out: uids of questions that are not compared, by the reason.
    """

    benchmark: str
    names: tuple[str, str]
    about: Sequence[str]
    tasks: Mapping[str, Difference]
    changed: Sequence[Mapping[str, Any]]
    left_out: Mapping[str, Sequence[str]]
    warnings: Sequence[str]

    @property
    def notes(self) -> list[str]:
        """Lines about the evaluations, warnings, questions left out, and how the numbers are computed."""
        first, second = self.names
        few = [task for task, difference in self.tasks.items() if difference.videos < FEW_VIDEOS]
        doubt = [f"under {FEW_VIDEOS} videos in {', '.join(few)}: intervals there are too narrow"]
        return [
            *self.about,
            *(f"WARNING: {warning}" for warning in self.warnings),
            *(f"left out: {_count(uids)} {why} ({_some(uids)})" for why, uids in self.left_out.items()),
            *(doubt if few else []),
            f"difference: {second} minus {first}, in points",
            f"gained: right in {second} only; lost: right in {first} only",
            f"interval: percentile bootstrap, {DRAWS:,} draws, seed {SEED}; videos are drawn, each with all "
            "its questions, as those of one video are not independent",
            "p: McNemar's exact test, two-sided, on gained and lost; it takes questions as independent and "
            "does not correct for several tasks",
        ]


def compare(first: Evaluation, second: Evaluation) -> Comparison:
    """The second against the first, on the questions with a public answer that were asked in both.

    Raises: ValueError for different benchmarks, or no such question.
    """
    names, benchmark = (first.name, second.name), first.header["benchmark"]
    if benchmark != second.header["benchmark"]:
        reason = f"{first.folder} is of {benchmark}, {second.folder} of {second.header['benchmark']}"
        raise ValueError(f"{reason}; compare runs of one benchmark")
    a, b = first.stored.answers, second.stored.answers
    both = [uid for uid in a if uid in b]
    alike = [uid for uid in both if all(a[uid][key] == b[uid][key] for key in ASKED)]
    same = set(alike)
    kept = [uid for uid in alike if a[uid]["answer"] is not None]
    reasons = {
        f"answered in {first.name} only": [uid for uid in a if uid not in b],
        f"answered in {second.name} only": [uid for uid in b if uid not in a],
        f"whose {', '.join(ASKED)} are not the same in both": [uid for uid in both if uid not in same],
        "whose answer is withheld": [uid for uid in alike if a[uid]["answer"] is None],
    }
    left_out = {why: uids for why, uids in reasons.items() if uids}
    if not kept:
        reason = "".join(f"; {_count(uids)} {why}" for why, uids in left_out.items())
        raise ValueError(f"{first.folder} and {second.folder} share no question that has an answer{reason}")
    tasks = np.array([a[uid]["task"] for uid in kept])
    videos = np.array([a[uid]["video_id"] for uid in kept])
    right = np.array([[a[uid]["correct"], b[uid]["correct"]] for uid in kept], int)
    order = [*(first.benchmark.tasks if first.benchmark else []), *tasks.tolist()]
    masks = {task: tasks == task for task in dict.fromkeys(order) if (tasks == task).any()}
    of_tasks = {task: measure_difference(right[mask], videos[mask]) for task, mask in masks.items()}
    return Comparison(
        benchmark,
        names,
        (str(first), str(second)),
        {"all": measure_difference(right, videos), **of_tasks},
        [_change(uid, a[uid], b[uid], names) for uid in kept if a[uid]["correct"] != b[uid]["correct"]],
        left_out,
        _warn(first, second),
    )


def measure_difference(right: np.ndarray, videos: np.ndarray) -> Difference:
    """Compare the answers of two evaluations.

    Shape: right (questions, 2), 1 for a right answer; videos (questions,), the id of each question's video.
    """
    changes = right[:, 1] - right[:, 0]
    gained, lost = int((changes > 0).sum()), int((changes < 0).sum())
    before, after = (100 * float(share) for share in right.mean(0))
    return Difference(
        questions=len(right),
        videos=len(set(videos.tolist())),
        accuracy=(before, after),
        points=100 * (gained - lost) / len(right),
        interval=bootstrap_interval(changes, videos),
        gained=gained,
        lost=lost,
        p=mcnemar(gained, lost),
    )


def mcnemar(gained: int, lost: int) -> float:
    """Probability of a split of the differing pairs at least as uneven by chance: two-sided, exact.

    Reference: McNemar (1947), with the binomial distribution in place of its normal limit.
    """
    pairs, term, tail = gained + lost, 1, 1
    for i in range(min(gained, lost)):
        term = term * (pairs - i) // (i + 1)
        tail += term
    return min(1.0, 2 * tail / 2**pairs)


def bootstrap_interval(
    changes: np.ndarray, videos: np.ndarray, *, draws: int = DRAWS, seed: int = SEED
) -> tuple[float, float] | None:
    """95 % bootstrap interval of the mean change in percent, drawing videos with all their questions.

    Videos with the same number of questions and the same sum of changes are one kind, so that one multinomial
    draw gives the counts of the kinds. The interval of the opposite changes is the opposite interval.
    """
    _, places = np.unique(videos, return_inverse=True)
    sums, sizes = np.bincount(places, changes).astype(int), np.bincount(places)
    if len(sizes) < 2:
        return None
    up, down = (sorted(zip((sign * sums).tolist(), sizes.tolist(), strict=True)) for sign in (1, -1))
    kinds, counts = np.unique(np.array(max(up, down)), axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(sizes), counts / len(sizes), draws)
    means = 100 * (drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1])
    low, high = np.percentile(means if up >= down else -means, (2.5, 97.5)).tolist()
    return low + 0.0, high + 0.0  # never -0.0


def _warn(first: Evaluation, second: Evaluation) -> list[str]:
    """Reasons other than the models why two evaluations may differ."""
    warnings = []
    kinds = {"protocol": "protocols", "generation": "generation configs", "versions": "versions"}
    for key, called in kinds.items():
        was, now = first.header.get(key, {}), second.header.get(key, {})
        differ = [name for name in {**was, **now} if was.get(name) != now.get(name)]
        values = ", ".join(f"{name} {was.get(name)} and {now.get(name)}" for name in differ)
        warnings += [f"the {called} differ: {values}"] if differ else []
    told = first.header.get("versions", {}).keys()
    others = ({k: v for k, v in one.stored.environment.items() if k not in told} for one in (first, second))
    if changes := tell_changes(*others):
        warnings.append(f"the environments differ: {changes}")
    protocols, data = ([one.header[key] for one in (first, second)] for key in ("protocol", "data"))
    if data[0] != data[1]:
        same_prompts = protocols[0].get("name") == protocols[1].get("name")
        why = "" if same_prompts else ", as they do where protocols have other prompts"
        warnings.append(f"the digests of the data differ{why}: {data[0]} and {data[1]}")
    a, b = first.stored.files, second.stored.files
    other = [video for video in a if video in b and a[video]["contents"] != b[video]["contents"]]
    if other:
        warnings.append(f"{len(other):,} videos are other files in both ({_some(other)})")
    weights = [one.header.get("weights") for one in (first, second)]
    if weights[0] and weights[0] == weights[1] and protocols[0] == protocols[1]:
        warnings.append(f"the weights and the protocol are the same ({weights[0]})")
    for one in (first, second):
        done, total, failed = len(one.stored.answers), one.header["questions"], one.stored.failed
        if failed:
            counted = f"{len(failed):,} videos missing or unreadable ({_some([*failed])})"
            warnings.append(f"{one.name} has {counted}: their questions are not compared")
        if done < total:
            warnings.append(f"{one.name} is partial: {done:,} of {total:,} questions have an answer")
    return warnings


def _change(
    uid: str, was: Mapping[str, Any], now: Mapping[str, Any], names: tuple[str, str]
) -> dict[str, Any]:
    return {
        "change": "gained" if now["correct"] else "lost",
        "uid": uid,
        **{key: was[key] for key in ASKED},
        **{key: dict(zip(names, (was[key], now[key]), strict=True)) for key in ("output", "parsed")},
    }


def _count(things: Sequence[Any]) -> str:
    return f"{len(things):,} question{'s' * (len(things) != 1)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_UIDS]) + (", ..." if len(names) > MOST_UIDS else "")
