"""Which rows a step reads: sources mixed by weight; any place is computed without those before it."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler


class SourceMix:
    """The endless mix of sources by weight: at a place, a source and how often it came before.

    Every block of 1,024 places holds each source in proportion to its weight, in a random order.

    Args:
        weights: of the sources.
        seed: of the order; one number or several.

    Raises: ValueError for a source with less than 1/1,024 of the weight.
    """

    block = 1024

    def __init__(self, weights: Sequence[float], *seed: int) -> None:
        self.seed, self.number = seed, len(weights)
        exact = self.block * np.array(weights) / sum(weights)
        if exact.min() < 1:
            raise ValueError(
                f"of sources with the weights {list(weights)} one has less than 1/{self.block} of the "
                "weight; raise its weight or leave it out"
            )
        self.places = np.floor(exact).astype(int)
        while self.places.sum() < self.block:
            self.places[np.argmax(exact - self.places)] += 1
        self._pattern: tuple[int, Any, Any] = (-1, None, None)

    def __getitem__(self, place: int) -> tuple[int, int]:
        block, offset = divmod(place, self.block)
        if self._pattern[0] != block:
            mix = np.random.default_rng([*self.seed, block, self.number])
            sources = mix.permutation(np.repeat(np.arange(self.number), self.places))
            earlier = np.zeros(self.block, int)
            for source in range(self.number):
                earlier[sources == source] = np.arange(self.places[source])
            self._pattern = (block, sources, earlier)
        source = int(self._pattern[1][offset])
        return source, block * int(self.places[source]) + int(self._pattern[2][offset])


class SourceOrder:
    """The endless order of the rows of one source, in a new permutation every epoch."""

    def __init__(self, rows: int, seed: int, source: int) -> None:
        self.rows, self.seed, self.source = rows, seed, source
        self._epoch: tuple[int, Any] = (-1, None)

    def __getitem__(self, number: int) -> int:
        epoch, index = divmod(number, self.rows)
        if self._epoch[0] != epoch:
            order = np.random.default_rng([self.seed, epoch, self.source]).permutation(self.rows)
            self._epoch = (epoch, order)
        return int(self._epoch[1][index])


class RowOrder:
    """The endless sequence of rows: sources mixed by weight, each in a new permutation every epoch.

    Sources whose weights equal their numbers of rows are mixed in one permutation.
    """

    def __init__(self, shares: Sequence[tuple[int, float]], seed: int) -> None:
        if not shares or not all(rows for rows, _ in shares):
            raise ValueError(
                f"the training set has a source without rows (rows, weight: {list(shares)}); check its "
                "annotation file and the rejected list"
            )
        if all(weight == rows for rows, weight in shares):  # every row equally often: one permutation of all
            shares = [(sum(rows for rows, _ in shares), 1.0)]
        self.mix = SourceMix([weight for _, weight in shares], seed)
        self.orders = [SourceOrder(rows, seed, source) for source, (rows, _) in enumerate(shares)]
        self.first = np.cumsum([0, *(rows for rows, _ in shares)])

    def __getitem__(self, place: int) -> int:
        source, number = self.mix[place]
        return int(self.first[source]) + self.orders[source][number]


class StreamOrder:
    """The order of a stream: the row at a place is the one that its reading process finds there.

    Arguments as for `RowOrder`; neither matters, since the dataset itself has the order.
    """

    def __init__(self, shares: Sequence[tuple[int, float]], seed: int) -> None:
        pass

    def __getitem__(self, place: int) -> int:
        return place


class PlacedRow(int):
    """A row's index with its place in the order, the only thing that its random numbers depend on."""

    place: int

    def __new__(cls, row: int, place: int) -> "PlacedRow":
        """Row number `row`, at `place` of the endless order."""
        placed = super().__new__(cls, row)
        placed.place = place
        return placed

    def __reduce__(self) -> tuple[type["PlacedRow"], tuple[int, int]]:
        return PlacedRow, (int(self), self.place)


class StepBatches(Sampler[list[int]]):
    """Row indices, as `PlacedRow`, of each micro-batch of one process over `steps`.

    Step s covers places s*G to (s+1)*G of `RowOrder`, with G = batch_size * processes * accumulate.
    """

    def __init__(
        self,
        order: RowOrder | StreamOrder,
        steps: range,
        *,
        batch_size: int,
        accumulate: int,
        rank: int,
        processes: int,
    ) -> None:
        self.order, self.batch_size, self.rank, self.processes = order, batch_size, rank, processes
        self.micro_batches = range(steps.start * accumulate, steps.stop * accumulate)

    def __iter__(self) -> Iterator[list[int]]:
        for micro in self.micro_batches:
            first = (micro * self.processes + self.rank) * self.batch_size
            yield [PlacedRow(self.order[place], place) for place in range(first, first + self.batch_size)]

    def __len__(self) -> int:
        return len(self.micro_batches)
