"""How far a long piece of work is: a bar on stderr, or without a terminal a line every ten seconds."""

import time
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moss_vllm.runtime.screen import Screen

Item = TypeVar("Item")
LINE_EVERY_S = 10.0


def show_progress(
    items: Iterable[Item],
    total: int,
    unit: str,
    *,
    size: Callable[[Item], int] = lambda item: 1,
    note: Callable[[], str] = lambda: "",
) -> Generator[Item, None, None]:
    """Pass items through, and show after each how many units are done, their rate and the time left.

    Args:
        total: units in all.
        unit: what is counted, in the plural.
        size: units of an item.
        note: a few more words to show.
    """
    console = Screen(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TextColumn("{task.fields[note]}"))
    started = shown = time.monotonic()
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:
        bar, done = bars.add_task(unit, total=total, note=""), 0
        for item in items:
            yield item
            done += size(item)
            now = time.monotonic()
            rate = done / max(now - started, 1e-9)  # unknown until a unit is done
            pace = f"{rate:{'.1f' if rate >= 1 else '.2g'}}/s" if done else ""
            words = ", ".join(filter(None, [pace, note()]))
            bars.update(bar, completed=done, note=words)
            if not console.is_terminal and now - shown >= LINE_EVERY_S:
                left = f"about {(total - done) / rate / 60:.1f} min left" if done else ""
                line, shown = [f"{done:,} of {total:,} {unit}", words, left], now
                console.print(", ".join(filter(None, line)), soft_wrap=True)
