"""What stops a training run: a scheduler's SIGTERM or SIGUSR1, Ctrl-C, or its launcher's death."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STOP_NAMES = ("SIGTERM", "SIGUSR1", "SIGINT")  # Windows has no SIGUSR1
STOP_SIGNALS = tuple(getattr(signal, name) for name in STOP_NAMES if hasattr(signal, name))
LAUNCHERS = ("accelerate", "torchrun", "torch.distributed")
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@contextmanager
def stop_asked() -> Iterator[threading.Event]:
    """An event that the first stop signal sets; a second Ctrl-C interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield stop
        return

    def note(number: int, frame: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    stop_with_launcher()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_with_launcher() -> None:
    """Have the kernel send SIGTERM when the launcher dies.

    accelerate's launcher of a single process forwards no signal: if a scheduler ends it, the run would stay.
    """
    if sys.platform != "linux":
        return
    try:
        launcher = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return
    if any(name in launcher for name in LAUNCHERS):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def leave_signals_to_the_run(worker: int) -> None:
    """Have a DataLoader's worker ignore stop signals: schedulers signal every process of a run."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # Ignoring the first SIGTERM lets the step under way finish. The second one ends the worker: the
    # DataLoader stops its own workers that way.
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
