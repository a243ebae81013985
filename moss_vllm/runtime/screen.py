"""Output to a terminal: no name, caption or answer acts there as markup, control or layout.

Everything is printed by `say` or on a `Screen`; ruff refuses `print` and rich's own console elsewhere.
"""

import sys
import unicodedata
from contextlib import AbstractContextManager
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

JOINERS = "\u200c\u200d"  # Persian and Hindi spelling needs them, and joined emoji
ACTING = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # controls, bidi and format signs, half characters, line separators


def plain(value: object) -> str:
    r"""The text on one line; characters that would act instead of being shown are escaped: \x1b, \n."""
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
        """Show every string `plain`, those in tables too; only a `Text` begins new lines."""
        options |= {"markup": False, "emoji": False, "highlight": False}
        return super().render_str(plain(text), **options)


def working(what: str) -> AbstractContextManager[Any]:
    """Show on stderr what is being done: a spinner, or without a terminal a line."""
    console = Screen(stderr=True)
    if not console.is_terminal:
        say(what, file=sys.stderr)
    return console.status(Text(plain(what)))
