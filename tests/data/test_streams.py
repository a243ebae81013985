"""Owns: a stream gives each row once an epoch over all its readers, and any place without those before it."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from annotation_files import refusal
from launching import environment
from table_files import COMMIT, stand_in_hub, write_parquet, write_shard

from moss_vllm.data.rows import BadRow
from moss_vllm.data.sources import read_sources
from moss_vllm.data.streams import StreamLane, first_rows, open_sources
from moss_vllm.runtime.errors import RunStopped

SIZES = (7, 3, 5, 6)  # rows of each file


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Four tars of 21 samples, called r0 to r20; not to be changed."""
    root, count = tmp_path_factory.mktemp("shards"), 0
    for number, size in enumerate(SIZES):
        names = [f"r{count + index}" for index in range(size)]
        count += size
        samples = [(name, {"mp4": name.encode(), "txt": b"It turns."}) for name in names]
        write_shard(root / f"shard-{number}.tar", samples)
    return root


def open_one(data, cache=None):
    (stream,) = open_sources(data, None, cache=cache, stream=True, seed=0)[1]
    return stream


@pytest.fixture
def stream(shards, tmp_path):
    return open_one(shards, tmp_path)


def ids(lane, places):
    return [lane[place].row_id for place in places]


def own_rows(stream, lane, lanes):
    """The number of rows of a lane."""
    if lanes <= len(SIZES):
        return sum(SIZES[lane::lanes])
    return sum((file + row) % lanes == lane for file, size in enumerate(SIZES) for row in range(size))


@pytest.mark.parametrize("lanes", [1, 2, 4, 6])
def test_readers_share_the_rows_and_an_epoch_has_each_once(stream, lanes):
    seen = []
    for lane in range(lanes):
        rows, number = StreamLane(stream, lane, lanes, seed=3, buffer=4), own_rows(stream, lane, lanes)
        epochs = [ids(rows, range(start, start + number)) for start in (0, number, 2 * number)]
        assert [sorted(epoch) for epoch in epochs] == [sorted(epochs[0])] * 3
        assert number < 3 or epochs[0] != epochs[1]
        seen += epochs[0]
    assert Counter(seen) == {f"r{n}": 1 for n in range(21)}


@pytest.mark.parametrize("lanes", [1, 2, 6])
def test_any_place_is_reached_without_those_before_it(stream, lanes):
    for lane in range(lanes):
        straight = ids(StreamLane(stream, lane, lanes, seed=3, buffer=4), range(46))
        for start in (3, 13, 22, 42) if lanes < 6 else (11,):
            assert (
                ids(StreamLane(stream, lane, lanes, seed=3, buffer=4), range(start, 46)) == straight[start:]
            )


def test_the_seed_decides_the_order(stream):
    first, again, other = (ids(StreamLane(stream, 0, 1, seed, buffer=21), range(21)) for seed in (3, 3, 4))
    assert first == again != other and sorted(first) == sorted(other)


def test_what_is_skipped_is_not_written(stream, tmp_path):
    shutil.rmtree(tmp_path / "videos")  # of the first rows
    lane = StreamLane(stream, 0, 1, seed=3, buffer=4)
    shown = {lane[place].path for place in (16, 17, 18, 19)}
    assert len(shown) == 4 and set((tmp_path / "videos").iterdir()) == shown


def test_a_bad_row_has_its_place_and_its_number_in_its_file(tmp_path):
    table = write_parquet(tmp_path / "t" / "a.parquet", [
        {"caption": "It turns.", "mp4": b"a", "video": None, "video_name": "one"},
        {"caption": "It turns.", "mp4": b"a", "video": b"b", "video_name": "two"},
        {"caption": None, "mp4": b"c", "video": None, "video_name": "three"},
        {"caption": "It turns.", "mp4": None, "video": None, "video_name": "https://x.org/four.mp4"},
    ])  # fmt: skip
    stream = open_one(table, tmp_path)
    lane = StreamLane(stream, 0, 1, seed=0)
    rows = [lane[place] for place in range(4)]
    bad = {str(row.row)[:5]: row for row in rows if isinstance(row, BadRow)}
    assert sorted(bad) == ["row 1", "row 2", "row 3"] and {row.file for row in bad.values()} == {
        "a.parquet/a.parquet"
    }
    assert "a video in each of the columns" in bad["row 1"].reason
    assert "which is no known format" in bad["row 2"].reason and "is a URL" in bad["row 3"].reason
    source = first_rows(stream, seed=0)
    assert (len(source.rows), len(source.bad), source.format) == (1, 3, "streamed")


