"""A boundary model's test as one HTML page: F1 beside the paper's, and clips over time."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import moss_vllm
from moss_vllm.boundaries.f1 import F1_RULES
from moss_vllm.boundaries.scores import BoundaryScores, score_boundaries, score_table
from moss_vllm.data.boundaries.annotation import BoundaryVideo
from moss_vllm.report.bars import Bars, draw_bars
from moss_vllm.report.boundary_files import RESULT_FILE, BoundaryTest, read_boundary_test
from moss_vllm.report.html import (
    Html,
    choose_file,
    document,
    listed,
    moment,
    section,
    table,
    tag,
    tiles,
    write_page,
)
from moss_vllm.report.score_curve import (
    DISTANCE,
    ScoreCurve,
    draw_curve_as_png,
    draw_curve_on_page,
    lay_out_clip,
)
from moss_vllm.report.strips import (
    MOST_FRAMES,
    MOST_VIDEOS,
    STRIP_FPS,
    Strip,
    draw_frames,
    limits,
    read_spread,
    read_strips,
)
from moss_vllm.report.timeline import picture_of
from moss_vllm.runtime.files import refuse_unwritable
from moss_vllm.runtime.spelling import spelled
from moss_vllm.runtime.versions import without_absent

SECTIONS = {"score": "Score", "clips": "Clips", "run": "What was tested"}
SAME_F1 = 0.005  # as far as result.json may differ


def boundary_page(test: BoundaryTest, strips: int | None = None) -> str:
    """The page's HTML, with the clips that have most mistakes.

    Args:
        strips: the number of clips with frames; None means 200, and at most 10 MB of frames.
    """
    most, most_bytes = limits(strips)
    scores, curves = score_boundaries(test.split, test.found, rule=test.rule), curves_by_mistakes(test)
    first = curves[: max(MOST_VIDEOS, most)]
    paths = {video.video_id: video.path for video in test.split.annotated if video.path}
    asked = [one.video_id for one in first if one.video_id in paths][:most]
    lengths = {one.video_id: one.duration_s for one in first}
    frames = read_strips({one: paths[one] for one in asked}, STRIP_FPS, most_bytes, durations_s=lengths)
    data = str(test.about.get("data", test.split.dataset))
    name = f"{test.name} on {data}"
    made = f"Made by moss_vllm {moss_vllm.__version__}, {moment(datetime.now(timezone.utc))}"
    parts = [
        tag("h1", name),
        tag("p", test.split.report()),
        tag("nav", *(tag("a", title, href=f"#{part}") for part, title in SECTIONS.items())),
        tiles(_figures(scores)),
        listed([*_differences(test, scores), *test.notes, *scores.notes, *test.split.notes]),
        section("score", SECTIONS["score"], *_score(scores, data)),
        section("clips", SECTIONS["clips"], *_clips(first, len(curves), frames)),
        section("run", SECTIONS["run"], table((), _run(test), class_="pairs")),
        tag("p", made, class_="soft"),
    ]
    return document(name, parts)


def write_views(folder: Path) -> tuple[Path, Path]:
    """Write the page of a test, and a picture of the clip with most mistakes; returns both files."""
    test = read_boundary_test(folder)
    page = choose_file(folder, None)
    write_page(boundary_page(test), page)
    return page, draw_clip(test, test.video(curves_by_mistakes(test)[0].video_id))[0]


def draw_clip(test: BoundaryTest, video: BoundaryVideo, out: Path | None = None) -> tuple[Path, str]:
    """Draw a clip as a PNG; returns the file, and what was drawn in words."""
    out = out or picture_of(video.video_id, test.folder)
    refuse_unwritable(out.parent, "the folder of --out,")
    curve = _lay_out(test, video)
    strip, without = read_spread(video.path, video.duration_s)
    told = f"{curve.video_id}: {curve.describe()}"
    draw_curve_as_png(curve, out, title=told, strip=strip)
    return out, told + without


def _lay_out(test: BoundaryTest, video: BoundaryVideo) -> ScoreCurve:
    name = video.video_id
    found, scores = test.found.get(name), test.scores.get(name)
    return lay_out_clip(video, found, scores, rule=test.rule, threshold=test.threshold)


def curves_by_mistakes(test: BoundaryTest) -> list[ScoreCurve]:
    """All annotated clips, those with most boundaries missed and false detections first."""
    curves = (_lay_out(test, video) for video in test.split.annotated)
    return sorted(curves, key=lambda one: one.mistakes, reverse=True)


def _differences(test: BoundaryTest, scores: BoundaryScores) -> list[str]:
    """A note if result.json tells of another score."""
    ((column, here), _) = scores.mean.items()
    told = test.about.get(column)
    if told is None or abs(told - here) <= SAME_F1:
        return []
    return [
        f"{RESULT_FILE} has {column} {told:.2f}, the predictions and clips that are here give {here:.2f}; "
        "this page counts the latter"
    ]


def _run(test: BoundaryTest) -> list[tuple[str, Any]]:
    """What result.json holds beside scores, which stand above."""
    kept = ("checkpoint", "predictions", "data", "step", "threshold", "peaks", "rule", "failed")
    return [
        *((key, test.about[key]) for key in kept if key in test.about),
        *((f"split.{key}", value) for key, value in test.about.get("split", {}).items()),
        *without_absent(test.about.get("environment", {})).items(),
    ]


def _figures(scores: BoundaryScores) -> list[tuple[str, str]]:
    matches = scores.matches
    figures = [(f"{value:.1f} %", name) for name, value in scores.mean.items()]
    low, high = scores.intervals[next(iter(scores.mean))]
    return [
        *figures,
        (f"{low:.1f} to {high:.1f}", f"95 % interval of {next(iter(scores.mean))}, over clips"),
        (f"{len(matches.names):,}", "clips"),
        (f"{len(matches.missing):,}", "without predictions"),
        (f"{matches.detections.sum():,}", "detections"),
    ]


def _score(scores: BoundaryScores, data: str) -> list[Html]:
    """The table of Table 9 with this test; F1, precision and recall at each distance."""
    shown = score_table("this test", scores, data)
    ((_, columns),) = shown.columns.items()
    rows = []
    for name, of_data in shown.rows.items():
        ((_, cells),) = of_data.items()
        rows.append([name, *(f"{cells[column]:.1f}" for column in columns)])
    groups = [f"{distance:g}" for distance in scores.distances]
    bars = [
        Bars(name, dict(zip(groups, values, strict=True)), class_, labelled=name == "F1")
        for name, values, class_ in (
            ("F1", scores.f1, "c0"),
            ("precision", scores.precision, "c2"),
            ("recall", scores.recall, "c1"),
        )
    ]
    note = f"By {F1_RULES[scores.rule].words}; of a clip's raters the one that fits best counts."
    return [
        table(["%", *columns], map(_numbers, rows), class_="scores"),
        draw_bars("by relative distance", groups, bars, group_px=100),
        tag("p", note, class_="soft"),
        listed([note for note in shown.notes if note not in scores.notes]),
    ]


def _numbers(cells: Sequence[str]) -> Html:
    first, *others = cells
    return tag("tr", tag("th", first, scope="row"), *(tag("td", cell, class_="number") for cell in others))


def _clips(curves: Sequence[ScoreCurve], total: int, frames: Mapping[str, Strip]) -> list[Html]:
    """A figure of each clip, with frames above its curve where they were read."""
    shown = sum("frames" in strip for strip in frames.values())
    note = (
        f"Blue: the score of each frame. Green lines: boundaries found that are right at {DISTANCE:g} of the "
        "clip; orange: false ones. Below, what each rater marked, hollow if missed. Drawn are "
        f"{len(curves):,} of {total:,} clips, those with most mistakes first; frames are shown of {shown:,}, "
        f"up to {MOST_FRAMES} of each. --strips N takes N clips, 0 none. {spelled('scripts/timeline.py')} "
        "draws one clip as a picture."
    )
    figures = (
        tag(
            "figure",
            tag("figcaption", tag("b", one.video_id), tag("span", one.describe())),
            draw_frames(one.video_id, frames.get(one.video_id)),
            draw_curve_on_page(one),
            class_="timeline",
        )
        for one in curves
    )
    return [tag("p", note, class_="soft"), *figures]
