"""How a script ends when something is wrong: one message, no traceback, status 1."""

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError


class RunStopped(RuntimeError):
    """A run cannot start or go on; the message says why and what to do."""


@contextmanager
def errors_in_one_line(goes_on: str = "the same command goes on from here") -> Iterator[None]:
    """End the script with one message and status 1 at a wrong argument or file, or Ctrl-C."""
    try:
        yield
    except (ValueError, OSError, ImportError, SafetensorError, RunStopped) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; {goes_on}") from None
