"""Owns: every process and worker of a streamed training reads its own lane, row after row."""

import pytest
from table_files import write_shard

from moss_vllm.data.rows import Rejected
from moss_vllm.data.sources import find_place
from moss_vllm.data.streams import StreamLane, open_stream
from moss_vllm.training.row_order import StepBatches, StreamOrder
from moss_vllm.vlm.streamed import StreamedSet


class Names:
    """A reader that returns ids."""

    def read_row(self, row):
        return row.row_id


@pytest.fixture
def stream(tmp_path):
    for number in range(5):
        samples = [(f"r{number}{n}", {"mp4": b"a", "txt": b"It turns."}) for n in range(6)]
        write_shard(tmp_path / "tars" / f"{number}.tar", samples)
    return open_stream(find_place(str(tmp_path / "tars")), None, tmp_path, "tars")


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (2, 2), (2, 1)])
def test_a_reader_reads_its_lane_row_after_row(stream, processes, workers):
    lanes, seen = processes * max(1, workers), {}
    for first, last in ((0, 4), (4, 6)):  # a run, and one that goes on
        for rank in range(processes):
            given = {"batch_size": 2, "rank": rank, "processes": processes, "accumulate": 3}
            steps = StepBatches(StreamOrder([], 0), range(first, last), **given)
            readers = [
                StreamedSet(stream, Names(), batch_size=2, processes=processes, workers=workers, seed=1)
                for _ in range(max(1, workers))
            ]
            for number, places in enumerate(steps):  # as a DataLoader gives batches to its workers
                reader = readers[number % len(readers)]
                found = [reader[place] for place in places]
                (lane,) = reader.lanes
                seen.setdefault(lane, []).extend(found)
    assert sorted(seen) == list(range(lanes))
    for lane, found in seen.items():
        rows = StreamLane(stream, lane, lanes, seed=1)
        assert found == [rows[place].row_id for place in range(len(found))]
        assert len(found) == 6 * 3 * 2 // max(1, workers)


def test_a_bad_row_is_a_rejected_one(tmp_path):
    write_shard(tmp_path / "a.tar", [("r", {"mp4": b"a", "json": b"{"})])
    stream = open_stream(find_place(str(tmp_path / "a.tar")), None, tmp_path, "a.tar")
    found = StreamedSet(stream, Names(), batch_size=2, processes=1, workers=0, seed=1)[0]
    assert isinstance(found, Rejected) and found.row_id == "row 0" and found.source == "a.tar/a.tar"
    assert "r.json cannot be read" in found.reason and found.kind == "bad"
