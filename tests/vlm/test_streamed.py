"""Owns: every process and worker of a streamed training reads its own lane, mixed by weight, row by row."""

from collections import Counter

import pytest
from table_files import write_shard

from moss_vllm.data.rows import ClipRow, Rejected
from moss_vllm.data.streams import StreamLane, open_sources
from moss_vllm.training.row_order import StepBatches, StreamOrder
from moss_vllm.vlm.streamed import StreamedSet


class Names:
    """A reader that returns ids."""

    def __init__(self, rows=(), shares=((30, 1.0),)):
        self.rows, self.shares = rows, shares

    def read_row(self, row):
        return row.row_id


def open_one(data, cache):
    (stream,) = open_sources(data, None, cache=cache, stream=True, seed=0)[1]
    return stream


@pytest.fixture
def stream(tmp_path):
    for number in range(5):
        samples = [(f"r{number}{n}", {"mp4": b"a", "txt": b"It turns."}) for n in range(6)]
        write_shard(tmp_path / "tars" / f"{number}.tar", samples)
    return open_one(tmp_path / "tars", tmp_path)


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (2, 2), (2, 1)])
def test_a_reader_reads_its_lane_row_after_row(stream, processes, workers):
    lanes, seen = processes * max(1, workers), {}
    for first, last in ((0, 4), (4, 6)):  # a run, and one that goes on
        for rank in range(processes):
            given = {"batch_size": 2, "rank": rank, "processes": processes, "accumulate": 3}
            steps = StepBatches(StreamOrder([], 0), range(first, last), **given)
            readers = [
                StreamedSet([stream], Names(), batch_size=2, processes=processes, workers=workers, seed=1)
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
    stream = open_one(tmp_path / "a.tar", tmp_path)
    found = StreamedSet([stream], Names(), batch_size=2, processes=1, workers=0, seed=1)[0]
    assert isinstance(found, Rejected) and found.row_id == "row 0" and found.source == "a.tar/a.tar"
    assert "r.json cannot be read" in found.reason and found.kind == "bad"


ROWS = [ClipRow(f"own/o{number}", None, (), None, None) for number in range(7)]


def mixed(stream, processes=1, workers=1, shares=((3, 3.0), (7, 1.0))):
    """A set of the stream, of which three rows of the reader are the sample, and of the rows after them."""
    reader = Names([None] * 3 + ROWS, shares)
    return StreamedSet([stream, None], reader, batch_size=2, processes=processes, workers=workers, seed=1)


@pytest.mark.parametrize(("processes", "workers"), [(1, 1), (2, 2)])
def test_sources_are_mixed_by_weight_and_no_row_comes_twice_in_an_epoch(stream, processes, workers):
    dataset, lanes = mixed(stream, processes, workers), processes * workers
    found = [dataset[place] for place in range(1024 * lanes)]
    own = [row for row in found if row.startswith("own/")]
    assert len(own) == 256 * lanes and set(found) - set(own) == {f"tars/r{n}" for n in all_names()}
    assert max(Counter(own).values()) - min(Counter(own).values()) <= 1
    for lane, one in dataset.lanes.items():
        rows = StreamLane(stream, lane, lanes, seed=1)
        of_lane = [one[place] for place in range(300)]
        streamed = [row.row_id for row in of_lane if row.row_id.startswith("tars/")]
        assert streamed == [f"tars/{rows[number].row_id}" for number in range(len(streamed))]
        assert 200 < len(streamed) < 250
    if lanes > 1:  # each lane has an order of its own
        kinds = {tuple(one[place].row_id[:3] for place in range(300)) for one in dataset.lanes.values()}
        assert len(kinds) == lanes


def all_names():
    return [f"{shard}{row}" for shard in range(5) for row in range(6)]


def test_any_place_of_a_mix_is_reached_without_those_before_it(stream):
    whole = mixed(stream)
    straight = [whole[place] for place in range(2100)]
    for start in (1, 700, 1024, 2050):
        dataset = mixed(stream)
        assert [dataset[place] for place in range(start, start + 40)] == straight[start : start + 40]


def test_a_weight_too_small_ends_the_run_before_it_starts(stream):
    with pytest.raises(ValueError, match="one has less than 1/1024 of the weight"):
        mixed(stream, shares=((3, 3.0), (7, 1e-6)))
