"""What tensors from a file are: all of those wanted, and the same as before."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def faults(weights: Mapping[str, Tensor], expected: Mapping[str, Any]) -> str:
    """What is wrong with `weights`, in words; `expected` has a shape for each name, or None for any."""

    def of_another_shape(name: str) -> bool:
        return expected[name] is not None and list(weights[name].shape) != list(expected[name])

    both = weights.keys() & expected.keys()
    empty = [name for name in both if weights[name].numel() == 0]
    found: dict[str, Iterable[str]] = {
        "missing": expected.keys() - weights.keys(),
        "left over": weights.keys() - expected.keys(),
        "empty": empty,
        "of another shape": [name for name in both if of_another_shape(name) and name not in empty],
        "not finite": [name for name in both if not bool(torch.isfinite(weights[name]).all())],
    }
    told = []
    for fault, names in found.items():
        if some := sorted(name.removeprefix("base_model.model.model.") for name in names):
            more = f" and {len(some) - 5} more" if len(some) > 5 else ""
            told.append(f"{len(some)} {fault} ({', '.join(some[:5])}{more})")
    return ", ".join(told)


def answering_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every weight and statistic that decides what a model says.

    peft keeps the untrained original of each module that is trained whole. It does not run, and MOSS's is
    drawn anew in each process, so it is left out.
    """
    return {name: value for name, value in model.state_dict().items() if ".original_module." not in name}


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A digest of some numbers of every tensor: tells two trainings apart that have one name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // 16)].double().cpu().numpy()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + some.tobytes())
    return digest.hexdigest()[:16]
