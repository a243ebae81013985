"""The frame of an HTML page that needs no other file: escaping, tables, inline data, style and script.

Text from a file goes through `escape`; only `Html`, which these functions return, is inserted unchanged.
"""

import html
import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from moss_vllm.runtime.files import refuse_unwritable, whole_file
from moss_vllm.runtime.screen import plain

ASSETS = Path(__file__).parent
PAGE_FILE = "page.html"
# With this policy the browser itself refuses to load anything from elsewhere.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


# A JSON escape of a character that `plain` escapes, after any number of escaped backslashes.
ACTING_ESCAPE = re.compile(
    r"(?<!\\)((?:\\\\)*)\\(?=u(?:00(?:[0189].|7f|ad)|061c|200[bef]|202[89a-e]|206.|feff))"
)


class Html(str):
    """Text that is already markup; all other text is escaped."""


def escape(value: Any) -> Html:
    """The value as text without markup: a string, a dash for None, JSON for other values.

    Line ends stay; characters that reverse or hide text are shown escaped, as on a terminal.
    """
    if isinstance(value, Html):
        return value
    if value is None:
        return Html("-")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return Html(html.escape("\n".join(map(plain, text.split("\n")))))


def join_parts(parts: Iterable[Any], between: str = "") -> Html:
    """The parts in a row, each escaped unless it is markup."""
    return Html(between.join(map(escape, parts)))


def tag(name: str, *inside: Any, **attributes: Any) -> Html:
    """An element. Attributes that are None are omitted; `class_` and `data_x` stand for class and data-x."""
    named = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    written = "".join(f' {key}="{escape(value)}"' for key, value in named.items() if value is not None)
    return Html(f"<{name}{written}>{join_parts(inside)}</{name}>")


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], class_: str | None = None) -> Html:
    """Rows, each of cells or a `tr` element, below an optional head; numbers are aligned to the right."""
    top = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head))) if head else ""
    body = (row if isinstance(row, Html) else tag("tr", *map(_cell, row)) for row in rows)
    return tag("div", tag("table", top, tag("tbody", *body), class_=class_), class_="wide")


def _cell(value: Any) -> Html:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return tag("td", value)
    whole = isinstance(value, float) and value.is_integer()
    return tag("td", f"{int(value) if whole else value:,}", class_="number")


def number_row(cells: Sequence[str]) -> Html:
    """A row of a table: a head, and cells aligned to the right."""
    first, *others = cells
    return tag("tr", tag("th", first, scope="row"), *(tag("td", cell, class_="number") for cell in others))


def section(name: str, title: str, *inside: Any) -> Html:
    """A section of the page, with a heading that links can point to."""
    return tag("section", tag("h2", title), *inside, id=name)


def trim(text: str, most: int) -> str:
    """The text, or its first `most` characters and the number of the others."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text) - most:,} more characters)"


def counted(number: int, noun: str) -> str:
    """The number with its noun: 1 row, 1,200 rows."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def inline_json(name: str, data: Any) -> Html:
    """Data for the page's script, escaped so that no string in it can end the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # ASCII only
    text = ACTING_ESCAPE.sub(r"\1\\\\", text)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Html(f'<script type="application/json" id="{name}">{text}</script>')


def moment(time: datetime | None) -> str:
    """The time to the minute."""
    return f"{time:%Y-%m-%d %H:%M} UTC" if time else "at an unknown time"


def tiles(figures: Iterable[tuple[str, str]]) -> Html:
    """The figures at the top of the page, each with its name."""
    boxes = (tag("div", tag("b", value), tag("span", name), class_="tile") for value, name in figures)
    return tag("div", *boxes, class_="tiles")


def listed(notes: Sequence[str]) -> Html:
    """The notes as a list; empty markup if there are none."""
    return tag("ul", *(tag("li", note) for note in notes), class_="notes") if notes else Html("")


def document(title: str, parts: Sequence[Html], data: Any = None, script_file: str | None = None) -> str:
    """The whole page; `data` is for the script, a file beside this module; None: the page has no script."""
    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    script = (ASSETS / script_file).read_text(encoding="utf-8") if script_file else ""
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>",
            *parts,
            "</main>",
            *([inline_json("data", data), f"<script>\n{script}</script>"] if script else []),
            "</body>\n</html>\n",
        ]
    )


def choose_file(folder: Path, out: Path | None) -> Path:
    """The file of the page of `folder`: `out`, or page.html in the folder.

    Raises: ValueError if `out` is a folder, is no .html file, or cannot be written.
    """
    out = folder / PAGE_FILE if out is None else out
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file in it, such as {out / PAGE_FILE}")
    if out.suffix != ".html":
        raise ValueError(f"--out {out} does not end in .html; name the page to write, such as {PAGE_FILE}")
    refuse_unwritable(out.parent, "the folder of --out,")
    return out


def write_page(page: str, out: Path) -> None:
    """Write the page as UTF-8, whole or not at all; a lone surrogate of a broken file becomes "?"."""
    with whole_file(out) as part:
        part.write_bytes(page.encode("utf-8", "replace"))
