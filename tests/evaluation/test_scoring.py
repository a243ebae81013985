"""Invariant: judged answers become the numbers of Table 5; test_protocols.py owns the judging."""

import itertools
import math

import pytest

from moss_vllm.data.favor import FAVOR_TASKS
from moss_vllm.data.motionbench import MOTIONBENCH_TASKS
from moss_vllm.data.rows import Question
from moss_vllm.evaluation.scoring import (
    OFFICIAL_COUNTS,
    PAPER_TABLE_5,
    Judged,
    chance_accuracy,
    score,
    wilson_interval,
)


@pytest.mark.parametrize(("benchmark", "questions"), [("FAVOR-Bench", 8184), ("MotionBench-Dev", 4018)])
def test_official_counts(benchmark, questions):
    tasks = FAVOR_TASKS if benchmark == "FAVOR-Bench" else MOTIONBENCH_TASKS
    assert list(OFFICIAL_COUNTS[benchmark]) == list(tasks)
    assert sum(OFFICIAL_COUNTS[benchmark].values()) == questions
    for row in PAPER_TABLE_5[benchmark].values():
        assert list(row) == ["all", *tasks]


@pytest.mark.parametrize(
    ("benchmark", "row", "micro"),
    [
        ("FAVOR-Bench", "VideoLLaMA3-2B", 42.19),
        ("FAVOR-Bench", "+ FAVOR-Train", 45.53),
        ("FAVOR-Bench", "+ FAVOR-Train + MOSS", 46.60),
        ("MotionBench-Dev", "VideoLLaMA3-2B", 50.24),
        ("MotionBench-Dev", "+ FAVOR-Train", 51.45),
        ("MotionBench-Dev", "+ FAVOR-Train + MOSS", 54.21),
    ],
)
def test_table_5_all_is_the_micro_average(benchmark, row, micro):
    """Judged answers with the printed task accuracies give the printed "all" (rounding: 0.05 twice)."""
    printed, counts = PAPER_TABLE_5[benchmark][row], OFFICIAL_COUNTS[benchmark]
    weighted = sum(printed[task] * count for task, count in counts.items()) / sum(counts.values())
    assert round(weighted, 2) == micro
    assert abs(weighted - printed["all"]) < 0.06

    number = itertools.count()
    judged = []
    for task, count in counts.items():
        right = round(count * printed[task] / 100)
        judged += [Judged(str(next(number)), task, n < right, True) for n in range(count)]
    result = score(judged, FAVOR_TASKS if benchmark == "FAVOR-Bench" else MOTIONBENCH_TASKS)
    assert result.total == {"all": sum(counts.values()), **counts}
    assert abs(result.accuracy["all"] - weighted) < 0.04  # half a question per task
    macro = sum(printed[task] for task in counts) / len(counts)
    assert abs(macro - printed["all"]) > 0.2  # so the test tells the two averages apart


def test_score_counts_unanswered_as_wrong_and_divides_by_the_questions_given():
    judged = [
        Judged("1", "MR", True, True),
        Judged("2", "MR", False, False),
        Judged("3", "MR", False, True),
        Judged("4", "RC", True, True),
    ]
    result = score(iter(judged), MOTIONBENCH_TASKS)
    assert list(result.total) == ["all", "MR", "LM", "CM", "MO", "AO", "RC"]
    assert (result.correct["all"], result.answered["all"], result.total["all"]) == (2, 3, 4)
    assert (result.correct["MR"], result.answered["MR"], result.total["MR"]) == (1, 2, 3)
    assert result.accuracy == {"all": 50.0, "MR": pytest.approx(100 / 3, rel=1e-12), "RC": 100.0}
    assert result.total["AO"] == 0 and "AO" not in result.accuracy


@pytest.mark.parametrize(
    ("judged", "message"),
    [
        ([], "no judged question to score"),
        ([Judged("u", "XX", True, True)], "question 'u' has task 'XX'; use one of MR, LM"),
        ([Judged("u", "MR", True, True)] * 2, "question 'u' was judged twice"),
        ([Judged("u", "MR", True, False)], "question 'u' is correct but not answered"),
    ],
)
def test_score_refuses(judged, message):
    with pytest.raises(ValueError, match=message):
        score(judged, MOTIONBENCH_TASKS)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0000),  # what 0 of 20 leaves
    ],
)
def test_intervals_are_those_of_newcombe_1998_table_1(correct, total, low, high):
    """Statistics in Medicine 17, 857-872, method 3: the score interval without continuity correction."""
    assert wilson_interval(correct, total) == pytest.approx((100 * low, 100 * high), abs=0.005)


@pytest.mark.parametrize("correct, total", [(0, 7), (7, 7), (1, 300), (92, 300), (2178, 4018)])
def test_intervals_are_scipys(correct, total):
    tested = pytest.importorskip("scipy.stats").binomtest(correct, total)
    interval = tested.proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, total) == pytest.approx([100 * end for end in interval], abs=1e-5)


def test_a_score_has_an_interval_wherever_it_has_an_accuracy():
    judged = [Judged(str(n), "MR" if n < 20 else "RC", n >= 20, True) for n in range(21)]
    result = score(judged, MOTIONBENCH_TASKS)
    assert result.intervals.keys() == result.accuracy.keys() == {"all", "MR", "RC"}
    assert result.intervals["MR"] == wilson_interval(0, 20)
    assert result.intervals["all"] == wilson_interval(1, 21)
    low, high = result.intervals["RC"]  # z^2 = 3.8415: 1 of 1 is 1 / (1 + z^2) to 1
    assert (low, high) == pytest.approx((100 / 4.8415, 100), abs=0.001)


def test_chance_follows_each_questions_number_of_options():
    asked = [
        Question(str(n), task, "", ("x",) * n, None, "") for n, task in ((3, "MR"), (6, "MR"), (4, "RC"))
    ]
    chance = chance_accuracy(iter(asked))
    assert chance == {"all": 25.0, "MR": 25.0, "RC": 25.0}
    assert math.isclose(chance_accuracy(asked[:1])["all"], 100 / 3)
    with pytest.raises(ValueError, match="no question to guess"):
        chance_accuracy([])
