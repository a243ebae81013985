"""A detector's test as one HTML page: mAP beside the paper's, false positives, classes, videos over time."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import moss_vllm
from moss_vllm.data.detection.datasets import DetectionVideo
from moss_vllm.detection.average_precision import TIOU_THRESHOLDS
from moss_vllm.detection.false_positives import FALSE_POSITIVES, PER_ACTION
from moss_vllm.detection.scores import (
    AVERAGE,
    PAPER_NOTE,
    PAPER_TABLE_8,
    DetectionScores,
    score_detections,
)
from moss_vllm.report import timeline
from moss_vllm.report.bars import Bars, draw_bars
from moss_vllm.report.detection_files import RESULT_FILE, DetectionTest
from moss_vllm.report.html import Html, document, listed, moment, section, table, tag, tiles
from moss_vllm.report.strips import MOST_FRAMES, STRIP_FPS, Strip, draw_frames, limits, read_strips
from moss_vllm.report.timeline import Timeline, draw_on_page, lay_out_video
from moss_vllm.runtime.spelling import spelled
from moss_vllm.runtime.versions import without_absent

PARTS = {
    "score": "Score",
    "errors": "Right and false",
    "classes": "Classes",
    "videos": "Videos",
    "run": "What was tested",
}
COUNTS = ("mAP", "interval_95", "false_positives", "videos", "actions", "detections", "notes")
SAME_MAP = 0.005  # as far as result.json may differ


def detection_page(test: DetectionTest, strips: int | None = None) -> str:
    """The page's HTML.

    Args:
        strips: the number of videos with frames; None means 200, and at most 10 MB of frames.
    """
    most, most_bytes = limits(strips)
    scores, matches = score_detections(test.split, test.predictions), test.match()
    lines = {
        video.video_id: lay_out_video(video, test.split.classes, matches, TIOU_THRESHOLDS)
        for video in test.split.videos
    }
    there = [video for video in test.split.videos if video.path]
    paths = {video.video_id: video.path for video in sort_by_mistakes(there, lines)[:most]}
    lengths = {video.video_id: video.duration_s for video in there}
    frames = read_strips(paths, STRIP_FPS, most_bytes, durations_s=lengths)
    name = f"{test.name} on {test.split.dataset}"
    made = f"Made by moss_vllm {moss_vllm.__version__}, {moment(datetime.now(timezone.utc))}"
    parts = [
        tag("h1", name),
        tag("p", test.split.report()),
        tag("nav", *(tag("a", title, href=f"#{part}") for part, title in PARTS.items())),
        tiles(_figures(scores)),
        listed([*_differences(test, scores), *test.notes, *scores.notes, *test.split.notes]),
        section("score", PARTS["score"], *_score(test, scores)),
        section("errors", PARTS["errors"], *_errors(scores)),
        section("classes", PARTS["classes"], _classes(scores, test.split.classes)),
        section("videos", PARTS["videos"], *_videos(lines, frames)),
        section("run", PARTS["run"], table((), _run(test), class_="pairs")),
        tag("p", made, class_="soft"),
    ]
    return document(name, parts)


def sort_by_mistakes(videos: Sequence[DetectionVideo], lines: Mapping[str, Timeline]) -> list[DetectionVideo]:
    """The videos, those with most missed actions and false detections first."""

    def went_wrong(video: DetectionVideo) -> int:
        lanes = lines[video.video_id].lanes
        missed = sum(not one.found for lane in lanes for one in lane.actions)
        return missed + sum(not one.right for lane in lanes for one in lane.detections)

    return sorted(videos, key=went_wrong, reverse=True)


def _differences(test: DetectionTest, scores: DetectionScores) -> list[str]:
    """A note if result.json tells of other scores."""
    told = test.about.get("mAP", {}).get(AVERAGE)
    if told is None or abs(told - scores.mean[AVERAGE]) <= SAME_MAP:
        return []
    here = f"the detections and videos that are here give {scores.mean[AVERAGE]:.2f}"
    return [f"{RESULT_FILE} has an average mAP of {told:.2f}, {here}; this page counts the latter"]


def _run(test: DetectionTest) -> list[tuple[str, Any]]:
    """What result.json holds beside scores, which stand above."""
    left_out = (*COUNTS, "classes", "split", "environment")
    return [
        *((key, value) for key, value in test.about.items() if key not in left_out),
        *((f"split.{key}", value) for key, value in test.about.get("split", {}).items()),
        *without_absent(test.about.get("environment", {})).items(),
    ]


def _figures(scores: DetectionScores) -> list[tuple[str, str]]:
    low, high = scores.intervals[AVERAGE]
    return [
        (f"{scores.mean[AVERAGE]:.1f} %", "average mAP"),
        (f"{low:.1f} to {high:.1f}", "95 % interval, over videos"),
        (f"{scores.mean[f'{timeline.TIOU:g}']:.1f} %", f"mAP at tIoU {timeline.TIOU:g}"),
        (f"{sum(scores.actions.values()):,}", "actions"),
        (f"{scores.videos:,}", "videos"),
        (f"{scores.rows:,}", "detections"),
    ]


def _score(test: DetectionTest, scores: DetectionScores) -> list[Html]:
    """Bars by threshold, and the table of their numbers."""
    columns, name = list(scores.mean), "this test"
    published = PAPER_TABLE_8.get(str(test.about.get("variant")), {})
    published = published if test.split.dataset == "thumos14" else {}
    paper = {f"{row} (paper)": dict(zip(columns, values, strict=True)) for row, values in published.items()}
    series = [Bars(row, values, f"paper{place}") for place, (row, values) in enumerate(paper.items())]
    series.append(Bars(name, scores.mean, "c0", scores.intervals, labelled=True))
    rows = [[row, *(f"{values[column]:.1f}" for column in columns)] for row, values in paper.items()]
    spans = (f"{low:.1f} to {high:.1f}" for low, high in scores.intervals.values())
    rows += [[name, *(f"{scores.mean[column]:.1f}" for column in columns)], ["95 % interval", *spans]]
    note = "mAP in percent at each temporal IoU; the interval is by bootstrap over videos."
    return [
        draw_bars("mAP at temporal IoU", columns, series),
        table(["%", *columns], map(_numbers, rows), class_="scores"),
        tag("p", f"{note} {PAPER_NOTE[0].upper()}{PAPER_NOTE[1:]}." if paper else note, class_="soft"),
    ]


def _errors(scores: DetectionScores) -> list[Html]:
    """What the best detections are, as a bar and a table."""
    kinds = scores.count_kinds()
    total = max(1, sum(kinds.values()))
    bar, rows = [], []
    for place, (kind, count) in enumerate(kinds.items()):
        share = 100 * count / total
        bar.append(tag("i", class_=f"c{place}", style=f"flex:{share:.2f}", title=f"{kind}: {share:.1f} %"))
        head = tag("td", tag("i", class_=f"box c{place}"), kind)
        rows.append(
            tag("tr", head, *(tag("td", one, class_="number") for one in (f"{count:,}", f"{share:.1f}")))
        )
    note = f"Of the {PER_ACTION} best detections per action and class, at tIoU {scores.split_at:g}."
    return [
        tag("div", *bar, class_="stages"),
        table(["", "detections", "%"], rows, class_="scores"),
        tag("p", note, class_="soft"),
    ]


def _classes(scores: DetectionScores, classes: Sequence[str]) -> Html:
    columns = [column for column in scores.mean if column != AVERAGE]
    rows = []
    for label, values in scores.classes.items():
        percents = [f"{value:.1f}" for value in (*values, sum(values) / len(values))]
        kinds = (f"{count:,}" for count in scores.false_positives[label].values())
        rows.append(_numbers([classes[label], *percents, f"{scores.actions[label]:,}", *kinds]))
    head = ["AP, %", *columns, AVERAGE, "actions", "right", *FALSE_POSITIVES]
    return table(head, rows, class_="scores")


def _numbers(cells: Sequence[str]) -> Html:
    first, *others = cells
    return tag("tr", tag("th", first, scope="row"), *(tag("td", cell, class_="number") for cell in others))


def _videos(lines: Mapping[str, Timeline], frames: Mapping[str, Strip]) -> list[Html]:
    """A figure of each video, with frames above its lanes where they were read."""
    shown = sum("frames" in strip for strip in frames.values())
    times = timeline.DRAWN_PER_ACTION
    note = (
        f"Grey: actions, hollow if missed. Green: detections that are right at tIoU {timeline.TIOU:g}; red: "
        f"false ones; the higher the score, the darker. Drawn are each class's best, {times} "
        f"times as many as it has actions, in up to {timeline.ROWS} rows. Frames are shown of {shown:,} of "
        f"{len(lines):,} videos, up to {MOST_FRAMES} of each, those with most missed and false ones first; "
        f"--strips N takes N videos, 0 none. {spelled('scripts/timeline.py')} draws one video as a picture."
    )
    figures = (_video(one, frames.get(video)) for video, one in lines.items())
    return [tag("p", note, class_="soft"), *figures]


def _video(line: Timeline, strip: Strip | None) -> Html:
    head = tag("figcaption", tag("b", line.video_id), tag("span", line.describe()))
    return tag("figure", head, draw_frames(line.video_id, strip), draw_on_page(line), class_="timeline")
