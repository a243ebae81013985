"""One video of a detection test over time: a lane for each class, its actions above its detections.

    frames       [  ] [  ] [  ] [  ] [  ]
    Diving       ___████______████____░░░___    actions: filled if found, hollow if missed
                 ____▓▓▓▓______▒▒▒▒_▒▒_______    detections: darker where the score is higher
                 0 s        20 s        40 s

Those that overlap lie in rows below each other. A detector lists 2000 detections a video. Drawn are the best
of each class, DRAWN_PER_ACTION times as many in the whole test as the class has actions, in up to ROWS rows:
the others are counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from moss_vllm.data.detection.datasets import DetectionVideo
from moss_vllm.detection.average_precision import ClassMatches, segment_iou
from moss_vllm.report.html import Html, counted, escape, tag
from moss_vllm.report.plots import COLOURS, in_picture, save_png
from moss_vllm.video.clip import Clip

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TIOU = 0.5  # from which a detection is right
DRAWN_PER_ACTION = 3
ROWS = 4
RIGHT_COLOUR, FALSE_COLOUR, TRUTH_COLOUR = COLOURS[2], COLOURS[5], "#444444"
PALEST = 0.15  # opacity at score 0; at score 1 it is 1
TICKS_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
MOST_TICKS = 10
# Of the drawing on a page, in its own units: its width, room for names, heights of bars and of gaps.
WIDTH, NAMES, RIGHT_MARGIN, ACTION, DETECTION, GAP, AXIS = 1000, 190, 14, 12, 8, 8, 20
NAME_CHARACTERS = 28
NAME_BYTES = 180  # of a video's id in the name of its picture, which is longer while it is written


class Detected(NamedTuple):
    """A detection, whether it is right, and the row of its lane."""

    start_s: float
    end_s: float
    score: float
    right: bool
    row: int


class Annotated(NamedTuple):
    """An action, whether a detection that is drawn found it, and the row of its lane."""

    start_s: float
    end_s: float
    found: bool
    row: int


@dataclass(frozen=True)
class Lane:
    """One class; `left_out` counts detections that would have been drawn but for ROWS."""

    name: str
    actions: tuple[Annotated, ...]
    detections: tuple[Detected, ...]
    left_out: int

    @property
    def action_rows(self) -> int:
        """Rows of actions, at least one."""
        return 1 + max((one.row for one in self.actions), default=0)

    @property
    def rows(self) -> int:
        """Rows of detections, at least one."""
        return 1 + max((one.row for one in self.detections), default=0)


@dataclass(frozen=True)
class Timeline:
    """What is drawn of a video: the classes with an action or a detection, in the order of their ids."""

    video_id: str
    duration_s: float
    lanes: tuple[Lane, ...]

    def describe(self) -> str:
        """Its actions and detections, counted."""
        actions = [one for lane in self.lanes for one in lane.actions]
        drawn = [one for lane in self.lanes for one in lane.detections]
        found, right = sum(one.found for one in actions), sum(one.right for one in drawn)
        left_out = sum(lane.left_out for lane in self.lanes)
        text = f"{found:,} of {counted(len(actions), 'action')} found; "
        text += f"{right:,} of the {counted(len(drawn), 'detection')} drawn right at tIoU {TIOU:g}"
        return text + (f"; {left_out:,} more not drawn" if left_out else "")


def ticks_s(duration_s: float) -> list[int]:
    """Round times within a video, at most MOST_TICKS + 1."""
    steps = (step for step in TICKS_S if duration_s / step <= MOST_TICKS)
    return list(range(0, int(duration_s) + 1, next(steps, TICKS_S[-1])))


def lay_out_video(
    video: DetectionVideo,
    classes: Sequence[str],
    matches: Sequence[ClassMatches],
    thresholds: Sequence[float],
) -> Timeline:
    """Choose what is drawn.

    Args:
        matches: what `match_detections` returned for all videos of the test at `thresholds`, TIOU among them.
    """
    row = list(thresholds).index(TIOU)
    lanes = (_lane(video, classes[one.label], one, row) for one in matches)
    return Timeline(
        video.video_id, video.duration_s, tuple(lane for lane in lanes if lane.actions or lane.detections)
    )


def _lane(video: DetectionVideo, name: str, matched: ClassMatches, row: int) -> Lane:
    best = DRAWN_PER_ACTION * int(matched.actions.sum())
    own = np.flatnonzero(matched.videos[:best] == matched.names.index(video.video_id))
    segments_s, right = matched.segments_s[own], matched.found[row, own]
    least_s = video.duration_s / (WIDTH - NAMES - RIGHT_MARGIN)  # of the narrowest bar
    columns = (segments_s.tolist(), matched.scores[own].tolist(), right.tolist())
    places = lay_in_rows(columns[0], least_s=least_s, most=ROWS)
    detections = [
        Detected(start_s, end_s, score, is_right, place)
        for (start_s, end_s), score, is_right, place in zip(*columns, places, strict=True)
        if place is not None
    ]
    actions = [(one.start_s, one.end_s) for one in video.actions if one.label == matched.label]
    found = _found(segment_iou(segments_s[right], np.array(actions).reshape(-1, 2)))
    annotated = (
        Annotated(start_s, end_s, at in found, place or 0)
        for at, ((start_s, end_s), place) in enumerate(
            zip(actions, lay_in_rows(actions, least_s=least_s), strict=True)
        )
    )
    return Lane(name, tuple(annotated), tuple(detections), len(own) - len(detections))


def lay_in_rows(
    segments_s: Sequence[Sequence[float]], *, least_s: float = 0.0, most: int | None = None
) -> list[int | None]:
    """The row of each segment, so that those of one row do not overlap; None where no row of `most` is free.

    Each takes the first row that is free, so the first segments stand highest.

    Args:
        segments_s: start and end of each.
        least_s: the length that a shorter one is drawn with.
    """
    rows: list[list[tuple[float, float]]] = []
    places: list[int | None] = []
    for start_s, end_s in segments_s:
        end_s = max(end_s, start_s + least_s)
        free = (
            number
            for number, row in enumerate(rows)
            if all(end_s <= start or end <= start_s for start, end in row)
        )
        place = next(free, len(rows))
        if place == most:
            places.append(None)
            continue
        rows += [[]] if place == len(rows) else []
        rows[place].append((start_s, end_s))
        places.append(place)
    return places


def _found(iou: np.ndarray) -> set[int]:
    """Which actions right detections took, each the one it overlaps most of those that are left.

    Shape: IoU (N, M) of right detections by falling score and actions.
    """
    found: set[int] = set()
    for overlaps in iou:
        free = [at for at in range(len(overlaps)) if at not in found]
        found.add(max(free, key=lambda at: (overlaps[at], at)))
    return found


# ---- on a page


def draw_on_page(timeline: Timeline) -> Html:
    """The lanes as inline SVG; each bar tells its numbers in a tooltip."""
    scale = seconds_to_x(timeline.duration_s)

    def bar(start_s: float, end_s: float, y: float, height: int, class_: str, words: str, more: str) -> str:
        x, width = NAMES + scale * start_s, max(scale * (end_s - start_s), 1.0)
        place = f'x="{x:.1f}" y="{y:.0f}" width="{width:.1f}" height="{height}"'
        return f'<rect class="{class_}" {place}{more}><title>{words}</title></rect>'

    drawn: list[str] = []
    y = 4.0
    for lane in timeline.lanes:
        drawn.append(draw_name(lane.name, y))
        for action in lane.actions:
            words = f"{'found' if action.found else 'missed'}: {action.start_s:.2f} to {action.end_s:.2f} s"
            kind = "truth" if action.found else "truth missed"
            top = y + action.row * (ACTION + 1)
            drawn.append(bar(action.start_s, action.end_s, top, ACTION, kind, words, ""))
        y += lane.action_rows * (ACTION + 1) + 1
        for one in lane.detections:
            kind = "right" if one.right else "false"
            words = f"{kind}, score {one.score:.3f}: {one.start_s:.2f} to {one.end_s:.2f} s"
            shade = f' opacity="{opacity(one.score):.2f}"'
            top = y + one.row * (DETECTION + 1)
            drawn.append(bar(one.start_s, one.end_s, top, DETECTION, kind, words, shade))
        y += lane.rows * (DETECTION + 1) + GAP
        drawn.append(f'<path class="grid" d="M{NAMES} {y - GAP / 2:.1f}H{WIDTH - RIGHT_MARGIN}"/>')
    return draw_axis(drawn, y, timeline.video_id, timeline.duration_s)


def seconds_to_x(duration_s: float) -> float:
    """Units of the drawing in a second."""
    return (WIDTH - NAMES - RIGHT_MARGIN) / max(duration_s, 1e-3)


def draw_name(name: str, y: float) -> Html:
    """What stands before a lane that begins at y."""
    short = name if len(name) <= NAME_CHARACTERS else name[: NAME_CHARACTERS - 1] + "…"
    return tag("text", short, class_="y", x=NAMES - 8, y=f"{y + ACTION - 1:.0f}")


def draw_axis(drawn: Sequence[str], y: float, video_id: str, duration_s: float) -> Html:
    """The whole drawing of a video, with times below y."""
    scale = seconds_to_x(duration_s)
    times = (
        f'<text class="x" x="{NAMES + scale * tick:.1f}" y="{y + 12:.0f}">{tick} s</text>'
        for tick in ticks_s(duration_s)
    )
    head = f'<svg viewBox="0 0 {WIDTH} {y + AXIS:.0f}" role="img" aria-label="{escape(video_id)}">'
    return Html(head + "".join((*drawn, *times)) + "</svg>")


def opacity(score: float) -> float:
    """How dark a detection is drawn."""
    return PALEST + (1 - PALEST) * score


# ---- as a picture


def draw_as_png(timeline: Timeline, path: Path, *, title: str, strip: Clip | None = None) -> None:
    """Draw the lanes below a strip of frames, each frame centred on its time, as a PNG 1500 pixels wide."""
    from matplotlib.figure import Figure  # half a second, which reports need not wait for

    heights = [0.6 + lane.action_rows + lane.rows for lane in timeline.lanes] or [1.0]
    strip_in = 0.9 if strip is not None else 0.0
    figure = Figure((10, strip_in + 1.1 + 0.17 * sum(heights)), layout="constrained")
    ratios = [strip_in, 0.17 * sum(heights)] if strip is not None else [1.0]
    panels = figure.subplots(len(ratios), 1, squeeze=False, height_ratios=ratios)[:, 0]
    axes = panels[-1]
    bottom = 0.0
    names = []
    for lane, height in zip(timeline.lanes, heights, strict=False):
        names.append((bottom + 0.5, lane.name))
        _draw_lane(axes, lane, bottom)
        bottom += height
        axes.axhline(bottom - 0.3, color="#dddddd", linewidth=0.6)
    axes.set(xlim=(0, timeline.duration_s), ylim=(bottom, -0.2), xlabel="seconds")
    axes.set_yticks([at for at, _ in names], [in_picture(name) for _, name in names], fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if strip is not None:
        draw_strip(panels[0], strip, timeline.duration_s, figure.get_size_inches()[0] / strip_in)
    panels[0].set_title(in_picture(title), fontsize=10, loc="left")
    add_legend(axes, _keys())
    save_png(figure, path)


def picture_of(video_id: str, folder: Path) -> Path:
    """The file of a video's picture: names of files have up to 255 bytes, so a longer id is cut."""
    return folder / f"timeline_{video_id.encode()[:NAME_BYTES].decode(errors='ignore')}.png"


