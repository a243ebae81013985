"""The moving average of what a model trains, which scores better than its last weights."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

YOUNG, GONE = (
    0.1,
    0.01,
)  # shares of the weights at the start: an average with more is told, one with less fits


def tell_young(decay: float, steps: int) -> str:
    """A warning where an average after so many steps still holds much of the weights at the start; or ""."""
    share = decay**steps
    if share < YOUNG:
        return ""
    fitting = math.floor(1000 * GONE ** (1 / steps)) / 1000
    return (
        f"warning: after {steps:,} steps the average of the weights, which is tested, is still {share:.0%} "
        f"the weights at the start (ema_decay {decay:g}); train longer, or lower --ema-decay: with "
        f"{fitting:g} it would be {fitting**steps:.0%}"
    )


class WeightAverage:
    """An exponential moving average of tensors, which starts with their values.

    Real numbers are averaged, BatchNorm's statistics too; whole ones, such as its counters, are those of the
    last step.

    Args:
        tensors: of the model, by name, as they are now; always the same names.
        decay: share of the average that a step keeps.
    """

    def __init__(self, tensors: Callable[[], Mapping[str, Tensor]], *, decay: float = 0.999) -> None:
        self.tensors = tensors
        self._average_all = get_ema_multi_avg_fn(decay)
        self.average = {name: value.detach().clone() for name, value in tensors().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the tensors as they are now into the average."""
        now = self.tensors()
        real = [name for name, value in now.items() if value.is_floating_point()]
        self._average_all([self.average[name] for name in real], [now[name] for name in real], torch.empty(0))
        for name in now.keys() - set(real):
            self.average[name].copy_(now[name])

    def load(self, average: Mapping[str, Tensor]) -> None:
        """Go on from a saved average."""
        _copy(average, self.average)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Have the model hold the average within a `with`, and then its own tensors again."""
        own = {name: value.detach().clone() for name, value in self.tensors().items()}
        _copy(self.average, self.tensors())
        try:
            yield
        finally:
            _copy(own, self.tensors())


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, value in target.items():
        value.copy_(source[name])
