"""Groups of bars as inline SVG, in percent, with intervals and a dashed line across each group."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from moss_vllm.report.html import Html, join_parts, tag

# Width of a group, left and right margin; height of the drawing, margin above and below the bars.
GROUP, LEFT, RIGHT, HEIGHT, ABOVE, BELOW = 150, 40, 8, 290, 22, 30
EDGE = 0.09  # share of a group's width that stays empty on each side


@dataclass(frozen=True)
class Bars:
    """One bar in each group that `values` has; the colour is that of `class_` in page.css."""

    name: str
    values: Mapping[str, float]
    class_: str
    spans: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    labelled: bool = False  # the value is written above the bar


def draw_bars(
    title: str,
    groups: Sequence[str],
    series: Sequence[Bars],
    level: Mapping[str, float] | None = None,
    level_name: str = "",
    group_px: int = GROUP,
) -> Html:
    """The figure; `level` has the height of the dashed line in each group."""
    level = level or {}
    values = [value for bars in series for value in bars.values.values()]
    values += [high for bars in series for _, high in bars.spans.values()] + list(level.values())
    top = min(100, 10 * math.ceil(max(values, default=0) / 10 + 0.1)) or 10
    width = LEFT + RIGHT + group_px * len(groups)
    end, base = width - RIGHT, HEIGHT - BELOW

    def y(value: float) -> float:
        return base - (base - ABOVE) * value / top

    drawn = []
    for tick in range(0, top + 1, 10 if top <= 60 else 20):
        drawn.append(Html(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{end}"/>'))
        drawn.append(Html(f'<text class="y" x="{LEFT - 7}" y="{y(tick) + 4:.1f}">{tick}</text>'))
    for place, group in enumerate(groups):
        left, bar = LEFT + group_px * (place + EDGE), group_px * (1 - 2 * EDGE) / len(series)
        there = [(one, left + number * bar) for number, one in enumerate(series) if group in one.values]
        drawn += [_bar(one, group, x, bar, y) for one, x in there]
        if group in level:
            line = f"M{left - 4:.1f} {y(level[group]):.1f}h{group_px * (1 - 2 * EDGE) + 8:.1f}"
            drawn.append(
                tag("path", tag("title", f"{level_name} {level[group]:.1f}"), class_="level", d=line)
            )
        drawn += [
            _value(one, group, x + bar / 2, y) for one, x in there if one.labelled
        ]  # on top of the dashed lines
        drawn.append(tag("text", group, class_="x", x=left + group_px * (0.5 - EDGE), y=base + 19))
    drawn.append(Html(f'<path class="axis" d="M{LEFT} {base}H{end}"/>'))
    svg = tag("svg", *drawn, viewBox=f"0 0 {width} {HEIGHT}", role="img", aria_label=title)
    keys = [tag("span", tag("i", class_=f"box {bars.class_}"), bars.name) for bars in series]
    keys += [tag("span", tag("i", class_="box level"), level_name)] if level else []
    caption = tag("figcaption", tag("b", title), tag("span", "%"), tag("span", *keys, class_="legend"))
    wide = tag("div", tag("div", svg, style=f"min-width:{min(width, 560)}px"), class_="wide")
    return tag("figure", caption, wide, class_="bars", style=f"max-width:{width}px")


def _bar(bars: Bars, group: str, left: float, width: float, y: Callable[[float], float]) -> Html:
    """The bar and its interval, with both numbers in its tooltip."""
    value, span = bars.values[group], bars.spans.get(group)
    words = f"{bars.name}, {group}: {value:.1f}" + (f" ({span[0]:.1f} to {span[1]:.1f})" if span else "")
    high, middle = y(value), left + width / 2
    shape = f'x="{left:.1f}" y="{high:.1f}" width="{width * 0.92:.1f}" height="{y(0) - high:.1f}"'
    parts = [tag("title", words), Html(f'<rect class="{bars.class_}" {shape}/>')]
    if span:
        low, top = y(span[0]), y(span[1])
        ends = f"M{middle - 5:.1f} {low:.1f}h10M{middle - 5:.1f} {top:.1f}h10"
        parts.append(Html(f'<path class="span" d="M{middle:.1f} {low:.1f}V{top:.1f}{ends}"/>'))
    return tag("g", join_parts(parts))


def _value(bars: Bars, group: str, middle: float, y: Callable[[float], float]) -> Html:
    value = bars.values[group]
    above = y(bars.spans.get(group, (0.0, value))[1]) - 5
    return Html(f'<text class="x told" x="{middle:.1f}" y="{above:.1f}">{value:.1f}</text>')