def _draw_lane(axes: "Axes", lane: Lane, top: float) -> None:
    for action in lane.actions:
        face, edge = (TRUTH_COLOUR, "white") if action.found else ("none", TRUTH_COLOUR)
        width = action.end_s - action.start_s
        place = top + 0.5 + action.row
        axes.barh(place, width, 0.8, action.start_s, facecolor=face, edgecolor=edge, linewidth=0.8)
    for one in lane.detections:
        colour = RIGHT_COLOUR if one.right else FALSE_COLOUR
        width, place = one.end_s - one.start_s, top + 0.5 + lane.action_rows + one.row
        axes.barh(place, width, 0.8, one.start_s, color=colour, alpha=opacity(one.score), linewidth=0)


def draw_strip(axes: "Axes", strip: Clip, duration_s: float, ratio: float) -> None:
    """Frames side by side; `ratio` is about width over height of the panel."""
    height, width = strip.frames.shape[1:3]
    half_s = duration_s / ratio * width / height / 2
    for frame, time_s in zip(strip.frames, strip.frame_times_s, strict=True):
        middle_s = min(max(float(time_s), half_s), duration_s - half_s)
        axes.imshow(frame, extent=(middle_s - half_s, middle_s + half_s, 0, 1), aspect="auto")
    axes.set(xlim=(0, duration_s), ylim=(0, 1))
    axes.set_axis_off()


def _keys() -> list[Any]:
    from matplotlib.patches import Patch

    return [
        Patch(facecolor=TRUTH_COLOUR, edgecolor=TRUTH_COLOUR, label="action, found"),
        Patch(facecolor="none", edgecolor=TRUTH_COLOUR, label="action, missed"),
        Patch(facecolor=RIGHT_COLOUR, label=f"detection, right at tIoU {TIOU:g}"),
        Patch(facecolor=FALSE_COLOUR, label="detection, false"),
        Patch(facecolor=RIGHT_COLOUR, alpha=opacity(0.3), label="lower score: paler"),
    ]


def add_legend(axes: "Axes", keys: Sequence[Any]) -> None:
    """Explain the marks below the picture."""
    axes.figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, fontsize=8)
