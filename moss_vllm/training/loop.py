"""One training loop on Accelerate: exact across processes and accumulation, and resumable.

A step's gradient is that of the mean loss over everything the step predicts (answer tokens, or clips'
classes), however its clips are split over processes and micro-batches; only BatchNorm depends on the
micro-batch. The order of rows depends on seed and step alone, so resuming decodes nothing again. SIGTERM,
SIGUSR1 (which schedulers send) and the first Ctrl-C end the run after the step under way, with a checkpoint.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.screen import plain
from moss_vllm.runtime.signals import stop_asked
from moss_vllm.training import engines, held_out, run_folder, run_state
from moss_vllm.training.optim import make_adamw, warmup_cosine
from moss_vllm.training.reading import Batches
from moss_vllm.training.row_order import RowOrder, StepBatches, StreamOrder
from moss_vllm.training.run_log import RunLog
from moss_vllm.training.step import Learner, StepRows, read_step
from moss_vllm.training.trace import StepTrace


@dataclass(frozen=True)
class Loop:
    """How long to train, on how much at once, and how often to save, evaluate and log."""

    steps: int
    batch_size: int = 8  # clips per process and micro-batch
    accumulate: int = 1
    warmup_share: float = 0.03
    floor: float = 0.0  # rates at the end, as a share of their peaks
    schedule: Callable[[int, float], float] | None = None  # rates by step and peak, in place of those two
    optimizer: Callable[[Sequence[dict[str, Any]]], torch.optim.Optimizer] = make_adamw
    order: type[RowOrder | StreamOrder] = RowOrder
    clip_norm: float = 1.0
    save_every: int = 250
    keep: int | None = None  # newest checkpoints; None keeps all
    evaluate_every: int = 0  # 0: never
    log_every: int = 10
    workers: int = 2
    seed: int = 0  # of the order of rows
    max_bad_share: float = 0.005
    unit: str = "tokens"  # that a batch's `read` counts
    profile_steps: int | None = None  # see `StepTrace`

    def rate(self, step: int, peak: float) -> float:
        """The learning rate of step number `step`, counted from 0, where its peak is `peak`."""
        if self.schedule:
            return self.schedule(step, peak)
        warmup = max(1, round(self.warmup_share * self.steps))
        return peak * warmup_cosine(step, total=self.steps, warmup=warmup, floor=self.floor)


class RowDataset(Protocol):
    """Rows by index; a batch is a dict of the objective's tensors and four entries.

    These are `row_ids`, `rejected`, `count` (terms that the loss sums over) and `read` (tokens or frames that
    the model sees).
    """

    @property
    def shares(self) -> Sequence[tuple[int, float]]:
        """The number of rows and the weight of each source, in the order of the rows."""
        ...

    def __getitem__(self, index: int) -> Any: ...
    def name(self, index: int) -> str:
        """The file that the row is read from."""
        ...

    def collate(self, rows: list[Any]) -> dict[str, Any]:
        """A batch of what `__getitem__` returned."""
        ...


class CheckpointKeeper(Protocol):
    """Writes and reads the checkpoints of one model; each task's checkpoint.py has its own."""

    def state(self) -> Mapping[str, Tensor]:
        """The tensors of the model that a checkpoint holds, by name."""
        ...

    def save(self, folder: Path, state: Mapping[str, Tensor], step: int) -> None:
        """Write a folder that reloads alone, from the whole `state`."""
        ...

    def restore(self, folder: Path) -> None:
        """Load the weights of such a folder into the model."""
        ...

    def check(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """RunStopped unless the folder reloads to `state`."""
        ...


class Objective(nn.Module):
    """What is minimised; called with a batch's tensors, it returns the sum of their losses.

    `gather_whole` names the kinds of modules that run a different number of times in each process; see
    `engines.wrap`.

    Args:
        model: what is trained.
        dtype: what to autocast to; None computes in float32.
    """

    gather_whole: tuple[type[nn.Module], ...] = ()

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def autocast(self, device: torch.device) -> Any:
        """The context of all that may be computed in `dtype`."""
        return torch.autocast(device.type, self.dtype) if self.dtype else nullcontext()

    def divisor(self, terms: int) -> float:
        """What the sum of a step's losses is divided by; every process calls it once before the step.

        Args:
            terms: the batches' `count`, over all processes.
        """
        return max(1, terms)

    def after_step(self) -> None:
        """What follows each step; every process calls it."""


@dataclass
class Counts:
    """Rows and seconds of a run, over all its processes and restarts."""

    step: int = 0
    rejected: int = 0
    rows: int = 0  # rejected ones included
    elapsed_s: float = 0.0  # before this start
    began_s: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Time of the whole run so far."""
        return round(self.elapsed_s + time.monotonic() - self.began_s, 3)

    def add(self, rows: StepRows, loop: Loop, dataset: RowDataset, out: Path) -> None:
        """Count the rows of a step; RunStopped for too many rejected ones, or if `out` was taken away."""
        if rows.gone:
            raise run_folder.gone(out)
        self.rejected += rows.rejected_rows
        self.rows += rows.rows
        # A share of whole epochs: one bad row among the first 100 must not stop a run that allows 0.5 %, nor
        # must the same row early in the next epoch.
        epoch = sum(count for count, _ in dataset.shares)
        of = epoch * max(1, math.ceil(self.rows / epoch))
        if self.rejected > loop.max_bad_share * of:
            raise RunStopped(
                f"{self.rejected} of {self.rows} rows so far could not be used, more than "
                f"{loop.max_bad_share:.1%} of {of}; see {out}/rejected-*.jsonl and mend the rows, "
                "or raise max_bad_share"
            )


def train(
    accelerator: Accelerator,
    objective: Objective,
    groups: Sequence[dict[str, Any]],
    dataset: RowDataset,
    loop: Loop,
    *,
    out: Path,
    keeper: CheckpointKeeper,
    resume: Path | None = None,
    started: Callable[[], None] | None = None,
    evaluate: Callable[[int], None] | None = None,
    unseen: RowDataset | None = None,
    data: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Run `loop.steps` optimizer steps; checkpoints go to `out/step-NNNNNN`, logs to `out`.

    Args:
        accelerator: from `engines.start`.
        objective: its model's trained parameters require a gradient (`optim.parameter_groups`).
        groups: optimizer groups with `name` and `initial_lr`.
        dataset: may return `Rejected` for a row; more than `loop.max_bad_share` of them stop the run.
        out: written by the main process.
        keeper: the main process saves with it and checks the first and the last checkpoint.
        resume: the checkpoint of this run to continue from.
        started: called by every process once nothing can refuse the run any more.
        evaluate: called by every process every `loop.evaluate_every` steps.
        unseen: rows whose loss is measured that often, and after the last step; no step may train on them.
        data: a digest of each set that is read, by its name; a resumed run tells of those that changed.

    Returns: the logged lines. What follows is the caller's, and so is `run_folder.mark_finished`.

    Raises:
        FileNotFoundError: `resume` is no checkpoint.
        FileExistsError: `out` holds the checkpoints of another run.
        ValueError: `resume` has another seed of its rows or number of clips per step.
        RunStopped: too many rejected rows, a step that cannot be learned from (see `Learner.learn`), a full
            disk, rows that do not come (see `Batches`), or `out` was taken away.
    """
    run_folder.refuse_second_run(out, resume)
    saved: dict[str, Any] = run_folder.open_checkpoint(resume) if resume else {"step": 0}
    place = {
        "seed": loop.seed,
        "clips_a_step": loop.batch_size * loop.accumulate * accelerator.num_processes,
        "steps": loop.steps,
        "sources": [list(share) for share in dataset.shares],
        "data": dict(data or {}),
    }
    run_folder.check_place(saved.get("place", place), place, saved["step"], resume)
    if resume:
        keeper.restore(resume)
    learner = Learner(accelerator, objective, groups, loop, out)
    if resume:
        run_state.load_state(
            accelerator, learner.objective, learner.optimizer, resume / "state", learner.scaler
        )
    if started:
        started()
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        run_folder.tidy(out, saved["step"])
    accelerator.wait_for_everyone()
    counts = Counts(*(saved.get(name, 0) for name in ("step", "rejected", "seen", "elapsed_s")))
    log = RunLog(accelerator, out, first=counts.step, steps=loop.steps, every=loop.log_every, unit=loop.unit)
    traced = loop.profile_steps if accelerator.is_main_process else None
    lines: list[dict[str, Any]] = []
    learner.objective.train()
    with (
        log,
        StepTrace(out, objective, counts.step, traced) as trace,
        stop_asked() as stop,
        engines.in_company(),
        _batches(accelerator, dataset, loop, counts.step, stop.is_set) as batches,
    ):
        for step in range(counts.step, loop.steps):
            trace.begin(step)
            rows = read_step(accelerator, batches, loop.accumulate, stop=stop.is_set, is_there=log.is_there)
            log.rejected(rows.rejected)
            counts.add(rows, loop, dataset, out)
            learned = learner.learn(step, rows)
            counts.step = step + 1
            trace.end(step)
            lines.append(log.step(counts.step, rows, learned, elapsed_s=counts.seconds()))

            last = counts.step == loop.steps or rows.stop
            # Evaluate before saving: a run killed in between repeats the step and its evaluation. A scheduler
            # that asked the run to stop does not wait for an evaluation.
            due = loop.evaluate_every > 0 and counts.step % loop.evaluate_every == 0
            if evaluate and due and not rows.stop:
                with run_state.undisturbed():
                    evaluate(counts.step)
                learner.objective.train()
            if unseen and (due or counts.step == loop.steps) and not rows.stop:
                found = held_out.measure(accelerator, learner.objective, unseen, loop, stop.is_set)
                if found:
                    log.measured(counts.step, found)
            if last or counts.step % loop.save_every == 0:
                _save(accelerator, learner, keeper, counts, place, check=last, resume=resume)
            if rows.stop and counts.step < loop.steps:
                accelerator.print(
                    f"stopped by a signal after step {counts.step} of {loop.steps}; {plain(out)}/"
                    f"step-{counts.step:06d} is whole, the same command with --resume auto continues from it"
                )
                break
    return lines


def _save(
    accelerator: Accelerator,
    learner: Learner,
    keeper: CheckpointKeeper,
    counts: Counts,
    place: Mapping[str, Any],
    *,
    check: bool,
    resume: Path | None,
) -> None:
    """Write a checkpoint, check the run's first one and those with `check`, drop old ones."""
    out, step = learner.out, counts.step
    check = check or run_folder.latest_checkpoint(out) is None
    state = engines.full_state(accelerator, learner.model, keeper.state)
    run_folder.write_checkpoint(
        accelerator,
        out / f"step-{step:06d}",
        save=lambda part: keeper.save(part, state, step),
        save_state=lambda part: run_state.save_state(
            accelerator, learner.objective, learner.optimizer, part, learner.scaler
        ),
        progress={
            "step": step,
            "rejected": counts.rejected,
            "seen": counts.rows,
            "place": place,
            "elapsed_s": counts.seconds(),
        },
    )
    if accelerator.is_main_process:
        if check:
            with run_state.undisturbed():
                keeper.check(out / f"step-{step:06d}", state)
        if learner.loop.keep:
            run_folder.drop_old(out, learner.loop.keep, resume)
    accelerator.wait_for_everyone()


def _batches(
    accelerator: Accelerator, dataset: RowDataset, loop: Loop, first_step: int, stop: Callable[[], bool]
) -> Batches:
    order = StepBatches(
        loop.order(dataset.shares, loop.seed),
        range(first_step, loop.steps),
        batch_size=loop.batch_size,
        accumulate=loop.accumulate,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    return Batches(
        dataset,
        dataset.collate,
        name=dataset.name,
        workers=loop.workers,
        stop=stop,
        batch_sampler=order,
        pin_memory=accelerator.device.type == "cuda",
        # The loader draws a seed for its workers; its own generator keeps that out of the run's RNG state.
        generator=torch.Generator().manual_seed(loop.seed),
    )