def test_a_reader_without_a_row_says_so(tmp_path):
    shard = write_shard(tmp_path / "a.tar", [("r0", {"mp4": b"a", "txt": b"It turns."})])
    stream = open_one(shard, tmp_path)
    assert StreamLane(stream, 0, 2, seed=0)[5].row_id == "r0"
    with pytest.raises(
        RunStopped, match=r"a\.tar has no row for reader 1 of 2; use fewer --workers, or do not"
    ):
        StreamLane(stream, 1, 2, seed=0)[0]


def test_a_file_cut_short_ends_a_stream(shards, tmp_path):
    whole = (shards / "shard-0.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:5000])
    refusal(lambda: open_one(tmp_path / "a.tar"), "a.tar/a.tar", "cannot be read after row", "download it")


def test_json_is_not_streamed(tmp_path):
    (tmp_path / "rows.json").write_text("[]")
    refusal(
        lambda: open_one(tmp_path / "rows.json"), "rows.json", "only these are streamed", "do not stream it"
    )


def write_mix(file, *rows):
    file.write_text("\n".join(f"- {{{row}}}" for row in rows))
    return file


def test_a_list_names_what_is_streamed(shards, tmp_path):
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "0.tar").symlink_to(shards / "shard-1.tar")
    rows = (f"path: {shards}, weight: 3, stream: true, name: all", "path: few, weight: 1")
    mix = write_mix(tmp_path / "mix.yaml", *rows)
    sources, streams = open_sources(mix, None, cache=tmp_path, stream=False, seed=0)
    told = [(one.name, one.format, one.weight, len(one.rows)) for one in sources.sources]
    assert told == [("all", "streamed", 3, 21), ("few", "FAVOR-Train", 1, 3)]
    assert {row.row_id for row in sources.rows} == {f"all/r{n}" for n in range(21)} | {
        "few/r7",
        "few/r8",
        "few/r9",
    }
    assert streams[0].name == "all" and streams[1] is None
    with pytest.raises(ValueError, match="all would be streamed, which only a training does; leave `stream`"):
        read_sources(mix)
    with pytest.raises(
        ValueError, match="--stream is for one source; leave it out, and write `stream: true`"
    ):
        open_sources(mix, None, cache=None, stream=True, seed=0)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (("path: a, stream: 1",), "stream is 1; it must be true or false"),
        (
            ("path: a, stream: true", "path: b"),
            "not known before it is read; give every source of the list a weight",
        ),
    ],
)
def test_a_list_that_cannot_be_streamed_is_refused(tmp_path, rows, told):
    with pytest.raises(ValueError, match=told):
        open_sources(write_mix(tmp_path / "mix.yaml", *rows), None, cache=None, stream=False, seed=0)


READ = """
import sys
from moss_vllm.data.sources import read_sources
from moss_vllm.data.streams import StreamLane, open_sources
if sys.argv[1] == "fetch":
    read_sources(sys.argv[3], cache=sys.argv[2])
for name in sys.argv[3:]:
    _, (stream,) = open_sources(name, None, cache=sys.argv[2], stream=True, seed=0)
    lane = StreamLane(stream, 0, 1, seed=0, buffer=2)
    print(stream.revision, stream.fingerprint(), *(lane[place].row_id for place in range(6)))
"""


@pytest.mark.slow
def test_a_data_set_of_the_hub_is_streamed(shards, tmp_path):
    rows = [{"video_name": f"p{n}", "caption": "It turns.", "video": b"%d" % n} for n in range(6)]
    for part in (0, 1):
        write_parquet(tmp_path / "repo" / f"train-{part}.parquet", rows[part::2])
    tars = tmp_path / "tars"
    tars.mkdir()
    (tars / "shard-3.tar").symlink_to(shards / "shard-3.tar")  # r15 to r20

    def read(verb, *names, **variables):
        command = [sys.executable, "-c", READ, verb, str(tmp_path / "cache"), *names]
        env = {**environment(), "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"), **variables}
        done = subprocess.run(command, env=env, cwd=os.sep, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.splitlines()

    with stand_in_hub({"owner/repo": tmp_path / "repo", "owner/tars": tars}) as (address, _):
        found = read("stream", "owner/repo", "owner/tars@main", HF_ENDPOINT=address)
        assert [line.split()[0] for line in found] == [COMMIT] * 2
        names = [sorted(line.split()[2:]) for line in found]
        assert names == [[f"p{n}" for n in range(6)], [f"r{n}" for n in range(15, 21)]]
        assert not list(Path(tmp_path, "hf").rglob("*.parquet"))
        assert len(os.listdir(tmp_path / "cache" / "videos")) == 12
        read("fetch", "owner/repo", HF_ENDPOINT=address)
    assert read("stream", "owner/repo", HF_ENDPOINT=address, HF_HUB_OFFLINE="1") == found[:1]
