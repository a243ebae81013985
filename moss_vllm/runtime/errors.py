"""How a script fails: one message, no traceback, status 1."""

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from moss_vllm.runtime.quiet import quiet_deepspeed
from moss_vllm.runtime.screen import plain


class SeveralLines(Exception):
    """An error whose message has several lines; a line break within one of them is shown escaped."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class RunStopped(SeveralLines, RuntimeError):
    """A run cannot start or continue; the message has the cause and the remedy."""


class UnusableData(SeveralLines, ValueError):
    """Some of the data cannot be used; the message names them, one per line."""


@contextmanager
def errors_in_one_line(remedy: str = "the same command continues from here") -> Iterator[None]:
    """End the script with one message and status 1 at a wrong argument or file, or Ctrl-C.

    Args:
        remedy: what to do after Ctrl-C.
    """
    quiet_deepspeed()
    try:
        yield
    except (ValueError, OSError, ImportError, SafetensorError, RunStopped) as error:
        lines = error.lines if isinstance(error, SeveralLines) else [str(error)]
        raise SystemExit("\n".join(map(plain, [f"error: {lines[0]}", *lines[1:]]))) from error
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; {remedy}") from None
