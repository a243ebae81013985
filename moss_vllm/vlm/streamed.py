"""A training set of rows that come as they are read: each process and worker has a lane of the stream."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from moss_vllm.data.rows import BadRow, Rejected
from moss_vllm.data.sources import Sources
from moss_vllm.data.streams import Stream, StreamLane, first_rows
from moss_vllm.vlm.batches import TrainingSet
from moss_vllm.vlm.plan import Plan, plan

COUNTED = 1000  # rows, of which a share may turn out unusable; how many a stream has is not known


class StreamedSet:
    """Rows by their place in `training.row_order.StreamOrder`, for processes that read places going up.

    Args:
        stream: from `data.streams.open_stream`.
        reader: how a row becomes an example; its own rows are not used.
        batch_size: clips per process and micro-batch.
        processes: of the training.
        workers: of each process.
        seed: of the order.
    """

    def __init__(
        self,
        stream: Stream,
        reader: TrainingSet,
        *,
        batch_size: int,
        processes: int,
        workers: int,
        seed: int,
    ) -> None:
        self.stream, self.reader, self.batch_size, self.seed = stream, reader, batch_size, seed
        self.processes, self.workers = processes, max(1, workers)
        self.shares: Sequence[tuple[int, float]] = [(COUNTED, 1.0)]
        self.lanes: dict[int, StreamLane] = {}

    @property
    def processor(self) -> Any:
        """The processor of the reader."""
        return self.reader.processor

    def division(self) -> str:
        """How the rows are divided, which the rows of a step depend on."""
        return f"{self.processes} processes x {self.workers} workers"

    def __len__(self) -> int:
        return COUNTED

    def name(self, place: int) -> str:
        """The row's place: what it is about is known where it is read only."""
        return f"the row at place {place} of {self.stream.name}"

    def __getitem__(self, place: int) -> tuple[str, dict[str, Tensor]] | Rejected:
        # The loader gives a worker every n-th micro-batch of its process, so a worker reads one lane.
        batch, offset = divmod(place, self.batch_size)
        micro, process = divmod(batch, self.processes)
        turn, worker = divmod(micro, self.workers)
        number = process * self.workers + worker
        if number not in self.lanes:
            self.lanes[number] = StreamLane(self.stream, number, self.processes * self.workers, self.seed)
        row = self.lanes[number][turn * self.batch_size + offset]
        if isinstance(row, BadRow):
            return Rejected(str(row.row), f"{row.reason}; {row.remedy}", row.file, row.kind)
        return self.reader.read_row(row)

    def collate(self, rows: Sequence[tuple[str, dict[str, Tensor]] | Rejected]) -> dict[str, Any]:
        """As `TrainingSet.collate`."""
        return self.reader.collate(rows)


def sample(stream: Stream, seed: int, processor: Any, **settings: Any) -> Plan:
    """A plan of the first rows alone, for the report; `settings` as for `plan.plan`.

    Raises: RunStopped if none of them can be used.
    """
    found = plan(Sources((first_rows(stream, seed),)), processor, **settings)
    found.streamed = True
    found.check(max_share=1.0)
    return found
