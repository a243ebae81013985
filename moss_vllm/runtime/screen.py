"""What goes to a terminal: no name, caption or answer acts there as markup, control or layout.

Everything is printed by `say` or on a `Screen`; ruff refuses `print` and rich's own console elsewhere.
"""

import sys
import unicodedata
from contextlib import AbstractContextManager
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

JOINERS = "\u200c\u200d"  # they are spelling in Persian and Hindi, and hold emoji together
ACTING = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, bidi and format signs, half characters, line separators


def plain(value: object) -> str:
    r"""The text on one line; what would act instead of being seen is escaped: \x1b, and \n for a new line."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        one.encode("unicode_escape").decode()
        if unicodedata.category(one) in ACTING and one not in JOINERS
        else one
        for one in text
    )


def say(
    *values: object, sep: str = " ", end: str = "\n", file: TextIO | None = None, flush: bool = False
) -> None:
    """Print `plain` values; only `sep` and `end` begin new lines."""
    print(*map(plain, values), sep=sep, end=end, file=file, flush=flush)


class Screen(Console):
    """A console of rich that shows strings as they are, without markup, emoji codes or colours of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string that is printed, a table's cells and heads too; lines are broken by a `Text` only."""
        options |= {"markup": False, "emoji": False, "highlight": False}
        return super().render_str(plain(text), **options)


def working(what: str) -> AbstractContextManager[Any]:
    """Say on stderr what goes on: a spinner, or a line where no terminal is."""
    console = Screen(stderr=True)
    if not console.is_terminal:
        say(what, file=sys.stderr)
    return console.status(Text(plain(what)))
