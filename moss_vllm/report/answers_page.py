"""An evaluation's answers as one HTML page: scores beside the paper's, choices, time and every question."""

import statistics
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import moss_vllm
from moss_vllm.evaluation.scoring import PAPER_TABLE_5
from moss_vllm.report.answer_files import Asked, Results
from moss_vllm.report.bars import Bars, draw_bars
from moss_vllm.report.choices import show_choices
from moss_vllm.report.html import Html, counted, document, listed, moment, section, table, tag, tiles, trim
from moss_vllm.report.strips import MOST_FRAMES, Strip, choose_videos, limits, read_strips
from moss_vllm.runtime.versions import without_absent

ANSWER_PARTS = {
    "score": "Score",
    "choices": "Choices",
    "time": "Time",
    "questions": "Questions",
    "run": "What was run",
}
OUTCOMES = ("right", "wrong", "not read", "failed", "withheld")
QUESTION_CHARACTERS = 3000  # of a question's text, an option, an output
VIDEOS_NAMED = 20  # failed videos at the top of the page; all are among the questions


def answers_page(results: Results, strips: int | None = None) -> str:
    """The page's HTML.

    Args:
        strips: the number of videos with frames; None means 200, and at most 10 MB of frames.
    """
    most, most_bytes = limits(strips)
    videos = choose_videos(results.asked)[:most]
    paths = {video: str(results.stored.videos[video].get("path")) for video in videos}
    frames = read_strips(paths, results.protocol.sample_fps, most_bytes)
    name = f"{results.header.get('checkpoint')} on {results.benchmark}"
    made = f"Made by moss_vllm {moss_vllm.__version__}, {moment(datetime.now(timezone.utc))}"
    parts = [
        tag("h1", name),
        tag("p", f"Protocol {results.protocol}"),
        tag("nav", *(tag("a", title, href=f"#{part}") for part, title in ANSWER_PARTS.items())),
        *_status(results),
        tiles(_figures(results)),
        listed(results.notes),
        section("score", ANSWER_PARTS["score"], *_score(results)),
        section("choices", ANSWER_PARTS["choices"], *show_choices(results)),
        section("time", ANSWER_PARTS["time"], *_time(results)),
        section("questions", ANSWER_PARTS["questions"], *_browser(results, frames)),
        section("run", ANSWER_PARTS["run"], *_run(results)),
        tag("p", made, class_="soft"),
    ]
    return document(name, parts, _data(results, frames), "answers.js")


def _status(results: Results) -> list[Html]:
    """Whether the evaluation is complete, and the failed videos with their reasons."""
    done, total, failed = results.done, results.total, results.stored.failed
    written = f"the answers were last written {moment(results.written)}"
    if done >= total:
        lines = [tag("p", f"Complete: all {total:,} questions; {written}.", class_="status good")]
    else:
        why = "--limit, an evaluation that was stopped, or one under way"
        lines = [
            tag("p", f"Partial: {done:,} of {total:,} questions ({why}); {written}.", class_="status open")
        ]
    if failed:
        unseen, wrong = results.done - len(results.asked), results.unseen.get("all", 0)
        tally = "not counted in any number"
        if unseen:
            rest = f", the answers of {unseen - wrong:,} are withheld" if unseen > wrong else ""
            tally = f"of their {counted(unseen, 'question')} {wrong:,} count as wrong{rest}"
        names = (
            tag("li", f"{video}: {trim(reason, 600)}")
            for video, reason in list(failed.items())[:VIDEOS_NAMED]
        )
        more = tag("li", f"and {len(failed) - VIDEOS_NAMED:,} more") if len(failed) > VIDEOS_NAMED else ""
        head = f"{counted(len(failed), 'video')} missing or unreadable, {tally}:"
        lines.append(tag("div", head, tag("ul", *names, more), class_="status bad"))
    return lines


def _figures(results: Results) -> list[tuple[str, str]]:
    found, outcomes = results.score, Counter(one.outcome for one in results.asked)
    figures = []
    if found:
        low, high = found.intervals["all"]
        figures += [
            (f"{found.accuracy['all']:.1f} %", "right, all questions"),
            (f"{low:.1f} to {high:.1f}", "95 % interval"),
            (f"{results.chance['all']:.1f} %", "chance"),
            (f"{found.correct['all']:,} of {found.total['all']:,}", "questions right"),
            (f"{outcomes['not read']:,}", "answers that name no option"),
        ]
    if outcomes["withheld"]:
        figures.append((f"{outcomes['withheld']:,}", "questions whose answer is withheld"))
    return [*figures, (f"{len(results.stored.videos):,}", "videos answered")]


