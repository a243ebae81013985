"""Batches read ahead by worker processes, each of which notes the row it reads.

A worker that dies, hangs or finds no shared memory for its batch ends the run with one message that names the
row. A stop signal is heard also while the run waits for rows.
"""

import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.screen import say
from moss_vllm.runtime.signals import leave_signals_to_the_run
from moss_vllm.runtime.spelling import spelled

LIMIT_S = 300  # a row that takes longer hangs: its file is broken, or a network disk is dead
WARN_S = 10  # a row that takes longer is named
GRACE_S = 10  # how long a stopped run still waits for the rows of its step
IDLE_S = 120  # how long no worker may read a row or hand a batch over
POLL_S, ALARM_S = 1, 5
CONTINUES = "the same command continues from the last checkpoint (training with --resume auto)"
FILE_REMEDY = f"scripts/check_videos.py finds a file that hangs or kills its decoder; then {CONTINUES}"
SHARED_REMEDY = (
    "enlarge it (docker run --shm-size=8g; elsewhere a larger tmpfs on /dev/shm), or use --workers 0, "
    "which needs none"
)


class Batches:
    """The batches of a DataLoader, within a `with`.

    Args:
        dataset: rows by index.
        collate: rows -> batch.
        name: row index -> file of the row.
        workers: processes; 0 reads in this one.
        stop: whether this run was asked to stop.
        options: further arguments of the DataLoader.

    Raises:
        RunStopped: a worker died, hangs or cannot hand a batch over; or rows are late after a stop signal.
            If a worker dies between two batches, the end of the `with` raises it.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[list[Any]], Any],
        *,
        name: Callable[[int], str],
        workers: int,
        stop: Callable[[], bool] = lambda: False,
        **options: Any,
    ) -> None:
        self.name, self.stop = name, stop
        self.reading = multiprocessing.Array("d", 2 * workers, lock=False)  # per worker: row + 1 or 0, start
        self.stopped_s = self.idle_s = 0.0
        self.warned: set[int] = set()
        self.waiting = False
        self.loader: DataLoader[Any] = DataLoader(
            cast(Dataset[Any], _Watched(dataset, self.reading)),
            collate_fn=_Shared(collate) if workers else collate,
            num_workers=workers,
            timeout=POLL_S if workers else 0,
            worker_init_fn=leave_signals_to_the_run,
            **options,
        )

    def __enter__(self) -> "Batches":
        self.source = iter(self.loader)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        died = isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error)
        reason, workers = self._why(error) if died else "", self._workers()
        if not self.waiting:
            # Not by deletion: a traceback may still refer to the loader.
            getattr(self.source, "_shutdown_workers", lambda: None)()
        for worker in workers:  # a hanging one hears no other signal, and Python would wait for it at exit
            with suppress(RuntimeError):  # torch raises for this death
                worker.kill()
                worker.join()
        if died:
            raise RunStopped(reason) from error

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.idle_s = time.monotonic()
        self.waiting = True
        with self._alarm():
            while True:
                try:
                    batch = next(self.source)
                    break
                except RunStopped:
                    raise
                except RuntimeError as error:
                    if not str(error).startswith("DataLoader timed out"):
                        raise RunStopped(self._why(error)) from error
                    self._wait()
        if isinstance(batch, _Unsent):
            raise RunStopped(batch.reason)
        self.waiting = False
        return batch

    @contextmanager
    def _alarm(self) -> Iterator[None]:
        """Check the workers also while torch waits without a time limit, for a batch on its way."""
        has_timer = hasattr(signal, "setitimer")  # Windows has none
        if not (has_timer and self._workers() and threading.current_thread() is threading.main_thread()):
            yield
            return
        before = signal.signal(signal.SIGALRM, lambda *_: self._wait())
        signal.setitimer(signal.ITIMER_REAL, ALARM_S, ALARM_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _workers(self) -> list[Any]:
        return getattr(self.source, "_workers", [])

    def _busy(self) -> dict[int, tuple[int, float]]:
        """By worker, the row that it reads and the seconds since it began."""
        pairs = zip(self.reading[::2], self.reading[1::2], strict=True)
        return {n: (int(row) - 1, time.monotonic() - since) for n, (row, since) in enumerate(pairs) if row}

    def _wait(self) -> None:
        """Name the row that takes long, or end the run."""
        now, busy = time.monotonic(), self._busy()
        row, spent_s = max(busy.values(), key=lambda one: one[1], default=(-1, 0.0))
        what = self.name(row) if busy else "the next rows"
        self.idle_s = now if busy else self.idle_s
        if self.stop():
            self.stopped_s = self.stopped_s or now
            if now - self.stopped_s > GRACE_S:
                raise RunStopped(f"stopped by a signal while it waited for {what}; {CONTINUES}")
        if spent_s > LIMIT_S:
            raise RunStopped(f"{what} is not read after {LIMIT_S} s; {FILE_REMEDY}")
        if now - self.idle_s > IDLE_S:
            raise RunStopped(f"no worker reads or hands over anything for {IDLE_S} s; use --workers 0")
        if spent_s > WARN_S and row not in self.warned:
            self.warned.add(row)
            warning = f"{what} is not read after {WARN_S} s; after {LIMIT_S} s the run ends. {FILE_REMEDY}"
            say(spelled(warning), file=sys.stderr, flush=True)

    def _why(self, error: BaseException | None) -> str:
        busy = self._busy()
        for number, worker in enumerate(self._workers()):
            if code := worker.exitcode:
                cause = signal.Signals(-code).name if code < 0 else f"status {code}"
                when = f"while it read {self.name(busy[number][0])}" if number in busy else "between two rows"
                if cause == "SIGBUS":
                    return f"a worker died {when}: shared memory is too small; {SHARED_REMEDY}"
                memory = "the system kills processes when memory runs out: use fewer --workers; "
                return f"a worker died ({cause}) {when}; {memory * (cause == 'SIGKILL')}{FILE_REMEDY}"
        return f"rows could not be read: {error}; {FILE_REMEDY}"


class _Watched:
    """A dataset whose readers note the row they read."""

    def __init__(self, dataset: Any, reading: Any) -> None:
        self.dataset, self.reading = dataset, reading

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        worker = get_worker_info()
        if worker is None:
            return self.dataset[index]
        place = slice(2 * worker.id, 2 * worker.id + 2)
        self.reading[place] = [index + 1, time.monotonic()]
        row = self.dataset[index]
        self.reading[place] = [0, 0]
        return row


@dataclass
class _Unsent:
    reason: str


class _Shared:
    """Moves a batch to shared memory; torch would do so in a thread whose errors are lost."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, rows: list[Any]) -> Any:
        batch = self.collate(rows)
        try:
            _share(batch)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            return _Unsent(f"shared memory is too small for a batch ({reason}); {SHARED_REMEDY}")
        return batch


def _share(value: Any) -> None:
    if isinstance(value, Tensor):
        value.share_memory_()
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            _share(inner)
