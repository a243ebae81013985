"""One clip of a boundary test over time: the score of each frame, what was found, what each rater marked.

frames       [  ] [  ] [  ] [  ] [  ]
score        ___/\\____/\\__|__/\\_______    a line at each boundary that was found; dashed: the threshold
rater 1         |       |               boundaries: filled if found, hollow if missed
rater 2         |            |    |     the rater who counts is named
             0 s        4 s        8 s
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from moss_vllm.boundaries.f1 import DISTANCES, F1_RULES, MIN_CONSISTENCY, inside_clip, match_clip, pair
from moss_vllm.boundaries.predictions import FrameScores
from moss_vllm.data.boundaries.annotation import BoundaryVideo
from moss_vllm.report.html import Html, counted
from moss_vllm.report.plots import COLOURS, in_picture, save_png
from moss_vllm.report.timeline import (
    ACTION,
    FALSE_COLOUR,
    GAP,
    NAMES,
    RIGHT_COLOUR,
    RIGHT_MARGIN,
    TRUTH_COLOUR,
    WIDTH,
    add_legend,
    draw_axis,
    draw_name,
    draw_strip,
    seconds_to_x,
)
from moss_vllm.video.clip import Clip

DISTANCE = DISTANCES[0]  # within which a boundary is found, as a share of the clip
CURVE_COLOUR, UNSCORED_COLOUR = COLOURS[0], "#999999"
CURVE, LINE_WIDTH, MARK_WIDTH = 80, 2, 5  # of the drawing on a page: height of the curve, widths


class Mark(NamedTuple):
    """A rater's boundary and whether it was found, or a detection and whether it is right."""

    time_s: float
    hit: bool


@dataclass(frozen=True)
class RaterRow:
    """What a rater marked; of a clip's raters the one that fits best `counts`, or none does."""

    name: str
    counts: bool
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class ScoreCurve:
    """What is drawn of a clip.

    Args:
        points: (seconds, score) of each frame; none, where predictions are seconds.
        threshold: at which boundaries were found in the scores, or None.
        detections: inside the clip; None for a clip without predictions.
        dropped: detections outside the clip.
    """

    video_id: str
    duration_s: float
    points: tuple[tuple[float, float], ...]
    threshold: float | None
    raters: tuple[RaterRow, ...]
    detections: tuple[Mark, ...] | None
    dropped: int

    @property
    def is_scored(self) -> bool:
        """Whether a rater counts."""
        return any(row.counts for row in self.raters)

    @property
    def mistakes(self) -> int:
        """Boundaries missed and detections that are false, of the rater who counts."""
        marks = [mark for row in self.raters if row.counts for mark in row.marks]
        marks += (self.detections or ()) if self.is_scored else ()
        return sum(not mark.hit for mark in marks)

    def describe(self) -> str:
        """Boundaries and detections, counted."""
        if self.detections is None:
            return "no predictions"
        row = next((row for row in self.raters if row.counts), None)
        if row is None:
            found = f"{counted(len(self.detections), 'detection')}; not scored"
            return f"{found}, as its raters agree below {MIN_CONSISTENCY}"
        hits, right = (sum(mark.hit for mark in marks) for marks in (row.marks, self.detections))
        text = f"{hits:,} of {len(row.marks):,} boundaries of {row.name} found; "
        text += f"{right:,} of {counted(len(self.detections), 'detection')} right at {DISTANCE:g} of the clip"
        return text + (f"; {self.dropped:,} outside the clip dropped" if self.dropped else "")


def lay_out_clip(
    video: BoundaryVideo,
    found: Sequence[float] | None,
    scores: FrameScores | None = None,
    *,
    rule: str = "official",
    threshold: float | None = None,
) -> ScoreCurve:
    """Choose what is drawn.

    Args:
        found: boundaries in seconds; None for a clip without predictions.
        rule: of F1_RULES.
    """
    settings = F1_RULES[rule]
    inside, length = inside_clip(video, found or (), settings)
    unit = video.fps if settings.in_frames else 1.0
    limits = [DISTANCE * length]
    raters = [rater.frames if settings.in_frames else rater.times_s for rater in video.raters]
    best = None
    if video.mean_consistency >= MIN_CONSISTENCY and (found is not None or settings.counts_missing):
        _, ((best,), *_) = match_clip(raters, inside, limits)
    right: set[int | None] = set()
    rows = []
    for number, (rater, marked) in enumerate(zip(video.raters, raters, strict=True)):
        (pairs,) = pair(marked, inside, limits)
        right |= set(pairs) if number == best else set()
        marks = (Mark(time_s, place is not None) for time_s, place in zip(rater.times_s, pairs, strict=True))
        rows.append(RaterRow(f"rater {number + 1}", number == best, tuple(marks)))
    detections = tuple(Mark(time / unit, place in right) for place, time in enumerate(inside))
    points = () if scores is None else zip(scores.numbers / video.fps, scores.scores, strict=True)
    return ScoreCurve(
        video.video_id,
        video.duration_s,
        tuple((float(time_s), float(score)) for time_s, score in points),
        threshold if scores is not None else None,
        tuple(rows),
        None if found is None else detections,
        len(found or ()) - len(inside),
    )


