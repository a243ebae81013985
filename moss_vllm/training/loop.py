"""One training loop on Accelerate: exact across processes and accumulation, resumable, plain-spoken.

A step's gradient is that of the mean loss over all that the step predicts (answer tokens, or clips' classes),
however its clips are split over processes and micro-batches; BatchNorm alone sees a micro-batch's clips. The
order of rows depends on (seed, step) alone: resuming costs no decoding. SIGTERM, SIGUSR1 (what schedulers
send) and the first Ctrl-C end the run after its step, with a checkpoint.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from moss_vllm.runtime.errors import RunStopped
from moss_vllm.runtime.screen import plain
from moss_vllm.runtime.signals import stop_asked
from moss_vllm.training import engines, run_folder
from moss_vllm.training.optim import warmup_cosine
from moss_vllm.training.reading import Batches
from moss_vllm.training.row_order import RowOrder, StepBatches
from moss_vllm.training.run_log import RunLog, peak_memory_gib


@dataclass(frozen=True)
class Loop:
    """How long, how much at once, how often to save."""

    steps: int
    batch_size: int = 8  # clips a process and micro-batch
    accumulate: int = 1
    warmup_share: float = 0.03
    floor: float = 0.0  # of the rates at the end, as a share of their peaks
    clip_norm: float = 1.0
    save_every: int = 250
    keep: int | None = None  # newest checkpoints; None keeps all
    log_every: int = 10
    workers: int = 2
    seed: int = 0
    max_bad_share: float = 0.005
    unit: str = "tokens"  # what a batch's `read` counts


class RowDataset(Protocol):
    """Rows by index; batches as dicts of the objective's tensors plus four entries.

    These are `row_ids`, `rejected`, `count`, of the terms that the loss sums over, and `read`, of the tokens
    or frames that went in. `shares` has the number of rows and the weight of each source, in the order of the
    rows.
    """

    shares: Sequence[tuple[int, float]]

    def __getitem__(self, index: int) -> Any: ...
    def name(self, index: int) -> str:
        """The file that the row is read from."""
        ...

    def collate(self, rows: list[Any]) -> dict[str, Any]:
        """A batch of what `__getitem__` returned."""
        ...


class Objective(nn.Module):
    """What is minimised; called with a batch's tensors, it returns the sum of their losses.

    Args:
        model: what is trained.
        dtype: what to autocast to; None computes in float32.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def autocast(self, device: torch.device) -> Any:
        """The context of what may be rounded."""
        return torch.autocast(device.type, self.dtype) if self.dtype else nullcontext()


