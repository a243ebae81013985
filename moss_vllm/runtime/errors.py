"""How a script ends when something is wrong: one message, no traceback, status 1."""

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from moss_vllm.runtime.quiet import quiet_deepspeed
from moss_vllm.runtime.screen import plain


class SeveralLines(Exception):
    """An error whose message has several lines, one by one: a line break in one is shown escaped."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class RunStopped(SeveralLines, RuntimeError):
    """A run cannot start or go on; the message says why and what to do."""


class UnusableData(SeveralLines, ValueError):
    """Some of the data cannot be used; the message names them, one per line."""


@contextmanager
def errors_in_one_line(goes_on: str = "the same command goes on from here") -> Iterator[None]:
    """End the script with one message and status 1 at a wrong argument or file, or Ctrl-C."""
    quiet_deepspeed()
    try:
        yield
    except (ValueError, OSError, ImportError, SafetensorError, RunStopped) as error:
        lines = error.lines if isinstance(error, SeveralLines) else [str(error)]
        raise SystemExit("\n".join(map(plain, [f"error: {lines[0]}", *lines[1:]]))) from error
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; {goes_on}") from None
