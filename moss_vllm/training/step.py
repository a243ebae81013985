"""One optimizer step: read its rows and count them over all processes, then learn from them."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from moss_vllm.data.rows import Rejected
from moss_vllm.runtime.errors import RunStopped
from moss_vllm.training import engines


@dataclass(frozen=True)
class StepRows:
    """What a step reads: rows of this process, counts over all processes."""

    started_s: float  # of time.monotonic
    waited_s: float
    micro_batches: list[dict[str, Tensor]]
    row_ids: list[str]
    rejected: list[Rejected]
    terms: int  # that the loss sums over
    read: int  # tokens or frames
    rejected_rows: int
    rows: int  # rejected ones included
    stop: bool  # some process was asked to stop
    gone: bool  # the run's folder was taken away

    @property
    def clips(self) -> int:
        """Rows that are learned from, over all processes."""
        return self.rows - self.rejected_rows


def read_step(
    accelerator: Accelerator,
    batches: Iterator[dict[str, Any]],
    accumulate: int,
    *,
    stop: Callable[[], bool],
    is_there: Callable[[], bool],
) -> StepRows:
    """Read the micro-batches of a step and add up their counts; every process must call it.

    Args:
        stop: whether this process was asked to stop.
        is_there: whether the run's folder is still there.
    """
    started_s = time.monotonic()
    micro_batches = [next(batches) for _ in range(accumulate)]
    waited_s = time.monotonic() - started_s
    row_ids = [row for batch in micro_batches for row in batch.pop("row_ids")]
    rejected = [row for batch in micro_batches for row in batch.pop("rejected")]
    own = [
        sum(batch.pop("count") for batch in micro_batches),
        sum(batch.pop("read") for batch in micro_batches),
        len(rejected),
        len(row_ids) + len(rejected),
        stop(),
        not is_there(),
    ]
    counts = cast(Tensor, accelerator.reduce(torch.tensor(own, device=accelerator.device), "sum"))
    return StepRows(started_s, waited_s, micro_batches, row_ids, rejected, *counts.tolist())


class Learner:
    """The objective and its optimizer, wrapped for the engine.

    Args:
        accelerator: from `engines.start`.
        objective: a `loop.Objective`; its model's trained parameters require a gradient.
        groups: from `optim.parameter_groups`.
        loop: a `loop.Loop`.
        out: the run's folder.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        objective: Any,
        groups: Sequence[dict[str, Any]],
        loop: Any,
        out: Path,
    ) -> None:
        self.accelerator, self.loop, self.out = accelerator, loop, out
        self.unwrapped, self.model = objective, objective.model
        self.scaler = engines.loss_scaler(accelerator, objective.dtype)
        group_of = {id(p): group["name"] for group in groups for p in group["params"]}
        trained = {name: group_of[id(p)] for name, p in self.model.named_parameters() if p.requires_grad}
        self.peaks = [(group["name"], group["initial_lr"]) for group in groups]
        self.objective, self.optimizer = engines.wrap(
            accelerator,
            objective,
            loop.optimizer(groups),
            batch_size=loop.batch_size,
            accumulate=loop.accumulate,
            clip_norm=loop.clip_norm,
            gather_whole=objective.gather_whole,
        )
        parameters = dict(self.model.named_parameters())  # FSDP replaces them, under the same names
        self.groups = {
            group: [parameters[name] for name, own in trained.items() if own == group]
            for group in dict.fromkeys(trained.values())
        }
        self.unreached, self.hooks = watch({name: parameters[name] for name in trained})

    def learn(self, step: int, rows: StepRows) -> dict[str, Any]:
        """Forward, backward and update of step number `step`, counted from 0.

        Returns: `loss`, `grad_norm`, `lr` of each group, and `grad_norms` in steps that are shown; in float16
        also `loss_scale`, and whether the step was `skipped`.

        Raises:
            RunStopped: a loss or gradient that is not finite (its rows are written to the run's folder), or
                a trained parameter that the first backward pass does not reach.
        """
        loop, accelerator = self.loop, self.accelerator
        for group, (_, peak) in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = loop.rate(step, peak)
        divisor = self.unwrapped.divisor(rows.terms)
        total = torch.zeros((), device=accelerator.device)
        for number, batch in enumerate(rows.micro_batches, start=1):
            last = number == loop.accumulate
            batch = {key: value.to(accelerator.device) for key, value in batch.items()}
            with engines.accumulating(accelerator, self.objective, last=last):
                loss = self.objective(**batch)
                engines.backward(accelerator, self.objective, loss / divisor, last=last, scaler=self.scaler)
            total += loss.detach()
        if self.hooks:
            check_every_gradient(self.unreached, self.hooks)
            self.hooks = []
        mean_loss = float(cast(Tensor, accelerator.reduce(total, "sum"))) / divisor
        self._check_finite(mean_loss, "loss", step + 1, rows.row_ids)
        by_group = (step + 1) % loop.log_every == 0
        scale = self.scaler.get_scale() if self.scaler else 0.0
        norm, norms = engines.step(
            accelerator,
            self.objective,
            self.optimizer,
            self.groups,
            loop.clip_norm,
            by_group=by_group,
            scaler=self.scaler,
        )
        skipped = scale >= 1 and not np.isfinite(norm)  # the scale was too large, and is halved now
        if not skipped:
            self._check_finite(norm, "gradient", step + 1, rows.row_ids)
        self.unwrapped.after_step()
        return {
            "loss": mean_loss,
            "grad_norm": None if skipped else norm,
            **({"grad_norms": norms} if by_group and not skipped else {}),
            "lr": {name: loop.rate(step, peak) for name, peak in self.peaks},
            **({"loss_scale": scale, "skipped": skipped} if self.scaler else {}),
        }

    def _check_finite(self, value: float, what: str, step: int, row_ids: Sequence[str]) -> None:
        """Stop before the weights are spoiled; every process writes the rows of its batch."""
        if np.isfinite(value):
            return
        file = self.out / f"not-finite-step-{step:06d}-{self.accelerator.process_index}.json"
        record = {"step": step, what: str(value), "row_ids": list(row_ids)}
        file.write_text(json.dumps(record, indent=2) + "\n")
        raise RunStopped(
            f"the {what} of step {step} is {value}; rows of this process's batch: {', '.join(row_ids)} "
            f"(in {file}); look at them, lower the learning rates, or resume from a checkpoint with --resume"
        )


def watch(trained: Mapping[str, nn.Parameter]) -> tuple[set[str], list[Any]]:
    """Names of the parameters that no backward pass has reached yet, and the hooks that remove them.

    `.grad` does not show it, since engines move gradients; `register_hook` neither, since FSDP's backward
    pass goes through other tensors.
    """
    unreached = set(trained)
    hooks = [
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
