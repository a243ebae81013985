"""What a training run shows: a live line, train.jsonl, a tracker, and every row that was not used."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moss_vllm.data.rows import Rejected
from moss_vllm.runtime.files import is_still
from moss_vllm.runtime.memory import process_peak_bytes
from moss_vllm.runtime.screen import Screen, say
from moss_vllm.training.held_out import HeldOutLoss
from moss_vllm.training.step import StepRows

RECENT_STEPS = 20  # at least as many steps are in the mean of a shown speed


class RunLog:
    """Progress bar (without a terminal a line every `every` steps), train.jsonl, tracker, rejected rows.

    `unit` is the name under which a step's line counts what was read, such as "tokens".
    """

    def __init__(
        self,
        accelerator: Accelerator,
        out: Path,
        *,
        first: int,
        steps: int,
        every: int,
        unit: str = "tokens",
    ) -> None:
        self.accelerator, self.out, self.steps, self.every = accelerator, out, steps, every
        self.unit = unit
        self.main = accelerator.is_main_process
        self.rejected_file = out / f"rejected-{accelerator.process_index}.jsonl"
        self.named = _read_named(self.rejected_file)
        self.recent: list[dict[str, Any]] = []
        self.held_out = ""  # the last held-out loss in words
        shown = [TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}")]
        console = Screen(stderr=True, quiet=not self.main)
        self.progress = Progress(
            *shown, TimeRemainingColumn(), console=console, disable=not sys.stderr.isatty()
        )
        self.task = self.progress.add_task("", total=steps, completed=first, now="")

    def __enter__(self) -> "RunLog":
        self.progress.start()
        if self.main:
            self.file = (self.out / "train.jsonl").open("a")
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()
        if self.main:
            self.file.close()

    def is_there(self) -> bool:
        """Whether the main process still writes to the file that OUT/train.jsonl names."""
        return not self.main or is_still(self.out / "train.jsonl", os.fstat(self.file.fileno()))

    def step(
        self, step: int, rows: StepRows, learned: Mapping[str, Any], *, elapsed_s: float
    ) -> dict[str, Any]:
        """Show and log one step, and return its line; print it every `every` steps.

        Args:
            step: steps done.
            learned: from `Learner.learn`.
            elapsed_s: time of the whole run.
        """
        line = {
            "step": step,
            **learned,
            "clips": rows.clips,
            self.unit: rows.read,
            "memory_gib": peak_memory_gib(),
            "seconds": time.monotonic() - rows.started_s,
            "waited_s": rows.waited_s,
            "elapsed_s": elapsed_s,
        }
        self.recent = [*self.recent, line][-max(RECENT_STEPS, self.every) :]
        speeds = self._speeds()
        now = self._live_line(line, speeds)
        self.progress.update(self.task, completed=step, now=now)
        if self.main:
            self._write(line, speeds, now)
        return line

    def _write(self, line: dict[str, Any], speeds: Mapping[str, float], now: str) -> None:
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        scalars = {
            "loss": line["loss"],
            "grad_norm": line["grad_norm"],
            "memory_gib": line["memory_gib"],
            **speeds,
        }
        for name in ("lr", "grad_norms"):
            scalars |= {f"{name}/{group}": value for group, value in line.get(name, {}).items()}
        self.accelerator.log({k: v for k, v in scalars.items() if v is not None}, step=line["step"])
        if line.get("skipped"):
            say(
                f"step {line['step']} changed no weight: its gradient exceeds float16 at a loss scale of "
                f"{line['loss_scale']:g}, which is halved",
                flush=True,
            )
        if line["step"] % self.every == 0 and self.progress.disable:
            seconds = sum(one["seconds"] for one in self.recent) / len(self.recent)
            remaining_min = (self.steps - line["step"]) * seconds / 60
            say(f"step {line['step']}/{self.steps}  {now}  {remaining_min:.1f} min left", flush=True)

    def _speeds(self) -> dict[str, float]:
        seconds = sum(one["seconds"] for one in self.recent)
        return {
            "clips_per_s": sum(one["clips"] for one in self.recent) / seconds,
            f"{self.unit}_per_s": sum(one[self.unit] for one in self.recent) / seconds,
            "waiting_share": sum(one["waited_s"] for one in self.recent) / seconds,
        }

    def _live_line(self, line: Mapping[str, Any], speeds: Mapping[str, float]) -> str:
        clips = speeds["clips_per_s"]
        return (
            f"loss {line['loss']:.3f}{self.held_out}  {clips:{'.1f' if clips >= 1 else '.2g'}} clips/s  "
            f"waiting for data {speeds['waiting_share']:.0%}  {line['memory_gib']:.1f} GiB"
        )

    def measured(self, step: int, found: HeldOutLoss) -> None:
        """Show the held-out loss after so many steps; log it as a line of its own. Every process calls it."""
        self.rejected(found.rejected)
        if not self.main:
            return
        counts = {"rows": found.rows, "terms": found.terms, "seconds": found.seconds}
        self.file.write(json.dumps({"step": step, "held_out_loss": found.loss, **counts}) + "\n")
        self.file.flush()
        if found.loss is None:
            say(f"step {step}: no held-out loss: it is not finite, or none of the rows can be used")
            return
        self.accelerator.log({"held_out_loss": found.loss}, step=step)
        self.held_out = f" (held out {found.loss:.3f} at step {step})"
        say(f"step {step}: held-out loss {found.loss:.3f} over {found.rows} rows, in {found.seconds:.1f} s")

    def rejected(self, rows: Sequence[Rejected]) -> None:
        """Name each row that cannot be used, once: on the screen and in rejected-<process>.jsonl."""
        for row in rows:
            if row.row_id in self.named:
                continue
            self.named.add(row.row_id)
            say(f"row {row.row_id} not used: {row.reason}", file=sys.stderr, flush=True)
            with self.rejected_file.open("a") as file:
                file.write(json.dumps({"row_id": row.row_id, "reason": row.reason}) + "\n")


def _read_named(file: Path) -> set[str]:
    """Ids of the rows that an interrupted run has named already."""
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return {json.loads(line)["row_id"] for line in lines if line.endswith("}\n")}


def peak_memory_gib() -> float:
    """The most memory this process has taken: of its GPU, or without one of the machine's memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return process_peak_bytes() / 2**30
