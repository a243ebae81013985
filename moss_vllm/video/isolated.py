"""Run one function over many jobs in child processes that may hang or die: a decoder can do both.

    for job, outcome in run_isolated(work, jobs, workers=8, limit_s=60): ...

A child stays for all its jobs, for starting Python costs more than most of them; a lost one is replaced.
"""

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

Job = TypeVar("Job")
Done = TypeVar("Done")

START_LIMIT_S = 300.0  # a child imports the script first, perhaps from a slow network disk
ORPHAN_GRACE_S = 30.0


@dataclass(frozen=True)
class Failure:
    """A job without a result: it took too long, its process died, or `work` raised."""

    reason: str
    remedy: str


def run_isolated(
    work: Callable[[Job], Done], jobs: Iterable[Job], *, workers: int, limit_s: float
) -> Generator[tuple[Job, Done | Failure], None, None]:
    """Yield (job, what `work` returned) as jobs end, in any order; a job that is lost costs only itself.

    `work`, jobs and results must pickle: children are spawned, so that they inherit no threads and no files.

    Raises: RuntimeError when a child does not even start.
    """
    waiting = deque(jobs)
    pool: list[_Child] = []
    try:
        pool += [_Child(work, limit_s) for _ in range(min(workers, len(waiting)))]
        while waiting or any(child.is_busy for child in pool):
            patience_s = max(0.0, min(child.deadline_s for child in pool) - time.monotonic())
            wait([child.pipe for child in pool], timeout=min(patience_s, 3600))
            for place, child in enumerate(pool):
                if outcomes := child.poll():
                    child.is_busy = False
                    yield child.job, outcomes[0]
                if child.is_lost and waiting:
                    pool[place] = child = _Child(work, limit_s)
                if waiting and child.is_idle:
                    child.give(waiting.popleft())
            pool = [child for child in pool if not child.is_lost]
    finally:
        for child in pool:
            child.kill()


class _Child:
    """One child process and the job it has; it is starting until it says that it is ready."""

    def __init__(self, work: Callable[[Any], Any], limit_s: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, limit_s), daemon=True)
        self.process.start()
        theirs.close()  # so that its death ends the pipe
        self.limit_s = limit_s
        self.job: Any = None
        self.is_ready = self.is_busy = self.is_lost = False
        self.deadline_s = time.monotonic() + START_LIMIT_S

    @property
    def is_idle(self) -> bool:
        return self.is_ready and not self.is_busy and not self.is_lost

    def give(self, job: Any) -> None:
        self.job, self.is_busy, self.deadline_s = job, True, time.monotonic() + self.limit_s
        try:
            self.pipe.send(job)
        except OSError:  # it died while idle; `poll` tells how
            pass

    def poll(self) -> tuple[Any, ...]:
        """The outcome of its job once there is one, else nothing."""
        try:
            if self.pipe.poll():
                outcome = self.pipe.recv()
                self.deadline_s = float("inf")
                was_ready, self.is_ready = self.is_ready, True
                return (outcome,) if was_ready else ()
        except (EOFError, OSError):
            self.process.join(5)
            code = self.process.exitcode
            return self._lose(f"{_name_exit(code)} while at work on it", "decode it alone to see more")
        if time.monotonic() < self.deadline_s:
            return ()
        remedy = "raise --limit-s if the file is long or the disk slow, else replace the file"
        return self._lose(f"not done after {self.limit_s:g} s, so it was stopped", remedy)

    def _lose(self, reason: str, remedy: str) -> tuple[Any, ...]:
        self.is_lost = True
        self.kill()
        if not self.is_ready:
            raise RuntimeError(f"a child process did not start ({reason}); its own message is above")
        return (Failure(reason, remedy),) if self.is_busy else ()

    def kill(self) -> None:
        self.process.kill()
        self.process.join(5)  # not for ever: a read from a dead network disk outlives even this
        self.pipe.close()


def _serve(pipe: Connection, work: Callable[[Any], Any], limit_s: float) -> None:
    """The child's main loop; ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this
    try:
        pipe.send(None)
        while True:
            job = pipe.recv()
            # If the parent is killed while a decoder hangs here, nobody but the kernel can end this process.
            _kill_me_after(limit_s + ORPHAN_GRACE_S)
            try:
                outcome = work(job)
            except Exception as error:
                outcome = Failure(f"{type(error).__name__}: {error}", "please report it with the file")
            _kill_me_after(0)
            pipe.send(outcome)
    except (EOFError, OSError):
        return


def _kill_me_after(seconds: float) -> None:
    if os.name == "posix":  # Windows has no such timer
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _name_exit(code: int | None) -> str:
    if code is None or code >= 0:
        return f"its process ended with status {code}"
    name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"its process died of {name}{hint}"
