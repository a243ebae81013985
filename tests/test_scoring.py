"""Invariant: an output is right exactly when the benchmark's own script says so; Table 5 is reproduced."""

import itertools
import math

import pytest

from moss_vllm.data.favor import FAVOR_TASKS
from moss_vllm.data.motionbench import MOTIONBENCH_TASKS
from moss_vllm.data.rows import Question
from moss_vllm.scoring import (
    OFFICIAL_COUNTS,
    PAPER_TABLE_5,
    Judged,
    chance_accuracy,
    judge_favor,
    parse_letter,
    polish_motionbench,
    score,
)

OPTIONS = ("Pick up the pot", "Turn left", "Turn around", "Put down the pot", "Turn around and walk forward")


@pytest.mark.parametrize(
    ("output", "right"),
    [
        ("Turn around", True),
        ("she TURNED? No: turn AROUND.", True),
        ("['Turn left', 'Turn around']", True),  # a list passes when it holds the answer and no longer option
        ("Turn around and walk forward", False),  # the exception of issue 3
        ("Turn around, not: turn around AND walk forward", False),
        ("turn\naround", False),
        ("C", False),  # letters are never answers here
        ("Turn left", False),
        ("", False),
    ],
)
def test_favor_substring_rule(output, right):
    assert judge_favor(output, "Turn around", OPTIONS) is right


def test_favor_exception_compares_options_with_case_and_outputs_without():
    assert judge_favor("he turns around slowly", "turns", ("turns", "Turns around")) is True
    assert judge_favor("he turns around slowly", "turns", ("turns", "it turns Around")) is True
    assert judge_favor("it turns around slowly", "turns", ("turns", "it turns Around")) is False
    assert judge_favor("it turns", "turns", ("turns", "turns")) is True  # an equal option is no longer one


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("B", "B"),
        ("(C) Turn around", "C"),
        ("Answer: D", "D"),  # "Answer" goes, else its A would be the letter
        ("The answer is E.", "E"),
        ("Based on the video, C", "B"),  # the first capital counts, inside a word too
        ("F", None),  # past the last option
        ("b", None),
        ("turn LEFT", "E"),
        ("she will turn left then turn around", "B"),  # no capital: the first option named, in their order
        ("I think it is turn around.", "C"),
        ("", None),
        ("A, since", "A"),
        ("( A )", "A"),
    ],
)
def test_letter_parser(output, letter):
    assert parse_letter(output, OPTIONS) == letter


def test_letter_parser_strips_the_options_last_stop_and_follows_their_number():
    assert parse_letter("it is the second one", ("the first.", " The second. ", "x")) == "B"
    assert parse_letter("D", OPTIONS[:3]) is None
    assert parse_letter("D", OPTIONS[:4]) == "D"
    assert parse_letter("F", [*OPTIONS, "six"]) == "F"
    with pytest.raises(ValueError, match="0 options cannot be lettered"):
        parse_letter("A", ())


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        (" A\n", "A"),
        ("B. Jump", "B"),
        ("B) Jump", "B"),
        ("The answer is (C) because", "C"),
        ("( D ) x", "D"),
        ("The answer is C", "T"),
        ("c", "c"),
        ("(A and (B)", "A"),
        (")", ""),
        ("(", ""),
        ("", ""),
        ("  ", ""),
    ],
)
def test_motionbench_polishing(output, letter):
    assert polish_motionbench(output) == letter


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


def test_favor_nsm_of_the_paper_is_no_multiple_of_one_question():
    printed = PAPER_TABLE_5["FAVOR-Bench"]["+ FAVOR-Train + MOSS"]["NSM"]
    assert printed not in [round(100 * right / 64, 1) for right in range(65)]


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


def test_chance_follows_each_questions_number_of_options():
    asked = [
        Question(str(n), task, "", ("x",) * n, None, "") for n, task in ((3, "MR"), (6, "MR"), (4, "RC"))
    ]
    chance = chance_accuracy(iter(asked))
    assert chance == {"all": 25.0, "MR": 25.0, "RC": 25.0}
    assert math.isclose(chance_accuracy(asked[:1])["all"], 100 / 3)
    with pytest.raises(ValueError, match="no question to guess"):
        chance_accuracy([])
