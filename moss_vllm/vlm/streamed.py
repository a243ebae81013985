"""A training set of rows that come as they are read: each process and worker has a lane of its own.

A lane mixes the sources by weight, in an order of its own. Of a streamed source it reads its part, row after
row; of one that is measured, every n-th row of that source's order, where n is the number of lanes.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor

from moss_vllm.data.rows import BadRow, ClipRow, Rejected
from moss_vllm.data.sources import with_long_id
from moss_vllm.data.streams import Stream, StreamLane
from moss_vllm.training.row_order import SourceMix, SourceOrder
from moss_vllm.vlm.batches import TrainingSet

COUNTED = 1000  # rows, of which a share may turn out unusable; how many a stream has is not known


class StreamedSet:
    """Rows by their place in `training.row_order.StreamOrder`, for processes that read places going up.

    Args:
        streams: from `data.streams.open_sources`; None for a source whose rows are those of the reader.
        reader: how a row becomes an example; its shares are those of all sources, of a streamed one with its
            first rows, which are not used.
        batch_size: clips per process and micro-batch.
        processes: of the training.
        workers: of each process.
        seed: of the order.
    """

    def __init__(
        self,
        streams: Sequence[Stream | None],
        reader: TrainingSet,
        *,
        batch_size: int,
        processes: int,
        workers: int,
        seed: int,
    ) -> None:
        self.streams, self.reader, self.batch_size, self.seed = streams, reader, batch_size, seed
        self.processes, self.workers = processes, max(1, workers)
        self.number = self.processes * self.workers  # of lanes
        self.weights = [weight for _, weight in reader.shares]
        self.first = list(accumulate((count for count, _ in reader.shares), initial=0))
        SourceMix(self.weights, seed)  # a weight that is too small ends the run here, not in a worker
        self.shares: Sequence[tuple[int, float]] = [(COUNTED, 1.0)]
        if len(streams) > 1:
            self.shares = [
                (COUNTED if stream else count, weight)
                for stream, (count, weight) in zip(streams, reader.shares, strict=True)
            ]
        self.lanes: dict[int, _Lane] = {}

    @property
    def processor(self) -> Any:
        """The processor of the reader."""
        return self.reader.processor

    def division(self) -> str:
        """How the rows are divided, which the rows of a step depend on."""
        return f"{self.processes} processes x {self.workers} workers"

    def __len__(self) -> int:
        return sum(count for count, _ in self.shares)

    def name(self, place: int) -> str:
        """The row's place: what it is about is known where it is read only."""
        return f"the row at place {place} of {', '.join(one.name for one in self.streams if one)}"

    def __getitem__(self, place: int) -> tuple[str, dict[str, Tensor]] | Rejected:
        # The loader gives a worker every n-th micro-batch of its process, so a worker reads one lane.
        batch, offset = divmod(place, self.batch_size)
        micro, process = divmod(batch, self.processes)
        turn, worker = divmod(micro, self.workers)
        number = process * self.workers + worker
        if number not in self.lanes:
            self.lanes[number] = _Lane(self, number)
        row = self.lanes[number][turn * self.batch_size + offset]
        if isinstance(row, BadRow):
            return Rejected(str(row.row), f"{row.reason}; {row.remedy}", row.file, row.kind)
        return self.reader.read_row(row)

    def collate(self, rows: Sequence[tuple[str, dict[str, Tensor]] | Rejected]) -> dict[str, Any]:
        """As `TrainingSet.collate`."""
        return self.reader.collate(rows)


class _Lane:
    """The rows of one lane by place; places go up."""

    def __init__(self, dataset: StreamedSet, lane: int) -> None:
        self.dataset, self.lane = dataset, lane
        self.mix = SourceMix(dataset.weights, dataset.seed, lane)
        self.sources: list[StreamLane | SourceOrder] = [
            StreamLane(stream, lane, dataset.number, dataset.seed)
            if stream
            else SourceOrder(dataset.first[source + 1] - dataset.first[source], dataset.seed, source)
            for source, stream in enumerate(dataset.streams)
        ]

    def __getitem__(self, place: int) -> ClipRow | BadRow:
        source, number = self.mix[place]
        rows, dataset = self.sources[source], self.dataset
        if isinstance(rows, SourceOrder):
            return dataset.reader.rows[dataset.first[source] + rows[number * dataset.number + self.lane]]
        row = rows[number]
        if isinstance(row, BadRow) or len(dataset.streams) == 1:
            return row
        return with_long_id(row, rows.stream.name)