def _score(results: Results) -> list[Html]:
    """Bars, and the table of their numbers."""
    score, name = results.score, str(results.header.get("checkpoint"))
    if score is None:
        return [tag("p", "No question asked has a public answer, so there is no score.")]
    published = {} if results.motion_world else PAPER_TABLE_5.get(results.benchmark, {})
    paper = {f"{row} (paper)": values for row, values in published.items()}
    tasks = [task for task in score.total if score.total[task] or any(task in row for row in paper.values())]
    tasks = [task for task in next(iter(paper.values()), {}) if task in tasks] or tasks
    tasks += [task for task in score.total if score.total[task] and task not in tasks]
    series = [Bars(row, values, f"paper{place}") for place, (row, values) in enumerate(paper.items())]
    series.append(Bars(name, score.accuracy, "c0", score.intervals, labelled=True))

    def line(head: str, values: Mapping[str, Any], form: str) -> list[Html]:
        cells = (format(values[task], form) if task in values else "-" for task in tasks)
        return [tag("th", head, scope="row"), *(tag("td", cell, class_="number") for cell in cells)]

    totals = {task: number for task, number in score.total.items() if number}
    spans = {task: f"{low:.1f} to {high:.1f}" for task, (low, high) in score.intervals.items()}
    lines = [
        *(line(row, values, ".1f") for row, values in paper.items()),
        line("chance (this data)", results.chance, ".1f"),
        line(name, score.accuracy, ".1f"),
        line("95 % interval", spans, ""),
        line("right", {task: score.correct[task] for task in totals}, ",d"),
        line("answers that name an option", {task: score.answered[task] for task in totals}, ",d"),
        line("questions", totals, ",d"),
    ]
    names = ", ".join(
        f"{task}: {results.tasks[task]}" for task in tasks if results.tasks.get(task, task) != task
    )
    rows = [tag("tr", *cells, class_="mine" if cells is lines[len(paper) + 1] else None) for cells in lines]
    return [
        draw_bars("Right answers of each task", tasks, series, results.chance, "chance (this data)"),
        table(["%", *tasks], rows, class_="scores"),
        tag("p", names, class_="soft"),
        tag("p", "Intervals are Wilson's. An answer that names no option counts as wrong.", class_="soft"),
    ]


def _time(results: Results) -> list[Html]:
    """Seconds of each stage over all videos, and the numbers of frames and tokens of a video."""
    videos = list(results.stored.videos.values())
    seconds: dict[str, list[float]] = {}
    for video in videos:
        for stage, value in video.get("seconds", {}).items():
            seconds.setdefault(stage, []).append(value)
    whole = sum(map(sum, seconds.values()))
    if not whole:
        return [tag("p", "No video is answered yet.")]
    bar, lines = [], []
    for place, (stage, values) in enumerate(seconds.items()):
        share = 100 * sum(values) / whole
        bar.append(tag("i", class_=f"c{place}", style=f"flex:{share:.2f}", title=f"{stage}: {share:.1f} %"))
        figures = [f"{sum(values):,.1f}", f"{share:.1f}"]
        figures += [f"{statistics.median(values):,.3f}", f"{max(values):,.3f}"]
        cells = (tag("td", one, class_="number") for one in figures)
        lines.append(tag("tr", tag("td", tag("i", class_=f"box c{place}"), stage), *cells))
    sizes = []
    for key, name in (("frames", "frames of a video"), ("shared_tokens", "tokens its questions share")):
        if counts := [video[key] for video in videos if isinstance(video.get(key), int)]:
            sizes.append([name, min(counts), int(statistics.median(counts)), max(counts), sum(counts)])
    note = "Videos are decoded by threads while others are answered, so stages overlap in time."
    videos_counted = counted(len(videos), "video")
    return [
        tag("div", *bar, class_="stages"),
        tag(
            "div",
            tag(
                "div", table(["stage", "seconds", "%", "median of a video, s", "longest, s"], lines, "scores")
            ),
            tag("div", table([videos_counted, "least", "median", "most", "sum"], sizes, "scores")),
            class_="columns",
        ),
        tag("p", note, class_="soft"),
    ]


