"""How a script fails: one message, no traceback, status 1; and how Ctrl-C ends it: a sentence, status 130."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from safetensors import SafetensorError

from moss_vllm.runtime.quiet import quiet_deepspeed
from moss_vllm.runtime.screen import plain, say
from moss_vllm.runtime.spelling import again, spelled

INTERRUPTED = 130  # the status of a program that Ctrl-C ended, as shells have it


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
def errors_in_one_line(remedy: str | None = None, *, resume: Sequence[str] = ()) -> Iterator[None]:
    """End the script with one message and status 1 at a wrong argument or file, status 130 at Ctrl-C.

    Args:
        remedy: what to do after Ctrl-C, in place of the command that goes on.
        resume: words by which the same command goes on, such as --resume auto.
    """
    quiet_deepspeed()
    try:
        yield
    except (ValueError, OSError, ImportError, SafetensorError, RunStopped) as error:
        lines = error.lines if isinstance(error, SeveralLines) else [str(error)]
        told = (plain(spelled(line)) for line in (f"error: {lines[0]}", *lines[1:]))
        raise SystemExit("\n".join(told)) from error
    except KeyboardInterrupt:
        _end_interrupted(remedy, resume)


def catch_interrupts(remedy: str | None = None, *, resume: Sequence[str] = ()) -> None:
    """Have Ctrl-C end the script as `errors_in_one_line` does where that does not reach, as in imports."""

    def end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            _end_interrupted(remedy, resume)
        sys.__excepthook__(kind, error, trace)

    sys.excepthook = end


def _end_interrupted(remedy: str | None, resume: Sequence[str]) -> None:
    """Say on stderr what goes on, and exit; of several processes the first one says it."""
    if int(os.environ.get("RANK", 0)) == 0:
        say(f"stopped; {remedy or _command_to_go_on(resume)}", file=sys.stderr)
    raise SystemExit(INTERRUPTED) from None


def _command_to_go_on(resume: Sequence[str]) -> str:
    """The same command, with `resume` unless it is there; a launcher's words are not known here."""
    given = " ".join(sys.argv).replace("=", " ")
    more = [] if " ".join(resume) in given else list(resume)
    if "WORLD_SIZE" in os.environ:
        return f"to go on, start the same command{' with ' * bool(more)}{' '.join(more)}"
    return f"to go on: {again([*sys.argv[1:], *more])}"
