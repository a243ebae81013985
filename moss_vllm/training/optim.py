"""Which parameter trains at which rate: one ordered table of patterns. Optimizers, and the schedule."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Rate:
    """One row of the table: parameters whose name matches `pattern` train at `lr`; None freezes them.

    `weight_decay` spares one-dimensional parameters (biases, norms) unless `decay_vectors`.
    """

    name: str
    pattern: str
    lr: float | None
    weight_decay: float = 0.0
    decay_vectors: bool = False


def parameter_groups(model: nn.Module, table: Sequence[Rate]) -> list[dict[str, Any]]:
    """Optimizer groups by `table`; sets `requires_grad` of every parameter accordingly.

    Each group has `name`, `lr`, `initial_lr` (what the schedule scales) and `weight_decay`.

    Raises:
        ValueError: a parameter that no row covers, or a trained row without parameters; all are named.
    """
    matched: dict[str, list[tuple[str, nn.Parameter]]] = {row.name: [] for row in table}
    uncovered = []
    for name, parameter in model.named_parameters():
        row = next((row for row in table if re.search(row.pattern, name)), None)
        if row is None:
            uncovered.append(name)
            continue
        parameter.requires_grad_(row.lr is not None)
        matched[row.name].append((name, parameter))
    if uncovered:
        shown = ", ".join(uncovered[:10]) + (
            f" and {len(uncovered) - 10} more" if len(uncovered) > 10 else ""
        )
        raise ValueError(f"no row of the learning-rate table covers {shown}; add a row (lr=None freezes)")
    if empty := [row.name for row in table if row.lr is not None and not matched[row.name]]:
        raise ValueError(
            f"rows {empty} of the learning-rate table match no parameter; remove them or fix the pattern"
        )
    groups = []
    for row in table:
        if row.lr is None:
            continue
        parameters = [p for _, p in matched[row.name]]
        for decays in (True, False):
            all_decay = row.weight_decay == 0 or row.decay_vectors
            members = [p for p in parameters if (p.dim() > 1 or all_decay) == decays]
            if members:
                decay = row.weight_decay if decays else 0.0
                rates = {"lr": row.lr, "initial_lr": row.lr, "weight_decay": decay}
                groups.append({"name": row.name, "params": members, **rates})
    return groups


def describe(model: nn.Module, table: Sequence[Rate]) -> list[tuple[str, str, int, int, str]]:
    """The table for the start-up report: name, pattern, tensors, parameters and rate of each row."""
    counts = {row.name: [0, 0] for row in table}
    for name, parameter in model.named_parameters():
        row = next(row for row in table if re.search(row.pattern, name))
        counts[row.name][0] += 1
        counts[row.name][1] += parameter.numel()
    rates = {row.name: "frozen" if row.lr is None else f"{row.lr:g}" for row in table}
    return [
        (row.name, row.pattern, counts[row.name][0], counts[row.name][1], rates[row.name]) for row in table
    ]


def with_rates(table: Sequence[Rate], rates: Mapping[str, float]) -> tuple[Rate, ...]:
    """The table with other learning rates, by row name.

    Raises:
        ValueError: a name that belongs to no trained row of the table.
    """
    trained = [row.name for row in table if row.lr is not None]
    if unknown := set(rates) - set(trained):
        raise ValueError(f"no learning rate called {sorted(unknown)}; the table has {trained}")
    return tuple(row if row.lr is None else replace(row, lr=rates.get(row.name, row.lr)) for row in table)


def make_adamw(groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """AdamW of `parameter_groups`."""
    return torch.optim.AdamW(list(groups), betas=(0.9, 0.999))


def make_sgd(groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """SGD with momentum of `parameter_groups`."""
    return torch.optim.SGD(list(groups), momentum=0.9)


def warmup_cosine(step: int, *, total: int, warmup: int, floor: float = 0.0) -> float:
    """Factor of the learning rates at `step`: linear from 0 over `warmup` steps, then cosine to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
