"""Who may end a training run: schedulers by SIGTERM or SIGUSR1, users by Ctrl-C, the launcher by dying."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
LAUNCHERS = ("accelerate", "torchrun", "torch.distributed")
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@contextmanager
def stop_asked() -> Iterator[threading.Event]:
    """Set by the first stop signal; a second Ctrl-C interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only it may listen
        yield asked
        return

    def note(number: int, frame: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    stop_with_launcher()
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_with_launcher() -> None:
    """Have the kernel send SIGTERM when the launcher dies.

    accelerate's launcher of one process passes no signal on: ended by a scheduler, it would leave it behind.
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
    """A scheduler signals every process; a worker that died of it would take the last step with it."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # The second one ends it: at the end of the run the loader itself asks so of a worker that hangs.
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
