"""What the benchmarks share: time and memory of a step, jobs in turn, spreads, json files."""

import ctypes
import gc
import importlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    raise SystemExit("experiments/measuring.py is a part of the benchmarks, not a command")

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from moss_vllm.runtime.files import refuse_unwritable, whole_file
from moss_vllm.runtime.screen import Screen, say

MIB = 2**20


def load_recipe(file: Path) -> Any:
    """The module of the recipe that this file starts."""
    return importlib.import_module(f"moss_vllm.commands.recipes.{file.stem}")


def prepare_json(parser: ArgumentParser, file: Path | None) -> None:
    """Refuse what is no file to write, and make the file's folder before the minutes of measuring."""
    if file and file.is_dir():
        parser.error(f"--json {file} is a folder; name a file")
    if file:
        try:
            refuse_unwritable(file.parent, f"--json {file}: its folder")
            file.parent.mkdir(parents=True, exist_ok=True)
        except (ValueError, OSError) as error:
            parser.error(str(error))


def write_json(file: Path | None, record: Mapping[str, Any], console: Screen | None = None) -> None:
    """Write the record where a file was named, and say so on the console."""
    if file:
        with whole_file(file) as part:
            part.write_text(json.dumps(record, indent=1) + "\n")
        if console:
            console.print(f"written: {file}")


def run_jobs(jobs: Sequence[tuple[str, Callable[[], dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Run one job after the other; say after each how long the rest will take."""
    results: list[dict[str, Any]] = []
    started, shown = time.monotonic(), Screen(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=shown, disable=not shown.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=len(jobs))
        for number, (name, job) in enumerate(jobs, start=1):
            bar.update(task, description=name)
            load = os.getloadavg()[0]
            with quietly():
                results.append({**job(), "load_average": load})
            bar.advance(task)
            left = (time.monotonic() - started) / number * (len(jobs) - number) / 60
            outcome = results[-1].get("failed", "done")
            shown.print(
                f"{number} of {len(jobs)}, {name}: {outcome}; about {left:.1f} min left", soft_wrap=True
            )
    return results


@contextmanager
def quietly() -> Iterator[None]:
    """Print nothing, or the end of the output if something fails."""
    with tempfile.TemporaryFile("w+") as output:
        try:
            with redirect_stdout(output), redirect_stderr(output):
                yield
        except BaseException:
            output.seek(0)
            say(*output.read()[-3000:].split("\n"), sep="\n", file=sys.stderr)
            raise


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and extremes."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show_spread(values: Mapping[str, float], unit: int = 1) -> str:
    """A spread as the text of a cell."""
    median, least, most = (f"{values[key] * unit:.2f}" for key in ("median", "min", "max"))
    return f"{median} ({least}-{most})"


class Meter:
    """Measures the steps of a function on one device."""

    def __init__(self, device: str, threads: int) -> None:
        self.cuda = device == "cuda"
        # CPU time adds up all threads, so it is a duration with one thread only.
        self.clock = time.process_time if threads == 1 else time.perf_counter

    def now(self) -> float:
        """Seconds, after all that was asked of the device."""
        if self.cuda:
            torch.cuda.synchronize()
        return self.clock()

    def step_ms(self, way: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> tuple[float, float]:
        """Milliseconds of forward, and of forward and backward, of one step."""
        if self.cuda:
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
            marks[0].record()
            output = way(x)
            marks[1].record()
            output.backward(grad)
            marks[2].record()
            torch.cuda.synchronize()
            return marks[0].elapsed_time(marks[1]), marks[0].elapsed_time(marks[2])
        start = self.clock()
        output = way(x)
        middle = self.clock()
        output.backward(grad)
        return 1e3 * (middle - start), 1e3 * (self.clock() - start)

    def peak_mib(self, way: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> float | None:
        """By how much memory grows at most during one step; None where the system does not say."""
        clear(way, x)
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            way(x).backward(grad)
            return (torch.cuda.max_memory_allocated() - before) / MIB
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
            before = _resident_mib("VmRSS")
            way(x).backward(grad)
            return _resident_mib("VmHWM") - before
        except OSError:
            return None


def clear(way: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Free the gradients of the last step, and collect garbage."""
    x.grad = None
    if isinstance(way, nn.Module):
        way.zero_grad(set_to_none=True)
    gc.collect()


def cpu_name() -> str:
    """The processor's name, as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _resident_mib(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024