def train(
    accelerator: Accelerator,
    objective: Objective,
    groups: Sequence[dict[str, Any]],
    dataset: RowDataset,
    loop: Loop,
    *,
    out: Path,
    state: Callable[[], Mapping[str, Tensor]],
    save: Callable[[Path, dict[str, Tensor], int], None],
    restore: Callable[[Path], None],
    resume: Path | None = None,
    announce: Callable[[], None] | None = None,
    after_save: Callable[[Path, Mapping[str, Tensor]], None] | None = None,
    evaluate: Callable[[int], None] | None = None,
    evaluate_every: int = 0,
) -> list[dict[str, Any]]:
    """Run `loop.steps` optimizer steps; checkpoints go to `out/step-NNNNNN`, logs to `out`.

    Args:
        accelerator: from `engines.start`.
        objective: its model has what trains marked (`optim.parameter_groups`).
        groups: optimizer groups with `name` and `initial_lr`.
        dataset: may return `Rejected` for a row; more than `loop.max_bad_share` of them stop the run.
        out: written by the main process.
        state: what of the model a checkpoint holds.
        save: writes a folder that reloads alone, from that state; called by the main process.
        restore: loads the weights of such a folder into the model.
        resume: a checkpoint of this run to go on from.
        announce: called by every process once nothing refuses the run any more.
        after_save: checks the first and the last checkpoint against the state in memory; called by the main
            process.
        evaluate: called by every process every `evaluate_every` steps.

    Returns: the logged lines.

    Raises:
        FileNotFoundError: `resume` is no checkpoint.
        FileExistsError: a run in the folder of another.
        ValueError: a checkpoint of another seed or number of clips a step.
        RunStopped: too many rejected rows, a loss or gradient that is not finite (its rows are written to
            `out`), a trained parameter that the first backward pass does not reach, a full disk, rows that do
            not come (see `Batches`), or `out` was taken away.
    """
    run_folder.refuse_second_run(out, resume)
    progress: dict[str, Any] = run_folder.open_checkpoint(resume) if resume else {"step": 0}
    first_step: int = progress["step"]
    place = {
        "seed": loop.seed,
        "clips_a_step": loop.batch_size * loop.accumulate * accelerator.num_processes,
        "steps": loop.steps,
        "sources": [list(share) for share in dataset.shares],
    }
    run_folder.check_place(progress.get("place", place), place, first_step, resume)
    group_of = {id(p): group["name"] for group in groups for p in group["params"]}
    model = objective.model
    trained = {name: group_of[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    rates = {group["name"]: group["initial_lr"] for group in groups}
    base_rates = [group["initial_lr"] for group in groups]
    if resume:
        restore(resume)
    wrapped, optimizer = engines.prepare(
        accelerator,
        objective,
        torch.optim.AdamW(list(groups), betas=(0.9, 0.999)),
        batch_size=loop.batch_size,
        accumulate=loop.accumulate,
        clip_norm=loop.clip_norm,
    )
    parameters = dict(model.named_parameters())  # FSDP replaces them, under the same names
    named = {
        group: [parameters[name] for name, its in trained.items() if its == group]
        for group in dict.fromkeys(trained.values())
    }
    if resume:
        engines.load_state(accelerator, wrapped, optimizer, resume / "state")
    if announce:
        announce()
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        run_folder.tidy(out, first_step)
    accelerator.wait_for_everyone()
    lines: list[dict[str, Any]] = []
    rejected_rows, seen_rows = progress.get("rejected", 0), progress.get("seen", 0)
    began_s = time.monotonic() - progress.get("elapsed_s", 0.0)  # of the lives before as well
    unreached, hooks = watch({name: parameters[name] for name in trained})
    log = RunLog(
        accelerator,
        out,
        first=first_step,
        steps=loop.steps,
        every=loop.log_every,
        unit=loop.unit,
    )

    def elapsed_s() -> float:
        return round(time.monotonic() - began_s, 3)

    def checkpoint(step: int, *, last: bool) -> None:
        folder = out / f"step-{step:06d}"
        first = run_folder.latest_checkpoint(out) is None
        whole = engines.full_state(accelerator, model, state)
        counts = {
            "step": step,
            "rejected": rejected_rows,
            "seen": seen_rows,
            "place": place,
            "elapsed_s": elapsed_s(),
        }
        run_folder.write_checkpoint(
            accelerator,
            folder,
            save=lambda part: save(part, whole, step),
            save_state=lambda part: engines.save_state(accelerator, wrapped, optimizer, part),
            progress=counts,
        )
        if after_save and (first or last) and accelerator.is_main_process:
            with engines.undisturbed():
                after_save(folder, whole)
        if loop.keep and accelerator.is_main_process:
            run_folder.drop_old(out, loop.keep, resume)
        accelerator.wait_for_everyone()

    wrapped.train()
    done = first_step
    with (
        log,
        stop_asked() as stop,
        engines.in_company(),
        _batches(accelerator, dataset, loop, first_step, stop.is_set) as batches,
    ):
        for step in range(first_step, loop.steps):
            started = time.monotonic()
            micro_batches = [next(batches) for _ in range(loop.accumulate)]
            waited_s = time.monotonic() - started
            row_ids = [row for batch in micro_batches for row in batch.pop("row_ids")]
            refused = [row for batch in micro_batches for row in batch.pop("rejected")]
            log.rejected(refused)
            terms = sum(batch.pop("count") for batch in micro_batches)
            read = sum(batch.pop("read") for batch in micro_batches)
            local = [
                terms,
                read,
                len(refused),
                len(row_ids) + len(refused),
                stop.is_set(),
                not log.is_there(),
            ]
            counts = accelerator.reduce(torch.tensor(local, device=accelerator.device), "sum")
            terms, read, new_rejected, new_rows, stopping, gone = cast(Tensor, counts).tolist()
            if gone:
                raise run_folder.gone(out)
            rejected_rows, seen_rows = rejected_rows + new_rejected, seen_rows + new_rows
            # Of the whole set: else one bad row among the first 200 would stop a run that allows 0.5 %.
            rows = max(seen_rows, sum(rows for rows, _ in dataset.shares))
            if rejected_rows > loop.max_bad_share * rows:
                raise RunStopped(
                    f"{rejected_rows} of {seen_rows} rows so far could not be used, more than "
                    f"{loop.max_bad_share:.1%} of {rows}; see {out}/rejected-*.jsonl and mend the rows, "
                    "or raise max_bad_share"
                )
            factor = warmup_cosine(
                step,
                total=loop.steps,
                warmup=max(1, round(loop.warmup_share * loop.steps)),
                floor=loop.floor,
            )
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor
            total = torch.zeros((), device=accelerator.device)
            for number, batch in enumerate(micro_batches, start=1):
                batch = {key: value.to(accelerator.device) for key, value in batch.items()}
                with engines.accumulating(accelerator, wrapped, last=number == loop.accumulate):
                    loss = wrapped(**batch)
                    engines.backward(
                        accelerator, wrapped, loss / max(1, terms), last=number == loop.accumulate
                    )
                total += loss.detach()
            if step == first_step:
                check_every_gradient(unreached, hooks)
            mean_loss = float(cast(Tensor, accelerator.reduce(total, "sum"))) / max(1, terms)
            _check_finite(mean_loss, "loss", step + 1, row_ids, accelerator, out)
            by_group = (step + 1) % loop.log_every == 0
            norm, norms = engines.step(
                accelerator, wrapped, optimizer, named, loop.clip_norm, by_group=by_group
            )
            _check_finite(norm, "gradient", step + 1, row_ids, accelerator, out)
            line = {
                "step": step + 1,
                "loss": mean_loss,
                "grad_norm": norm,
                **({"grad_norms": norms} if by_group else {}),
                "lr": {name: rate * factor for name, rate in rates.items()},
                "clips": new_rows - new_rejected,
                loop.unit: read,
                "memory_gib": peak_memory_gib(),
                "seconds": time.monotonic() - started,
                "waited_s": waited_s,
                "elapsed_s": elapsed_s(),
            }
            lines.append(line)
            log.step(line)
            done = step + 1
            # Before the checkpoint, or a run killed in between would never ask; not with a scheduler waiting.
            if evaluate and evaluate_every and done % evaluate_every == 0 and not stopping:
                with engines.undisturbed():
                    evaluate(done)
                wrapped.train()
            last = done == loop.steps or bool(stopping)
            if last or done % loop.save_every == 0:
                checkpoint(done, last=last)
            if stopping and step + 1 < loop.steps:
                accelerator.print(
                    f"stopped by a signal after step {step + 1} of {loop.steps}; {plain(out)}/"
                    f"step-{step + 1:06d} is whole, the same command with --resume auto goes on from it"
                )
                break
    last_checkpoint = out / f"step-{loop.steps:06d}"
    if accelerator.is_main_process and done == loop.steps:
        (out / run_folder.FINISHED_FILE).write_text(f"{last_checkpoint.name}\n")
    return lines


def _batches(
    accelerator: Accelerator, dataset: RowDataset, loop: Loop, first_step: int, stop: Callable[[], bool]
) -> Batches:
    order = StepBatches(
        RowOrder(dataset.shares, loop.seed),
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


def watch(trained: dict[str, nn.Parameter]) -> tuple[set[str], list[Any]]:
    """Names no backward pass has reached yet; `.grad` does not tell, since engines move gradients."""
    unreached = set(trained)
    hooks = [  # not `register_hook`: FSDP's backward pass goes through other tensors
        p.register_post_accumulate_grad_hook(lambda _, name=name: unreached.discard(name))
        for name, p in trained.items()
    ]
    return unreached, hooks


def check_every_gradient(unreached: set[str], hooks: Sequence[Any]) -> None:
    """RunStopped if the first backward pass left out a trained parameter."""
    for hook in hooks:
        hook.remove()
    if unreached:
        raise RunStopped(
            f"{len(unreached)} trained parameters get no gradient, e.g. {', '.join(sorted(unreached)[:5])}; "
            "freeze them in the learning-rate table or give clips of more than one frame"
        )


def _check_finite(
    value: float, what: str, step: int, row_ids: Sequence[str], accelerator: Accelerator, out: Path
) -> None:
    """Stop before a step that would spoil the weights; every process writes the rows of its batch."""
    if np.isfinite(value):
        return
    file = out / f"not-finite-step-{step:06d}-{accelerator.process_index}.json"
    file.write_text(json.dumps({"step": step, what: str(value), "row_ids": list(row_ids)}, indent=2) + "\n")
    raise RunStopped(
        f"the {what} of step {step} is {value}; rows of this process's batch: {', '.join(row_ids)} "
        f"(in {file}); look at them, lower the learning rates, or go on from a checkpoint with --resume"
    )
