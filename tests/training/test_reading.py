"""Owns: a worker that dies, hangs or finds no shared memory ends the run at once, with the file's name."""

import multiprocessing
import os
import signal
import time

import pytest
import torch

from moss_vllm.runtime.errors import RunStopped
from moss_vllm.training import reading
from moss_vllm.training.reading import Batches


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """torch waits five seconds for a worker to end by itself."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)


class Rows:
    """Eight rows; what `faults` has for a row is done in place of reading it."""

    def __init__(self, **faults):
        self.faults = {int(name[3:]): fault for name, fault in faults.items()}

    def __len__(self):
        return 8

    def __getitem__(self, index):
        self.faults.get(index, lambda: None)()
        return torch.full((2,), float(index))


def batches(rows, **changes):
    options = {"name": "videos/{}.mp4".format, "workers": 1, "batch_size": 2, **changes}
    return Batches(rows, torch.stack, **options)


def wait():
    time.sleep(1000)


def wait_unkindly():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # as native code that never returns
    wait()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_come_in_order_and_shared(workers):
    with batches(Rows(), workers=workers) as loader:
        read = list(loader)
    assert torch.cat(read)[:, 0].tolist() == list(range(8))
    assert all(batch.is_shared() for batch in read) is bool(workers)


@pytest.mark.parametrize(
    "end, message",
    [
        (
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            r"died \(SIGKILL\) while .*kills processes when memory runs out: use fewer",
        ),
        (
            lambda: os.kill(os.getpid(), signal.SIGSEGV),
            r"died \(SIGSEGV\) while .*check_videos.py finds a file",
        ),
        (
            lambda: os.kill(os.getpid(), signal.SIGBUS),
            r"died while .*shared memory is too small; .*--workers 0",
        ),
        (lambda: os._exit(3), r"died \(status 3\) while .*check_videos.py finds a file"),
    ],
)
def test_a_worker_that_dies_is_told_with_what_it_read(end, message):
    began = time.monotonic()
    with pytest.raises(RunStopped, match=message) as caught, batches(Rows(row3=end)) as loader:
        list(loader)
    assert "while it read videos/3.mp4" in str(caught.value) and "\n" not in str(caught.value)
    assert time.monotonic() - began < 10


def test_a_worker_that_dies_between_two_batches_is_told_too():
    with pytest.raises(RunStopped, match=r"died \(SIGKILL\) between two rows"), batches(Rows()) as loader:
        next(loader)
        time.sleep(0.5)  # it has read ahead
        os.kill(loader._workers()[0].pid, signal.SIGKILL)
        time.sleep(30)  # a step


@pytest.mark.slow
@pytest.mark.parametrize("hang", [wait, wait_unkindly])
def test_a_row_that_takes_too_long_is_named_and_its_worker_ended(monkeypatch, capsys, hang):
    for name, seconds in (("WARN_S", 0.5), ("LIMIT_S", 2), ("GRACE_S", 0)):
        monkeypatch.setattr(reading, name, seconds)
    with pytest.raises(
        RunStopped, match="^videos/3.mp4 is not read after 2 s; scripts/check_videos.py finds"
    ):
        with batches(Rows(row3=hang)) as loader:
            assert next(loader)[:, 0].tolist() == [0, 1]
            next(loader)
    assert capsys.readouterr().err.count("videos/3.mp4 is not read after 0.5 s; after 2 s the run ends") == 1
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_stop_signal_is_heard_while_a_row_does_not_come(monkeypatch):
    monkeypatch.setattr(reading, "GRACE_S", 1)
    began = time.monotonic()
    with pytest.raises(RunStopped, match="^stopped by a signal while it waited for videos/0.mp4; the same"):
        with batches(Rows(row0=wait_unkindly), stop=lambda: True) as loader:
            next(loader)
    assert time.monotonic() - began < 10 and multiprocessing.active_children() == []


@pytest.mark.slow
def test_workers_that_hand_over_nothing_end_the_run(monkeypatch):
    monkeypatch.setattr(reading, "IDLE_S", 1)
    monkeypatch.setattr(reading, "ALARM_S", 0.5)
    with pytest.raises(RunStopped, match="no worker reads or hands over anything for 1 s; use --workers 0"):
        with batches(Rows()) as loader:
            time.sleep(0.5)  # batches are under way, which a stopped worker does not hand over
            os.kill(loader._workers()[0].pid, signal.SIGSTOP)
            list(loader)
    assert multiprocessing.active_children() == []


def test_too_little_shared_memory_is_told_with_the_remedy(monkeypatch):
    def full(value):
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1>: No space left on device"
        )

    monkeypatch.setattr(reading, "_share", full)
    with pytest.raises(
        RunStopped, match="shared memory is too small for a batch .unable to .*--shm-size.*--workers 0"
    ):
        with batches(Rows()) as loader:
            next(loader)
