"""Which option was right and which was chosen: how often which together, and how often each at all."""

from collections import Counter
from collections.abc import Hashable, Sequence

from moss_vllm.evaluation.protocols import LETTERS
from moss_vllm.report.answer_files import Asked, Results
from moss_vllm.report.bars import Bars, draw_bars
from moss_vllm.report.html import Html, counted, table, tag

WITHHELD = "withheld"
NO_OPTION = ("several", "no option")


def confusion(asked: Sequence[Asked]) -> dict[int | str, Counter[int | str]]:
    """Right place, or "withheld" -> place chosen, "several" or "no option" -> number of answers."""
    found: dict[int | str, Counter[int | str]] = {}
    for one in asked:
        found.setdefault(WITHHELD if one.right is None else one.right, Counter())[one.choice] += 1
    return found


def option_name(place: int | str, by_text: bool) -> str:
    """A, B, ...; 1, 2, ... where options have no letters; words as they are."""
    if isinstance(place, str):
        return place
    return str(place + 1) if by_text else LETTERS[place]


def show_choices(results: Results) -> list[Html]:
    """Bars of all answers, the matrix of all and of each task."""
    asked = [one for one in results.asked if one.options]
    if not asked:
        return [tag("p", "No question with options is answered yet.")]
    by_text = results.names_options
    what = "position in the list of options" if by_text else "letter"
    told = f"Rows: {what} of the right option. Columns: {what} of the option chosen; the diagonal is right."
    if by_text:
        told += " An output that names several options may be right by the benchmark's own rule."
    small = []
    for task, name in results.tasks.items():
        if of_task := [one for one in asked if one.task == task]:
            head = tag("h4", f"{task}: {name}" if name != task else task)
            small.append(tag("div", head, _matrix(of_task, by_text)))
    return [
        _shares(asked, by_text),
        tag("h3", f"Right and chosen, {counted(len(asked), 'answer')}"),
        tag("p", told, class_="soft"),
        _matrix(asked, by_text),
        *([tag("h3", "Each task"), tag("div", *small, class_="matrices")] if len(small) > 1 else []),
    ]


def _columns(asked: Sequence[Asked]) -> list[int | str]:
    """Every place that an option has, then what was chosen instead of one."""
    seen = {one.choice for one in asked}
    instead = [word for word in NO_OPTION if word in seen or word == "no option"]
    return [*range(max(len(one.options) for one in asked)), *instead]


def _shares(asked: Sequence[Asked], by_text: bool) -> Html:
    """How often each option is right and how often it is chosen, of the questions with a public answer."""
    public = [one for one in asked if one.right is not None]
    shown = public or asked
    columns = _columns(shown)

    def percent(found: Sequence[Hashable], among: Sequence[int | str]) -> dict[str, float]:
        counts = Counter(found)
        return {option_name(place, by_text): 100 * counts[place] / len(found) for place in among}

    series = [Bars("is chosen", percent([one.choice for one in shown], columns), "c0", told=True)]
    if public:
        options = [place for place in columns if isinstance(place, int)]
        series.insert(0, Bars("is right", percent([one.right for one in public], options), "c6", told=True))
    groups = [option_name(place, by_text) for place in columns]
    return draw_bars("How often each option", groups, series, group_px=110)


def _matrix(asked: Sequence[Asked], by_text: bool) -> Html:
    found, columns = confusion(asked), _columns(asked)
    rows = [*(place for place in columns if place in found), *([WITHHELD] if WITHHELD in found else [])]
    head = ["right", *(option_name(place, by_text) for place in columns), "answers", "right, %"]
    lines = []
    for row in rows:
        total = sum(found[row].values())
        cells = [tag("th", option_name(row, by_text), scope="row")]
        for column in columns:
            number = found[row][column]
            kind = "number diagonal" if row == column else "number"
            style = f"--heat:{100 * number / total:.0f}%"
            cells.append(tag("td", f"{number:,}" if number else "·", class_=kind, style=style))
        right = sum(one.outcome == "right" for one in asked if one.right == row)
        share = "-" if row == WITHHELD else f"{100 * right / total:.1f}"
        cells += [tag("td", f"{total:,}", class_="number sum"), tag("td", share, class_="number")]
        lines.append(tag("tr", *cells))
    sums = [sum(found[row][column] for row in rows) for column in columns]
    total_line = [tag("td", f"{number:,}", class_="number") for number in [*sums, sum(sums)]]
    lines.append(tag("tr", tag("th", "chosen", scope="row"), *total_line, tag("td"), class_="sum"))
    return table(head, lines, class_="confusion")