# ---- on a page


def draw_curve_on_page(curve: ScoreCurve) -> Html:
    """The curve above its raters as inline SVG; each mark tells its time in a tooltip."""
    scale = seconds_to_x(curve.duration_s)

    def mark(time_s: float, y: float, height: int, width: int, class_: str, words: str) -> str:
        place = f'x="{NAMES + scale * time_s - width / 2:.1f}" y="{y:.0f}" width="{width}" height="{height}"'
        return f'<rect class="{class_}" {place}><title>{words} at {time_s:.2f} s</title></rect>'

    def height_of(score: float) -> float:
        return y + CURVE * (1 - score)

    y = 4.0
    drawn: list[str] = [draw_name("score" if curve.points else "found", y)]
    for one in curve.detections or ():
        kind = "right" if one.hit else "false" if curve.is_scored else "unscored"
        drawn.append(mark(one.time_s, y, CURVE, LINE_WIDTH, kind, f"{kind} detection"))
    if curve.threshold is not None:
        path = f"M{NAMES} {height_of(curve.threshold):.1f}H{WIDTH - RIGHT_MARGIN}"
        drawn.append(f'<path class="level" d="{path}"><title>threshold {curve.threshold:g}</title></path>')
    if curve.points:
        line = "L".join(
            f"{NAMES + scale * time_s:.1f} {height_of(score):.1f}" for time_s, score in curve.points
        )
        drawn.append(f'<path class="curve" d="M{line}"/>')
    y += CURVE + GAP
    for row in curve.raters:
        drawn.append(draw_name(f"{row.name}, counts" if row.counts else row.name, y))
        for one in row.marks:
            words = "found" if one.hit else "missed"
            drawn.append(
                mark(one.time_s, y, ACTION, MARK_WIDTH, "truth" if one.hit else "truth missed", words)
            )
        y += ACTION + 4
    return draw_axis(drawn, y, curve.video_id, curve.duration_s)


# ---- as a picture


def draw_curve_as_png(curve: ScoreCurve, path: Path, *, title: str, strip: Clip | None = None) -> None:
    """Draw the curve and its raters below a strip of frames, as a PNG 1500 pixels wide."""
    from matplotlib.figure import Figure  # half a second, which reports need not wait for

    heights = [*([0.9] if strip is not None else []), 1.6, 0.24 * max(1, len(curve.raters))]
    figure = Figure((10, 1.1 + sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    above, below = panels[-2:]
    for one in curve.detections or ():
        false = FALSE_COLOUR if curve.is_scored else UNSCORED_COLOUR
        above.axvline(one.time_s, color=RIGHT_COLOUR if one.hit else false, linewidth=2)
    if curve.threshold is not None:
        above.axhline(curve.threshold, color="black", linestyle="dashed", linewidth=0.8)
    if curve.points:
        above.plot(*zip(*curve.points, strict=True), color=CURVE_COLOUR, linewidth=1.6)
    above.set(xlim=(0, curve.duration_s), ylim=(0, 1), ylabel="score" if curve.points else "found")
    above.tick_params(labelbottom=False)
    names = []
    for place, row in enumerate(curve.raters):
        names.append(in_picture(f"{row.name}, counts" if row.counts else row.name))
        for one in row.marks:
            face = TRUTH_COLOUR if one.hit else "none"
            below.scatter(
                one.time_s, place, 70, marker="s", facecolors=face, edgecolors=TRUTH_COLOUR, clip_on=False
            )
    below.set(xlim=(0, curve.duration_s), ylim=(len(curve.raters) - 0.5, -0.5), xlabel="seconds")
    below.set_yticks(range(len(names)), names, fontsize=9)
    below.tick_params(axis="y", length=0)
    below.spines["left"].set_visible(False)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    if strip is not None:
        draw_strip(panels[0], strip, curve.duration_s, figure.get_size_inches()[0] / heights[0])
    panels[0].set_title(in_picture(title), fontsize=10, loc="left")
    add_legend(below, _keys(curve))
    save_png(figure, path)


def _keys(curve: ScoreCurve) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys: list[Any] = [
        Patch(facecolor=TRUTH_COLOUR, edgecolor=TRUTH_COLOUR, label="rater's boundary, found"),
        Patch(facecolor="none", edgecolor=TRUTH_COLOUR, label="rater's boundary, missed"),
        Line2D(
            [], [], color=RIGHT_COLOUR, linewidth=2, label=f"detection, right at {DISTANCE:g} of the clip"
        ),
        Line2D([], [], color=FALSE_COLOUR, linewidth=2, label="detection, false"),
    ]
    if curve.threshold is not None:
        label = f"threshold {curve.threshold:g}"
        keys.append(Line2D([], [], color="black", linestyle="dashed", linewidth=0.8, label=label))
    return keys
