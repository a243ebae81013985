"""The loss on rows that no step trains on; measuring it changes nothing of the training."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from moss_vllm.data.rows import Rejected
from moss_vllm.training import engines, run_state
from moss_vllm.training.reading import Batches
from moss_vllm.training.row_order import PlacedRow


@dataclass(frozen=True)
class HeldOutLoss:
    """The mean loss over all that the held-out rows predict; None if none can be used or it is not finite.

    `rejected` has the rows of this process that could not be used; the counts are over all processes.
    """

    loss: float | None
    rows: int
    terms: int
    rejected: list[Rejected]
    seconds: float


def measure(
    accelerator: Accelerator, objective: nn.Module, dataset: Any, loop: Any, stop: Callable[[], bool]
) -> HeldOutLoss | None:
    """Measure the loss in evaluation mode; every process must call it.

    Every process has the same number of batches, the last ones maybe empty: with sharded weights a forward
    pass is an exchange. All processes use the first one's BatchNorm statistics, which are what a checkpoint
    holds. Those of this process, the random states and training mode are as before afterwards.

    Args:
        accelerator, objective: as wrapped by `engines.wrap`; the objective's sum is divided by the terms.
        dataset: a `loop.RowDataset` of the held-out rows.
        loop: a `loop.Loop`, whose batch size and workers it takes.
        stop: whether this process was asked to stop.

    Returns: None if any process was asked to stop before the end.
    """
    began_s = time.monotonic()
    rank, processes = accelerator.process_index, accelerator.num_processes
    total = sum(rows for rows, _ in dataset.shares)
    own = [PlacedRow(row, row) for row in range(rank, total, processes)]
    count, size = math.ceil(total / (loop.batch_size * processes)), loop.batch_size
    losses, terms, rows, rejected = 0.0, 0, 0, list[Rejected]()
    objective.eval()
    try:
        with (
            run_state.undisturbed(),
            engines.same_statistics(accelerator, objective),
            torch.no_grad(),
            Batches(
                dataset,
                dataset.collate,
                name=dataset.name,
                workers=min(loop.workers, count),
                stop=stop,
                batch_sampler=[own[size * n : size * (n + 1)] for n in range(count)],
                pin_memory=accelerator.device.type == "cuda",
                generator=torch.Generator().manual_seed(loop.seed),
            ) as batches,
        ):
            for _ in range(count):
                batch = next(batches)
                rejected += batch.pop("rejected")
                rows, terms = rows + len(batch.pop("row_ids")), terms + batch.pop("count")
                del batch["read"]
                loss = objective(**{key: value.to(accelerator.device) for key, value in batch.items()})
                losses += float(loss)
                if _over_all(accelerator, int(stop())):
                    return None
    finally:
        objective.train()
    losses, terms = _over_all(accelerator, losses), _over_all(accelerator, terms)
    mean = losses / terms if terms else math.nan
    return HeldOutLoss(
        mean if math.isfinite(mean) else None,
        _over_all(accelerator, rows),
        terms,
        rejected,
        time.monotonic() - began_s,
    )


def _over_all(accelerator: Accelerator, value: Any) -> Any:
    """The sum of a number over all processes."""
    return cast(Tensor, accelerator.reduce(torch.tensor(value, device=accelerator.device), "sum")).item()
