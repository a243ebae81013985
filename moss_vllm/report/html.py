"""The frame of an HTML page that needs nothing else: escaping, tables, inline data, style and script.

Whatever comes from a file goes through `escape`; only `Html`, which these functions return, stays as it is.
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
# The browser itself refuses whatever would be loaded from elsewhere.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


# A JSON escape of a character that `plain` escapes, after any number of escaped backslashes.
ACTING_ESCAPE = re.compile(
    r"(?<!\\)((?:\\\\)*)\\(?=u(?:00(?:[0189].|7f|ad)|061c|200[bef]|202[89a-e]|206.|feff))"
)


class Html(str):
    """Text that is markup already; everything else is escaped."""


def escape(value: Any) -> Html:
    """The value as text that is never markup: numbers as they are, None as a dash, lists as JSON.

    Lines stay lines; what would turn the text around or hide a part of it is shown as on a terminal.
    """
    if isinstance(value, Html):
        return value
    if value is None:
        return Html("-")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return Html(html.escape("\n".join(map(plain, text.split("\n")))))


def join(parts: Iterable[Any], between: str = "") -> Html:
    """Parts after each other, each escaped unless it is markup."""
    return Html(between.join(map(escape, parts)))


def tag(name: str, *inside: Any, **attributes: Any) -> Html:
    """An element; an attribute that is None is left out, `class_` and `data_x` stand for class and data-x."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    told = "".join(f' {key}="{escape(value)}"' for key, value in given.items() if value is not None)
    return Html(f"<{name}{told}>{join(inside)}</{name}>")


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], class_: str | None = None) -> Html:
    """Rows (of cells, or `tr` elements) below a head, if any; numbers stand at the right."""
    top = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head))) if head else ""
    body = (row if isinstance(row, Html) else tag("tr", *map(_cell, row)) for row in rows)
    return tag("div", tag("table", top, tag("tbody", *body), class_=class_), class_="wide")


def _cell(value: Any) -> Html:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return tag("td", value)
    whole = isinstance(value, float) and value.is_integer()
    return tag("td", f"{int(value) if whole else value:,}", class_="number")


def section(name: str, title: str, *inside: Any) -> Html:
    """A part of the page, with a heading that can be linked to."""
    return tag("section", tag("h2", title), *inside, id=name)


def trim(text: str, most: int) -> str:
    """The text, or its first `most` characters and how many more there are."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text) - most:,} more characters)"


def counted(number: int, noun: str) -> str:
    """The number with its noun: 1 row, 1,200 rows."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def inline_json(name: str, data: Any) -> Html:
    """Data for the page's script; nothing in it can end the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # ASCII only
    text = ACTING_ESCAPE.sub(r"\1\\\\", text)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Html(f'<script type="application/json" id="{name}">{text}</script>')


def moment(time: datetime | None) -> str:
    """To the minute."""
    return f"{time:%Y-%m-%d %H:%M} UTC" if time else "at an unknown time"


def tiles(figures: Iterable[tuple[str, str]]) -> Html:
    """What stands at the top: each figure and its name."""
    told = (tag("div", tag("b", value), tag("span", name), class_="tile") for value, name in figures)
    return tag("div", *told, class_="tiles")


def listed(notes: Sequence[str]) -> Html:
    """Remarks below each other; nothing for none."""
    return tag("ul", *(tag("li", note) for note in notes), class_="notes") if notes else Html("")


def document(title: str, parts: Sequence[Html], data: Any, script_file: str) -> str:
    """The whole page; `data` is what the script, a file beside this one, works with."""
    style, script = ((ASSETS / name).read_text(encoding="utf-8") for name in ("page.css", script_file))
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>",
            *parts,
            f"</main>\n{inline_json('data', data)}\n<script>\n{script}</script>\n</body>\n</html>\n",
        ]
    )


def choose_file(folder: Path, out: Path | None) -> Path:
    """Where the page of `folder` goes: `out`, or page.html in it.

    Raises: ValueError where `out` is a folder, no .html file, or where nothing can be written.
    """
    out = folder / PAGE_FILE if out is None else out
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file in it, such as {out / PAGE_FILE}")
    if out.suffix != ".html":
        raise ValueError(f"--out {out} does not end in .html; name the page to write, such as {PAGE_FILE}")
    refuse_unwritable(out.parent, "the folder of --out,")
    return out


def write_page(page: str, out: Path) -> None:
    """Write UTF-8, whole or not at all; half a surrogate pair, of a broken file, becomes a question mark."""
    with whole_file(out) as part:
        part.write_bytes(page.encode("utf-8", "replace"))
