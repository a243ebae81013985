"""Owns: tables print the numbers given, in Table 5's order and shape."""

import pytest
from rich.console import Console

from moss_vllm.evaluation.scoring import PAPER_TABLE_5, Judged, score
from moss_vllm.evaluation.tables import benchmark_table, table_5
from moss_vllm.runtime.tables import Table, format_cell, mean_and_spread

TASKS = {task: task for task in ("MR", "LM", "CM", "MO", "AO", "RC")}
ROWS = {
    row: {benchmark: rows[row] for benchmark, rows in PAPER_TABLE_5.items()}
    for row in PAPER_TABLE_5["FAVOR-Bench"]
}


def printed(table, width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_table_5_in_markdown_is_the_papers():
    assert table_5(ROWS, title="T", notes=["n"]).markdown().splitlines() == [
        "**T**",
        "",
        "| method | FAVOR-Bench all | AS | CM | HAC | MAD | NSM | SAD "
        "| MotionBench-Dev all | MR | LM | CM | MO | AO | RC |",
        "| --- |" + " ---: |" * 14,
        "| VideoLLaMA3-2B | 42.2 | 43.8 | 27.3 | 44.4 | 48.1 | 45.3 | 42.8 "
        "| 50.2 | 54.9 | 54.2 | 36.1 | 68.3 | 37.0 | 27.3 |",
        "| + FAVOR-Train | 45.5 | 44.8 | 27.8 | 54.5 | 51.3 | 54.7 | 45.3 "
        "| 51.4 | 55.8 | 54.4 | 36.4 | 68.8 | 38.3 | 33.0 |",
        "| + FAVOR-Train + MOSS | 46.6 | 46.8 | 28.8 | 55.0 | 52.2 | 53.3 | 45.7 "
        "| 54.2 | 59.7 | 55.7 | 48.3 | 68.1 | 38.5 | 34.0 |",
        "",
        "- n",
    ]


@pytest.mark.parametrize(("width", "lines"), [(160, 1), (80, 2)])
def test_a_narrow_terminal_gets_one_table_per_benchmark_and_no_number_is_lost(width, lines):
    text = printed(table_5(ROWS), width)
    rows = [line for line in text.splitlines() if "+ FAVOR-Train + MOSS" in line]
    assert len(rows) == lines
    numbers = [word for line in rows for word in line.split() if word[0].isdigit()]
    assert numbers == "46.6 46.8 28.8 55.0 52.2 53.3 45.7 54.2 59.7 55.7 48.3 68.1 38.5 34.0".split()
    assert all(len(line) <= width for line in text.splitlines())


def test_cells():
    shown = map(format_cell, (50.25, 100.0, 0.0, (46.64, 0.449), 4018, None))
    assert list(shown) == "50.2|100.0|0.0|46.6 ± 0.4|4,018|-".split("|")


def test_mean_and_spread_over_seeds():
    runs = [{"all": 40.0, "MR": 10.0}, {"all": 42.0, "MR": 10.0}, {"all": 44.0, "MR": 10.0}]
    assert mean_and_spread(runs) == {"all": (42.0, 2.0), "MR": (10.0, 0.0)}
    assert mean_and_spread(runs[:1]) == runs[0]
    markdown = table_5({"ours": {"MotionBench-Dev": mean_and_spread(runs)}}).markdown()
    assert "| ours | 42.0 ± 2.0 | 10.0 ± 0.0 | - | - | - | - | - |" in markdown
    with pytest.raises(ValueError, match="different tasks"):
        mean_and_spread([{"all": 1.0}, {"MR": 1.0}])
    with pytest.raises(ValueError, match="one dict of accuracies per seed"):
        mean_and_spread([])


def test_a_spread_wraps_in_80_columns_and_keeps_its_digits():
    spread = {task: (40.0 + i, 1.5) for i, task in enumerate(("all", *TASKS))}
    rows = {"+ FAVOR-Train + MOSS (paper)": {"MotionBench-Dev": spread}}
    words = printed(table_5(rows), 80).split()
    assert [f"{value:.1f}" in words for value in range(40, 47)] == [True] * 7
    assert words.count("1.5") == 7


def test_what_table_5_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"row 'ours' has \['XX'\] of 'FAVOR-Bench'; Table 5 has all, AS"):
        table_5({"ours": {"FAVOR-Bench": {"XX": 1.0}}})
    with pytest.raises(ValueError, match="at least one row"):
        table_5({})


def test_benchmark_table_names_chance_counts_and_what_the_data_are():
    judged = [Judged(f"{i}", "MR", i < 1, i < 2) for i in range(3)] + [Judged("x", "RC", True, True)]
    chance = {"all": 26.25, "MR": 25.0, "RC": 30.0}
    table = benchmark_table(
        "MotionBench-Dev",
        "ours",
        score(judged, TASKS),
        chance,
        partial="partial: 4 of 9 questions",
        notes=["p"],
    )
    lines = table.markdown().splitlines()
    assert lines[0] == "**MotionBench-Dev, accuracy (%), partial: 4 of 9 questions**"
    assert "| VideoLLaMA3-2B (paper) | 50.2 | 54.9 | 54.2 | 36.1 | 68.3 | 37.0 | 27.3 |" in lines
    assert "| chance (this data) | 26.2 | 25.0 | - | - | - | - | 30.0 |" in lines
    assert "| ours | 50.0 | 33.3 | - | - | - | - | 100.0 |" in lines
    assert "| number of questions | 4 | 3 | - | - | - | - | 1 |" in lines
    assert "| answered | 3 | 2 | - | - | - | - | 1 |" in lines
    tex = table.latex().splitlines()
    assert tex[1] == "% method & all & MR & LM & CM & MO & AO & RC"
    assert r"ours & 50.0 & 33.3 & - & - & - & - & 100.0 \\" in tex
    hostile = Table("t", {"B": ["a"]}, {"x_1 & 5 % {$}": {"B": {"a": 1.0}}}).latex().splitlines()[-1]
    assert hostile == r"x\_1 \& 5 \% \{\$\} & 1.0 \\"
    assert lines[-4:] == [
        "- p",
        "- 95 % intervals: all 15.0-85.0, MR 6.1-79.2, RC 20.7-100.0",
        "- 4 questions scored; the published benchmark has 4,018",
        "- no option could be read from 1 answer; it counts as wrong",
    ]
    assert "so there is no score" in benchmark_table("MotionBench-Dev", "ours", None, {}).markdown()
