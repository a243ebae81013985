"""How often each option was right, was chosen, and each pair of right and chosen option occurred."""

from collections import Counter
from collections.abc import Hashable, Sequence

from moss_vllm.evaluation.protocols import LETTERS
from moss_vllm.report.answer_files import Asked, Results
from moss_vllm.report.bars import Bars, draw_bars
from moss_vllm.report.html import Html, counted, table, tag

NO_ANSWER = "withheld"
NO_OPTION = ("several", "no option")


def confusion(asked: Sequence[Asked]) -> dict[int | str, Counter[int | str]]:
    """Right place or "withheld" -> chosen place, "several" or "no option" -> number of answers."""
    counts: dict[int | str, Counter[int | str]] = {}
    for one in asked:
        counts.setdefault(NO_ANSWER if one.right is None else one.right, Counter())[one.choice] += 1
    return counts


def option_name(place: int | str, by_text: bool) -> str:
    """A, B, ... for places; 1, 2, ... where options have no letters; words stay as they are."""
    if isinstance(place, str):
        return place
    return str(place + 1) if by_text else LETTERS[place]


def show_choices(results: Results) -> list[Html]:
    """Bars of all answers, then the matrix of all answers and that of each task."""
    choices = [one for one in results.asked if one.options]
    if not choices:
        return [tag("p", "No question with options is answered yet.")]
    by_text = results.names_options
    what = "position in the list of options" if by_text else "letter"
    note = f"Rows: {what} of the right option. Columns: {what} of the option chosen; the diagonal is right."
    if by_text:
        note += " An output that names several options may be right by the benchmark's own rule."
    small = []
    for task, name in results.tasks.items():
        if of_task := [one for one in choices if one.task == task]:
            head = tag("h4", f"{task}: {name}" if name != task else task)
            small.append(tag("div", head, _matrix(of_task, by_text)))
    return [
        _shares(choices, by_text),
        tag("h3", f"Right and chosen, {counted(len(choices), 'answer')}"),
        tag("p", note, class_="soft"),
        _matrix(choices, by_text),
        *([tag("h3", "Each task"), tag("div", *small, class_="matrices")] if len(small) > 1 else []),
    ]


def _columns(asked: Sequence[Asked]) -> list[int | str]:
    """Every place of an option, then the words for answers that chose no single option."""
    chosen = {one.choice for one in asked}
    instead = [word for word in NO_OPTION if word in chosen or word == "no option"]
    return [*range(max(len(one.options) for one in asked)), *instead]


def _shares(asked: Sequence[Asked], by_text: bool) -> Html:
    """How often each option is right and is chosen, over the questions with a public answer."""
    public = [one for one in asked if one.right is not None]
    shown = public or asked
    columns = _columns(shown)

    def percent(places: Sequence[Hashable], among: Sequence[int | str]) -> dict[str, float]:
        counts = Counter(places)
        return {option_name(place, by_text): 100 * counts[place] / len(places) for place in among}

    series = [Bars("is chosen", percent([one.choice for one in shown], columns), "c0", labelled=True)]
    if public:
        options = [place for place in columns if isinstance(place, int)]
        series.insert(
            0, Bars("is right", percent([one.right for one in public], options), "c6", labelled=True)
        )
    groups = [option_name(place, by_text) for place in columns]
    return draw_bars("How often each option", groups, series, group_px=110)


def _matrix(asked: Sequence[Asked], by_text: bool) -> Html:
    counts, columns = confusion(asked), _columns(asked)
    rows = [*(place for place in columns if place in counts), *([NO_ANSWER] if NO_ANSWER in counts else [])]
    head = ["right", *(option_name(place, by_text) for place in columns), "answers", "right, %"]
    lines = []
    for row in rows:
        total = sum(counts[row].values())
        cells = [tag("th", option_name(row, by_text), scope="row")]
        for column in columns:
            number = counts[row][column]
            kind = "number diagonal" if row == column else "number"
            style = f"--heat:{100 * number / total:.0f}%"
            cells.append(tag("td", f"{number:,}" if number else "·", class_=kind, style=style))
        right = sum(one.outcome == "right" for one in asked if one.right == row)
        share = "-" if row == NO_ANSWER else f"{100 * right / total:.1f}"
        cells += [tag("td", f"{total:,}", class_="number sum"), tag("td", share, class_="number")]
        lines.append(tag("tr", *cells))
    sums = [sum(counts[row][column] for row in rows) for column in columns]
    total_line = [tag("td", f"{number:,}", class_="number") for number in [*sums, sum(sums)]]
    lines.append(tag("tr", tag("th", "chosen", scope="row"), *total_line, tag("td"), class_="sum"))
    return table(head, lines, class_="confusion")
