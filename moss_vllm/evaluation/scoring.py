"""The benchmarks' own rules: which answers are right, and how they become the numbers of Table 5."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from moss_vllm.data.rows import Question

# Questions per task: FAVOR-Bench's from its analyze_qa.py; MotionBench's are its rows with a public answer.
OFFICIAL_COUNTS: dict[str, dict[str, int]] = {
    "FAVOR-Bench": {"AS": 2637, "CM": 1075, "HAC": 1541, "MAD": 1205, "NSM": 64, "SAD": 1662},
    "MotionBench-Dev": {"MR": 1478, "LM": 546, "CM": 385, "MO": 690, "AO": 519, "RC": 400},
}

# As printed. 53.3 for NSM is not a multiple of 1/64 (34/64 = 53.1): one answer moves NSM by 1.6 points.
PAPER_TABLE_5: dict[str, dict[str, dict[str, float]]] = {
    "FAVOR-Bench": {
        row: dict(zip(("all", "AS", "CM", "HAC", "MAD", "NSM", "SAD"), values, strict=True))
        for row, values in {
            "VideoLLaMA3-2B": (42.2, 43.8, 27.3, 44.4, 48.1, 45.3, 42.8),
            "+ FAVOR-Train": (45.5, 44.8, 27.8, 54.5, 51.3, 54.7, 45.3),
            "+ FAVOR-Train + MOSS": (46.6, 46.8, 28.8, 55.0, 52.2, 53.3, 45.7),
        }.items()
    },
    "MotionBench-Dev": {
        row: dict(zip(("all", "MR", "LM", "CM", "MO", "AO", "RC"), values, strict=True))
        for row, values in {
            "VideoLLaMA3-2B": (50.2, 54.9, 54.2, 36.1, 68.3, 37.0, 27.3),
            "+ FAVOR-Train": (51.4, 55.8, 54.4, 36.4, 68.8, 38.3, 33.0),
            "+ FAVOR-Train + MOSS": (54.2, 59.7, 55.7, 48.3, 68.1, 38.5, 34.0),
        }.items()
    },
}


def judge_favor(output: str, answer: str, options: Sequence[str]) -> bool:
    """Judge as FAVOR-Bench does: the output must have the answer's text, but no longer option that has it.

    Options are compared with the answer case-sensitively, and with the output case-insensitively. An output
    that lists several options therefore passes if the right one is among them.

    Reference: FAVOR-Bench/FAVOR-Bench, inference_qa_qwen.py since 2025-05-16.
    """
    text = output.lower()
    longer = [option for option in options if option != answer and answer in option]
    return answer.lower() in text and not any(option.lower() in text for option in longer)


def parse_letter(output: str, options: Sequence[str]) -> str | None:
    """Parse as VideoLLaMA3's multiple-choice evaluations do: the first option letter, or an option's text.

    A capital inside a word counts ("Both" is B). None where the original stops with an error, except for a
    comma or a blank within the brackets around the letter ("A, as", "( A )"), which are ignored here.

    Reference: DAMO-NLP-SG/VideoLLaMA3, evaluation/benchmarks/mvbench.py.
    """
    if not 1 <= len(options) <= 26:
        raise ValueError(f"{len(options)} options cannot be lettered; pass 1 to 26")
    last = chr(ord("A") + len(options) - 1)
    text = output.replace("answer", "").replace("Answer", "")
    letter = re.search(f"[A-{last}]", text)
    if letter:
        return letter[0]
    for index, option in enumerate(options):
        if option.strip().strip(".").lower() in text.lower():
            return chr(ord("A") + index)
    return None


def polish_motionbench(output: str) -> str:
    """Reduce an output to one character as MotionBench does; its case is kept, so "b" is not "B".

    Reference: MotionBench, motionbench/utils/answer_util.py.
    """
    text = output.strip().split(")")[0].strip()
    if "(" in text:
        text = text.split("(")[1].strip()
    return text.split(" ")[0][:1]


@dataclass(frozen=True)
class Judged:
    """The verdict on one question; `answered` is False if no option could be read from the output."""

    uid: str
    task: str
    correct: bool
    answered: bool


@dataclass
class Score:
    """Counts and accuracies per task and for "all" questions; a task without questions has no accuracy."""

    correct: dict[str, int]
    answered: dict[str, int]
    total: dict[str, int]

    @property
    def accuracy(self) -> dict[str, float]:
        """Right answers in percent of the questions, unrounded; "all" is no mean over tasks."""
        return {task: 100 * self.correct[task] / total for task, total in self.total.items() if total}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % interval of each accuracy in percent.

        Reference: Wilson (1927), the score interval; it is never empty and never leaves 0 to 100.
        """
        return {t: wilson_interval(self.correct[t], total) for t, total in self.total.items() if total}


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in percent."""
    share, z2 = correct / total, 1.959964**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = math.sqrt(z2 * (share * (1 - share) / total + z2 / (4 * total**2))) / (1 + z2 / total)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def score(judged: Iterable[Judged], tasks: Mapping[str, str]) -> Score:
    """Count judged questions for "all" and per task, in the order of `tasks`.

    The denominators count all questions in `judged`, answered or not. Leave out questions with a withheld
    answer; MotionBench's own script divides by them too.

    Raises: ValueError for no questions, an unknown task, a uid twice, or a right answer to an unanswered one.
    """
    correct: Counter[str] = Counter()
    answered: Counter[str] = Counter()
    total: Counter[str] = Counter()
    uids: set[str] = set()
    for one in judged:
        if one.task not in tasks:
            raise ValueError(f"question {one.uid!r} has task {one.task!r}; use one of {', '.join(tasks)}")
        if one.uid in uids:
            raise ValueError(f"question {one.uid!r} was judged twice; keep one result of it")
        if one.correct and not one.answered:
            raise ValueError(f"question {one.uid!r} is correct but not answered; set answered to True")
        uids.add(one.uid)
        for key in ("all", one.task):
            correct[key] += one.correct
            answered[key] += one.answered
            total[key] += 1
    if not uids:
        raise ValueError("no judged question to score; check that the run produced any")
    keys = ("all", *tasks)
    return Score(*({key: counts[key] for key in keys} for counts in (correct, answered, total)))


def chance_accuracy(questions: Iterable[Question]) -> dict[str, float]:
    """The accuracy of guessing in percent: the mean of 1 / number of options, per task and for "all"."""
    chances: dict[str, list[float]] = {"all": []}
    for question in questions:
        for key in ("all", question.task):
            chances.setdefault(key, []).append(100 / len(question.options))
    if not chances["all"]:
        raise ValueError("no question to guess; check that the reader returned any")
    return {key: sum(values) / len(values) for key, values in chances.items()}
