"""The numbers that a flag, a setting or an argument may have: told by --help, others refused by name."""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, with both ends unless `above` or `below`; the `type` of a flag."""

    kind: type
    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __call__(self, text: str) -> Any:
        """The number in a text; `Flags` refuses those outside."""
        return self.kind(text)

    @property
    def __name__(self) -> str:  # argparse says "invalid int value"
        return self.kind.__name__

    def __contains__(self, value: float) -> bool:
        low = self.low < value if self.above else self.low <= value  # false for NaN
        return low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {self.low:.10g}"
        if self.high == math.inf:
            return low
        if self.above or self.below:
            return f"{low} and {'below' if self.below else 'at most'} {self.high:.10g}"
        return f"from {self.low:.10g} to {self.high:.10g}"

    def faults(self, **values: float | None) -> list[str]:
        """What is wrong with values, by their names; None is never wrong."""
        wrong = {name: value for name, value in values.items() if value is not None and value not in self}
        return [f"{name} is {value}; it must be {self}" for name, value in wrong.items()]

    def check(self, **values: float | None) -> None:
        """ValueError naming each of the values outside."""
        if wrong := self.faults(**values):
            raise ValueError("; ".join(wrong))


FROM_ONE, FROM_ZERO = Range(int, 1), Range(int, 0)
SEEDS = Range(int, 0, 2**31 - 1)  # numpy takes 32 bits, and a process adds its number
POSITIVE, NOT_NEGATIVE = Range(float, 0, above=True), Range(float, 0)
SHARE, SHARE_BELOW_1 = Range(float, 0, 1), Range(float, 0, 1, below=True)
FPS, SECOND = Range(float, 1e-3, 1000), Range(float, 0, 1e9)
MULTIPLE_PX = 28  # a side holds whole 2 x 2 groups of 14-pixel patches
SHORTER_PX = Range(int, MULTIPLE_PX, 10_000)
