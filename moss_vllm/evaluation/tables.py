"""Tables in the shape of the paper's Table 5."""

from collections.abc import Mapping, Sequence

from moss_vllm.evaluation.scoring import OFFICIAL_COUNTS, PAPER_TABLE_5, Score
from moss_vllm.runtime.tables import Cell, Table


def table_5(
    rows: Mapping[str, Mapping[str, Mapping[str, Cell]]],
    *,
    title: str = "Accuracy on FAVOR-Bench and MotionBench-Dev (%)",
    notes: Sequence[str] = (),
) -> Table:
    """A table of rows (base, + train, ...), each {benchmark: {task: cell}}, with the columns of Table 5.

    A cell may be (mean, spread), see `mean_and_spread`. A task without a value in any row is a column of
    dashes.

    Raises: ValueError for no row, or a benchmark or task that Table 5 does not have.
    """
    if not rows:
        raise ValueError("a table needs at least one row of results")
    columns = {name: list(next(iter(paper.values()))) for name, paper in PAPER_TABLE_5.items()}
    for row, benchmarks in rows.items():
        for name, values in benchmarks.items():
            if strange := set(values) - set(columns.get(name, [])):
                allowed = ", ".join(columns.get(name, columns))
                raise ValueError(f"row {row!r} has {sorted(strange)} of {name!r}; Table 5 has {allowed}")
    shown = {name for benchmarks in rows.values() for name in benchmarks}
    return Table(title, {name: tasks for name, tasks in columns.items() if name in shown}, rows, notes)


def benchmark_table(
    benchmark: str,
    name: str,
    score: Score | None,
    chance: Mapping[str, float],
    *,
    partial: str = "",
    notes: Sequence[str] = (),
    paper: bool = True,
) -> Table:
    """One model on one benchmark: the paper's rows (with `paper`), chance, the model, counts.

    A note says when the numbers of questions are not those of the published benchmark. Without a score the
    paper's rows are left out.
    """
    rows: dict[str, dict[str, Mapping[str, Cell]]] = {
        f"{row} (paper)": {benchmark: values} for row, values in PAPER_TABLE_5[benchmark].items() if paper
    }
    title, notes = f"{benchmark}, accuracy (%)", list(notes)
    if score is None:
        title, rows = f"{benchmark.removesuffix('-Dev')}, answers withheld", {name: {benchmark: {}}}
        notes.append("no question asked has a public answer, so there is no score")
    else:
        counts = {task: count for task, count in score.total.items() if count}
        rows["chance (this data)"] = {benchmark: chance}
        rows[name] = {benchmark: score.accuracy}
        spans = [f"{task} {low:.1f}-{high:.1f}" for task, (low, high) in score.intervals.items()]
        notes.append(f"95 % intervals: {', '.join(spans)}")
        rows["answered"] = {benchmark: {task: score.answered[task] for task in counts}}
        rows["number of questions"] = {benchmark: counts}
        official = OFFICIAL_COUNTS[benchmark]
        published = sum(official.values())
        if {task: count for task, count in counts.items() if task != "all"} != official:
            notes.append(f"{counts['all']:,} questions scored; the published benchmark has {published:,}")
        unread = score.total["all"] - score.answered["all"]
        if unread:
            answers = "1 answer; it counts" if unread == 1 else f"{unread:,} answers; they count"
            notes.append(f"no option could be read from {answers} as wrong")
    return table_5(rows, title=f"{title}, {partial}" if partial else title, notes=notes)