def _browser(results: Results, strips: Mapping[str, Strip]) -> list[Html]:
    """The controls; answers.js builds the questions on view from the page's data."""
    shown = [video for video, strip in strips.items() if "frames" in strip]
    bad = [video for video, strip in strips.items() if "failed" in strip]
    total = len(results.stored.videos)
    note = (
        f"Frames are shown of {len(shown):,} of {counted(total, 'video')}, up to {MOST_FRAMES} spread evenly "
    )
    note += "over each; " + ("wrong answers come first, the tasks in turn; " if total > len(strips) else "")
    note += "--strips N takes N videos, 0 none."
    if bad:
        more = f" and {len(bad) - VIDEOS_NAMED:,} more" if len(bad) > VIDEOS_NAMED else ""
        note += f" {counted(len(bad), 'video')} cannot be read now: {', '.join(bad[:VIDEOS_NAMED])}{more}."
    if results.protocol.still and shown:
        note += " The model was shown one frame only, the middle one; these are the video's own."
    number = len(results.asked) + len(results.stored.failed)
    outcomes = {one.outcome for one in results.asked} | ({"failed"} if results.stored.failed else set())
    label = {outcome: outcome.capitalize() for outcome in OUTCOMES}
    label |= {"failed": "Failed videos"} | ({} if results.score else {"withheld": "Not judged"})
    search = tag("input", type="search", id="search", placeholder="uid, video, question, option, output")
    return [
        tag("p", note, class_="soft"),
        tag("noscript", tag("p", "Scripts are off in this browser; the questions need them.")),
        tag(
            "div",
            _filter("task", "All tasks", {task: task for task in _tasks_asked(results)}),
            _filter("outcome", "All", {one: label[one] for one in OUTCOMES if one in outcomes}),
            tag("div", tag("label", "Search ", search), class_="filter"),
            id="controls",
            hidden="",
        ),
        tag("div", _pager(), tag("div", id="list", data_total=number), _pager(), id="browser", hidden=""),
    ]


def _tasks_asked(results: Results) -> list[str]:
    there = {one.task for one in results.asked}
    return [task for task in results.tasks if task in there]


def _filter(key: str, all_: str, choices: Mapping[str, str]) -> Html:
    """Buttons, one of them pressed; answers.js writes the number of questions of each."""
    buttons = [("", all_), *choices.items()]
    made = (
        tag(
            "button",
            f"{label} ",
            tag("span"),
            type="button",
            data_only=only,
            aria_pressed=str(not only).lower(),
        )
        for only, label in buttons
    )
    return tag("div", *made, class_="filter", data_key=key, role="group", aria_label=key)


def _pager() -> Html:
    before = tag("button", "← previous", type="button", data_by=-1)
    after = tag("button", "next →", type="button", data_by=1)
    return tag("div", before, tag("span", aria_live="polite"), after, class_="filter pager")


def _run(results: Results) -> list[Html]:
    """The header of the answers, and one of the prompts."""
    header = dict(results.header)
    protocol, environment, versions, run = (
        header.pop(key, None) or {} for key in ("protocol", "environment", "versions", "run")
    )
    first = next(iter(results.stored.answers.values()), {})
    rows = [*header.items(), *{**without_absent(environment), **versions}.items()]
    more = [("protocol." + key, value) for key, value in protocol.items()]
    parts = [
        tag("h3", "A prompt, as put"),
        tag("pre", trim(str(first.get("prompt", "-")), QUESTION_CHARACTERS)),
        tag("h3", "Header of the answers"),
        tag("div", table((), rows, class_="pairs"), table((), more, class_="pairs"), class_="columns"),
    ]
    if run:
        parts += [tag("h3", "The checkpoint's own run"), table((), list(run.items()), class_="pairs")]
    return parts


def _data(results: Results, strips: Mapping[str, Strip]) -> dict[str, Any]:
    """The data of answers.js, with numbers for videos and tasks to keep it small."""
    failed = results.stored.failed
    videos = list(dict.fromkeys([*(one.video_id for one in results.asked), *failed]))
    place = {video: number for number, video in enumerate(videos)}
    tasks = {task: number for number, task in enumerate(results.tasks)}
    rows = [_row(one, place[one.video_id], tasks[one.task]) for one in results.asked]
    for video, reason in failed.items():
        rows.append(
            [
                "",
                place[video],
                -1,
                OUTCOMES.index("failed"),
                trim(reason, QUESTION_CHARACTERS),
                [],
                None,
                [],
                "",
                {},
            ]
        )
    return {
        "tasks": list(results.tasks.items()),
        "outcomes": OUTCOMES,
        "videos": videos,
        "strips": {place[video]: strip for video, strip in strips.items()},
        "letters": not results.names_options,
        "score": "mean loss" if results.protocol.by_text else "log-likelihood",
        "questions": rows,
    }


def _row(one: Asked, video: int, task: int) -> list[Any]:
    scores = {name: f"{value:.2f}" for name, value in one.scores.items()}  # NaN is no JSON
    return [
        one.uid,
        video,
        task,
        OUTCOMES.index(one.outcome),
        trim(one.question, QUESTION_CHARACTERS),
        [trim(option, QUESTION_CHARACTERS) for option in one.options],
        one.right,
        one.chosen,
        trim(one.output, QUESTION_CHARACTERS),
        scores,
    ]
