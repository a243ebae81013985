"""Owns: the table of right and chosen options counts every answer once."""

import re
from pathlib import Path

from answer_folders import LETTER, OFFICIAL, ask, in_turn, question
from pages import write

from moss_vllm.data.rows import BenchmarkVideo
from moss_vllm.evaluation.protocols import FAVOR_BENCH, MOTIONBENCH
from moss_vllm.report.answer_files import read_results
from moss_vllm.report.choices import confusion


def test_the_matrix_has_right_and_chosen_letters(tmp_path):
    said = {"a": "A", "b": "A", "c": "B", "d": "nothing", "e": "C", "f": "b", "g": "A"}
    right = {"a": "A", "b": "B", "c": "B", "d": "B", "e": "A", "f": "C", "g": None}
    tasks = {"a": "MR", "b": "MR", "c": "CM", "d": "CM", "e": "MR", "f": "MR", "g": "MR"}
    asked = tuple(question(uid, tasks[uid], right[uid]) for uid in said)
    ask(tmp_path, [BenchmarkVideo("v", Path("v"), asked)], MOTIONBENCH, LETTER, lambda q: said[q.uid])
    results = read_results(tmp_path)
    assert confusion(results.asked) == {
        0: {0: 1, 2: 1},
        1: {0: 1, 1: 1, "no option": 1},
        2: {"no option": 1},
        "withheld": {0: 1},
    }
    page = write(tmp_path, "--strips", "0")
    matrix = [cells for cells in page.cells if len(cells) == 7]
    assert matrix[:6] == [
        ["right", "A", "B", "C", "no option", "answers", "right, %"],
        ["A", "1", "·", "1", "·", "2", "50.0"],
        ["B", "1", "1", "·", "1", "3", "33.3"],
        ["C", "·", "·", "·", "1", "1", "0.0"],
        ["withheld", "1", "·", "·", "·", "1", "-"],
        ["chosen", "3", "1", "1", "2", "7", ""],
    ]
    assert ["B", "·", "1", "·", "1", "2", "50.0"] in matrix[6:]  # CM alone
    bars = re.findall(r"<title>(is .*?)</title>", page.source)
    assert (
        "is right, B: 50.0" in bars and "is chosen, A: 33.3" in bars and "is chosen, no option: 33.3" in bars
    )
    assert page.outcomes() == dict(
        zip("abcdefg", ["right", "wrong", "right", "not read", "wrong", "not read", "withheld"], strict=True)
    )


def test_the_matrix_of_favors_own_protocol_has_positions(tmp_path):
    options = ("moves left", "moves left; then up", "stays still")
    said = ("It Moves Left", "moves left; then up", "stays still, or moves left", "C", "stays still")
    right = dict(zip("abcde", (options[place] for place in (0, 0, 2, 0, 2)), strict=True))
    asked = tuple(question(uid, "CM", answer, options) for uid, answer in right.items())
    ask(tmp_path, [BenchmarkVideo("v", Path("v"), asked)], FAVOR_BENCH, OFFICIAL, in_turn(*said))
    page = write(tmp_path, "--strips", "0")
    start = next(
        number for number, cells in enumerate(page.cells) if cells[0] == "right" and "several" in cells
    )
    assert page.cells[start : start + 4] == [
        ["right", "1", "2", "3", "several", "no option", "answers", "right, %"],
        ["1", "1", "1", "·", "·", "1", "3", "33.3"],
        ["3", "·", "·", "1", "1", "·", "2", "100.0"],
        ["chosen", "1", "1", "1", "1", "1", "5", ""],
    ]
    chosen = {uid: (row[6], row[7]) for uid, row in page.questions.items()}
    assert chosen == {"a": (0, [0]), "b": (0, [1]), "c": (2, [0, 2]), "d": (0, []), "e": (2, [2])}
    assert page.data["letters"] is False
    assert confusion(read_results(tmp_path).asked) == {
        0: {0: 1, 1: 1, "no option": 1},
        2: {"several": 1, 2: 1},
    }
