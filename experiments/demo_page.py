"""The page that the demo ends with: its table and chart, and ten clips with what both models answered."""

from collections.abc import Mapping, Sequence
from itertools import islice

from moss_vllm.data.rows import BenchmarkVideo, Question
from moss_vllm.report.answer_files import Asked, Results
from moss_vllm.report.bars import Bars, draw_bars
from moss_vllm.report.html import Html, document, listed, section, table, tag
from moss_vllm.report.runs_page import SIDE_BY_SIDE
from moss_vllm.report.strips import Strip, read_strips
from moss_vllm.runtime.tables import Table, format_cell

EXAMPLES = 10
COLOURS = ("c6", "c5", "c1", "c0")  # of the rows
RULE = (
    "No answer decides what is shown: these are the first question of each task in the data, then the second "
    f"of each, and so on, up to {EXAMPLES}; tasks come in the benchmark's order, and no clip comes twice."
)
Example = tuple[BenchmarkVideo, Question]


def choose_examples(videos: Sequence[BenchmarkVideo], tasks: Mapping[str, str]) -> list[Example]:
    """Up to ten questions by `RULE`."""
    of_tasks: dict[str, list[Example]] = {task: [] for task in tasks}
    for video in videos:
        for question in video.questions:
            of_tasks[question.task].append((video, question))
    chosen: dict[str, Example] = {}
    longest = max(map(len, of_tasks.values()))
    turns = (some[turn] for turn in range(longest) for some in of_tasks.values() if turn < len(some))
    fresh = ((video, one) for video, one in turns if video.video_id not in chosen)
    for example in islice(fresh, EXAMPLES):
        chosen[example[0].video_id] = example
    return list(chosen.values())


def demo_page(
    scores: Table,
    differences: Sequence[str],
    bars: Mapping[str, Mapping[str, float]],
    chance: Mapping[str, float],
    examples: Sequence[Example],
    answers: Mapping[str, Mapping[str, Results]],
) -> str:
    """The page's HTML.

    Args:
        differences: a headline, then lines.
        bars, chance: accuracies in percent by group; bars by row, too.
        answers: the evaluations of the examples' benchmark by model and protocol.
    """
    series = [
        Bars(row, values, colour, labelled=True)
        for (row, values), colour in zip(bars.items(), COLOURS, strict=True)
    ]
    strips = read_strips({video.video_id: str(video.path) for video, _ in examples}, sample_fps=2.0)
    asked = {
        model: {name: {one.uid: one for one in result.asked} for name, result in some.items()}
        for model, some in answers.items()
    }
    cards = []
    for video, question in examples:
        own = {
            model: {name: by_uid[question.uid] for name, by_uid in some.items()}
            for model, some in asked.items()
        }
        cards.append(_card(video, own, strips[video.video_id]))
    title = "The miniature on the motion world"
    parts = [
        tag("h1", title),
        tag(
            "p",
            "Fine-tuned on captions without and with MOSS, on the same clips in the same order. ",
            tag("a", "Both runs side by side", href=SIDE_BY_SIDE),
            ", with their curves and the scores of each task.",
        ),
        section("scores", "Right answers", _scores(scores), listed(scores.notes)),
        tag("p", differences[0]),
        listed([line.strip() for line in differences[1:]]),
        draw_bars("Right answers, all questions", list(chance), series, chance, "chance", group_px=260),
        section("examples", "Clips", tag("p", RULE, class_="soft"), *cards),
    ]
    return document(title, parts)


def _scores(scores: Table) -> Html:
    places = [(name, column) for name, columns in scores.columns.items() for column in columns]
    rows = (
        [row, *(format_cell(by.get(name, {}).get(column)) for name, column in places)]
        for row, by in scores.rows.items()
    )
    lines = (
        tag("tr", *(tag("td", cell, class_="number" if n else None) for n, cell in enumerate(row)))
        for row in rows
    )
    return table(["%", *(f"{name}, {column}" for name, column in places)], lines, class_="scores")


def _card(video: BenchmarkVideo, answers: Mapping[str, Mapping[str, Asked]], strip: Strip) -> Html:
    """A clip's frames, its question and options, and what each model answered by each protocol."""
    one = next(iter(next(iter(answers.values())).values()))
    options = (
        tag("li", text, class_="key" if n == one.right else None) for n, text in enumerate(one.options)
    )
    rows = [[model, *(_said(answer) for answer in some.values())] for model, some in answers.items()]
    return tag(
        "article",
        tag(
            "header",
            tag("b", one.task),
            tag("span", f"question {one.uid}, video {video.video_id}", class_="soft"),
        ),
        tag("div", *_frames(strip), class_="strip"),
        tag("p", one.question, class_="text"),
        tag("ol", *options, class_="letters"),
        table(["answer", *next(iter(answers.values()))], rows),
    )


def _said(answer: Asked) -> Html:
    right = answer.outcome == "right"
    mark = "✓ right" if right else "✗ names no option" if answer.outcome == "not read" else "✗ wrong"
    return tag(
        "span", tag("span", mark, class_=f"mark {'right' if right else 'wrong'}"), answer.output or "(empty)"
    )


def _frames(strip: Strip) -> list[Html]:
    """The frames with their times, or why there are none."""
    if "failed" in strip:
        return [tag("p", strip["failed"], class_="gone")]
    width, height = strip["size"]
    return [
        tag(
            "figure",
            Html(f'<img width="{width}" height="{height}" alt="" src="data:image/jpeg;base64,{frame}">'),
            tag("figcaption", f"{time:.1f} s"),
        )
        for frame, time in zip(strip["frames"], strip["times"], strict=True)
    ]
