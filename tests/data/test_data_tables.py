"""Owns: rows of tables and of hub data sets are those of JSON; a bad one is named; bytes are written once."""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from annotation_files import put, refusal
from launching import environment
from table_files import (
    COMMIT,
    rows_of,
    stand_in_hub,
    write_parquet,
    write_saved,
    write_shard,
    write_shards,
    write_six,
)

from moss_vllm.data.rows import ClipRow, Turn
from moss_vllm.data.sources import read_sources
from moss_vllm.data.stored_videos import as_fields, write_once

SAID = [{"question": "What moves?", "answer": "A dog."}]
TURNS = (Turn("What moves?", "A dog."),)
BYTES = {"bytes": b"abc", "path": "clips/a.webm"}
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # sha256


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    """A folder of six rows and their videos as JSON; not to be changed."""
    return write_six(tmp_path_factory.mktemp("six") / "FAVOR")


@pytest.fixture(scope="module")
def tables(six, tmp_path_factory):
    """The same rows as tables of every kind; not to be changed."""
    root, rows = tmp_path_factory.mktemp("tables"), list(rows_of(six))
    write_parquet(root / "six.parquet", rows)
    write_saved(root / "saved", rows)
    write_shards(root / "shards", rows)
    write_parquet(root / "repo" / "data" / "train-00000-of-00002.parquet", rows[:4])
    write_parquet(root / "repo" / "data" / "train-00001-of-00002.parquet", rows[4:])
    write_parquet(root / "repo" / "data" / "test-00000-of-00001.parquet", rows[:1])
    lines = [f"{row['video_name']},{row['caption']!r}" for row in rows]
    (root / "six.csv").write_text("\n".join(["video_name,caption", *lines]).replace("'", '"'))
    return root


def told(sources):
    """What is read of each row: its id, its video's contents, its turns."""
    return [[row.row_id, row.path.read_bytes(), row.turns] for row in sources.rows]


def in_table(tmp_path, *rows):
    return write_parquet(tmp_path / "rows.parquet", rows)


@pytest.mark.parametrize("name", ["six.parquet", "saved", "shards", "repo", "six.csv"])
def test_rows_of_a_table_are_those_of_json(six, tables, tmp_path, name):
    videos = six if name == "six.csv" else None
    found = read_sources(tables / name, videos, cache=tmp_path)
    assert told(found) == told(read_sources(six)) and len(found.rows) == 6
    written = sorted(tmp_path.glob("videos/*"))
    assert written == sorted({row.path for row in found.rows} if videos is None else [])
    times = [file.stat().st_mtime_ns for file in written]
    read_sources(tables / name, videos, cache=tmp_path)
    assert [file.stat().st_mtime_ns for file in sorted(tmp_path.glob("videos/*"))] == times


def test_the_fingerprint_is_of_rows_and_videos(six, tables, tmp_path):
    def fingerprint(data):
        (source,) = read_sources(data, cache=tmp_path / "cache").sources
        return source.origin()["fingerprint"]

    rows = list(rows_of(six))
    first = fingerprint(tables / "six.parquet")
    assert first == fingerprint(tables / "saved") == fingerprint(tables / "repo") and len(first) == 16
    rows[5]["video"]["bytes"] += b"0"
    assert fingerprint(in_table(tmp_path, *rows)) != first


def test_a_split_is_chosen_or_named(tables, tmp_path):
    for name in ("repo", "saved"):
        place = f"{tables / name}:test"
        assert [row.row_id for row in read_sources(place, cache=tmp_path).rows] == ["world_0"]
        refusal(lambda name=name: read_sources(f"{tables / name}:val"), "has no split 'val'", "train, test")
    refusal(lambda: read_sources(f"{tables / 'six.parquet'}:val"), "has no splits", "leave ':val' out")
    (tmp_path / "rows.json").write_text("[]")
    refusal(lambda: read_sources(f"{tmp_path / 'rows.json'}:val"), "has no splits", "leave ':val' out")
    with pytest.raises(ValueError, match="is on disk and has no revision v2"):
        read_sources(f"{tables / 'repo'}@v2")


def test_a_mix_names_split_and_revision(tables, tmp_path):
    mix = tmp_path / "mix.yaml"
    mix.write_text(f"- {{path: {tables / 'repo'}, split: test, name: one}}\n- path: {tables / 'saved'}\n")
    found = read_sources(mix, cache=tmp_path)
    assert [len(source.rows) for source in found.sources] == [1, 6] and found.rows[0].row_id == "one/world_0"
    mix.write_text(f"- {{path: {tables / 'repo'}, revision: v2}}\n")
    with pytest.raises(ValueError, match=r"mix\.yaml: .*repo is on disk and has no revision v2"):
        read_sources(mix)


# ---- which cell is the video


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"turns": SAID, "video": BYTES}, ("clips/a.webm#0", f"{ABC}.webm")),
        ({"turns": SAID, "clip": b"abc", "id": None}, (f"{ABC}.mp4#0", f"{ABC}.mp4")),
        ({"turns": SAID, "mp4": BYTES, "jpg": b"picture", "id": "x"}, ("x", f"{ABC}.webm")),
        ({"turns": SAID, "video": None}, ("text#0", None)),
    ],
)
def test_a_cell_of_bytes_is_the_video(tmp_path, row, expected):
    (found,) = read_sources(in_table(tmp_path, row), cache=tmp_path).rows
    path = expected[1] and tmp_path / "videos" / expected[1]
    assert found == ClipRow(expected[0], path, TURNS, None, None)
    assert path is None or path.read_bytes() == b"abc"


def test_lists_of_one_and_paths_are_videos_too(tmp_path):
    put(tmp_path, "clips/b.mp4")
    conversations = [{"from": "human", "value": "What moves?"}, {"from": "gpt", "value": "A dog."}]
    rows = [
        {"video": [{"bytes": b"abc", "path": "a.mp4"}], "conversations": conversations},
        {"video": [{"bytes": None, "path": "clips/b.mp4"}], "conversations": conversations},
        {"video": [{"bytes": None, "path": str(tmp_path / "clips/b.mp4")}], "conversations": conversations},
    ]
    found = read_sources(in_table(tmp_path, *rows), cache=tmp_path).rows
    assert [row.row_id for row in found] == ["a.mp4#0", "clips/b.mp4#1", "clips/b.mp4#2"]
    stored, beside = tmp_path / "videos" / f"{ABC}.mp4", tmp_path / "clips" / "b.mp4"
    assert [row.path for row in found] == [stored, beside, beside]


def test_a_folder_of_videos_with_their_captions(six, tmp_path):
    videos = shutil.copytree(six / "videos" / "FAVOR-Train", tmp_path / "folder" / "train")
    lines = [f"{file.name},It turns." for file in sorted(videos.iterdir())]
    (videos / "metadata.csv").write_text("\n".join(["file_name,caption", *lines]))
    found = read_sources(tmp_path / "folder", cache=tmp_path).rows
    assert [row.path for row in found] == sorted(videos.glob("*.mp4"))
    assert [row.row_id for row in found] == [f"train/world_{n}" for n in range(6)]


def test_text_of_a_shard_is_the_caption(tmp_path):
    shard = write_shard(tmp_path / "a.tar", [("x/a", {"mp4": b"abc", "txt": b"A man turns.\n"})])
    (row,) = read_sources(shard, cache=tmp_path).rows
    assert (row.row_id, row.turns[0].answer) == ("x/a", "A man turns.")


# ---- bad rows


@pytest.mark.parametrize(
    ("video", "reason"),
    [
        (b"", "its video is empty, 0 bytes"),
        ({"bytes": b"", "path": "a.mp4"}, "its video is empty, 0 bytes"),
        ({"path": 5}, "path of its video is a int, not str"),
        ({"bytes": "text"}, "bytes of its video is a str, not bytes"),
    ],
)
def test_a_cell_that_holds_no_video_does_not_make_a_row_of_text(tmp_path, video, reason):
    with pytest.raises(ValueError, match=reason):
        as_fields({"turns": SAID, "video": video}, tmp_path, tmp_path)
    empty = {"turns": SAID, "video": {"bytes": None, "path": None}, "source": {"path": 5}}
    assert as_fields({**empty, "source": None}, tmp_path, tmp_path) == {"turns": SAID}
    held = as_fields({**empty, "video": b"abc"}, tmp_path, tmp_path)  # only what is the video is looked at
    assert held["video"].endswith(".mp4")


def test_a_bad_row_keeps_its_number_and_is_named(tmp_path):
    good, url = {"turns": SAID, "video": BYTES}, "https://example.org/a.mp4"
    rows = [good, {**good, "mp4": b"abc"}, {"turns": [], "video": BYTES}, {"turns": SAID, "video": BYTES},
            {"turns": SAID, "video": {"bytes": None, "path": url}}]  # fmt: skip
    path = in_table(tmp_path, *rows)
    (source,) = read_sources(path, cache=tmp_path).sources
    assert [row.row_id for row in source.rows] == ["clips/a.webm#0", "clips/a.webm#3"]
    assert [str(bad).removeprefix(f"{path}: ") for bad in source.bad] == [
        "row 1: holds a video in each of the columns video, mp4, one is needed; repair or remove the row",
        "row 2: 'turns' is not a filled list of objects; repair or remove the row",
        f"row 4 (video {url!r}): video {url!r} is a URL; download it, and name the file",
    ]


def test_a_url_is_refused_in_json_too(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([{"video": "hf://x/a.mp4", "turns": SAID}]))
    refusal(lambda: read_sources(tmp_path / "rows.json"), "row 0", "video 'hf://x/a.mp4' is a URL")


def test_rows_of_a_shard_may_differ_and_one_may_be_broken(tmp_path):
    texts = [b'{"caption": "It turns."}', b"{", b"[]", b'{"caption": "It moves.", "fps": 3}']
    samples = [(f"a{n}", {"mp4": b"abc", "json": text}) for n, text in enumerate(texts)]
    shard = write_shard(tmp_path / "a.tar", samples)
    (source,) = read_sources(shard, cache=tmp_path).sources
    assert [row.row_id for row in source.rows] == ["a0", "a3"]
    assert [(bad.row, bad.reason[:24]) for bad in source.bad] == [
        ("row 1", "a1.json cannot be read: "),
        ("row 2", "a2.json is a list, not a"),
    ]


@pytest.mark.parametrize("name", ["six.parquet", "shards/shard-0.tar"])
def test_a_file_cut_short_is_an_error(tables, tmp_path, name):
    whole = (tables / name).read_bytes()
    cut = tmp_path / Path(name).name
    cut.write_bytes(whole[: len(whole) // 2])
    refusal(lambda: read_sources(cut, cache=tmp_path), cut, "cannot be read", "download it again")


def test_without_the_library_a_table_says_what_to_install(tables, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"not installed; pip install 'moss_vllm\[datasets\]', or name a "):
        read_sources(tables / "six.parquet")
    assert len(read_sources(tables / "shards" / "shard-0.tar", cache=tmp_path).rows) == 4


# ---- bytes


def _write(folder, ready):
    ready.wait()
    for number in range(200):
        write_once(b"%d" % (number // 4) * 1000, ".mp4", folder)


def test_two_processes_write_the_same_bytes_once(tmp_path):
    start = multiprocessing.get_context("fork")
    ready = start.Barrier(2)
    both = [start.Process(target=_write, args=(tmp_path / "videos", ready)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [one.exitcode for one in both] == [0, 0]
    written = {file.read_bytes() for file in (tmp_path / "videos").iterdir()}
    assert written == {b"%d" % number * 1000 for number in range(50)}
    assert len(list((tmp_path / "videos").iterdir())) == 50


def test_a_file_cut_short_is_written_again(tmp_path):
    file = write_once(b"abc", ".exe", tmp_path)
    assert file == tmp_path / f"{ABC}.mp4"
    file.write_bytes(b"a")
    assert write_once(b"abc", ".mp4", tmp_path).read_bytes() == b"abc"


def test_a_folder_that_cannot_be_written_to_is_named():
    with pytest.raises(OSError, match=r"/proc/x/\w+\.mp4 cannot be written .*make room there or name"):
        write_once(b"abc", ".mp4", Path("/proc/x"))


# ---- the hub


READ = """
import json, sys
from moss_vllm.data.sources import read_sources
for data in sys.argv[2:]:
    try:
        (source,) = read_sources(data, cache=sys.argv[1]).sources
        rows = [[row.row_id, str(row.path), row.turns[0].answer] for row in source.rows]
        print(json.dumps([rows, source.origin()]))
    except Exception as error:
        print(json.dumps(str(error)))
"""


@pytest.mark.slow
def test_data_sets_of_the_hub(six, tables, tmp_path):
    given = ["owner/six", "owner/six:test@main", "owner/FAVOR", "owner/six:val", "owner/six@v9", "owner/none"]
    command = [sys.executable, "-c", READ, str(tmp_path), *given]
    with stand_in_hub({"owner/six": tables / "repo", "owner/FAVOR": six}) as (address, asked):
        env = {
            **environment(),
            "HF_ENDPOINT": address,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "hf"),
        }
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    whole, test, folder, split, revision, none = map(json.loads, done.stdout.splitlines())
    expected = [[one, content, turns[0].answer] for one, content, turns in told(read_sources(six))]
    for found, rows in ((whole, expected), (test, expected[:1]), (folder, expected)):
        assert [[one, Path(path).read_bytes(), caption] for one, path, caption in found[0]] == rows
        assert found[1]["revision"] == COMMIT
    local = read_sources(tables / "repo", cache=tmp_path).sources[0]
    assert whole[1] == {**local.origin(), "name": "owner/six", "revision": COMMIT}
    assert "has no split 'val'; it has train, test" in split
    assert revision.startswith("owner/six: data set: has no revision 'v9' on the hub; name a branch")
    assert "is no file or folder here, and the hub shows no data set of this name; check the name" in none
    left = {**env, "HF_HUB_OFFLINE": "1"}
    for now in (left, {**left, "HF_HUB_OFFLINE": "0"}):  # told that there is no network, and finding none
        again = subprocess.run(command, env=now, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        *found, missing, _, _ = map(json.loads, again.stdout.splitlines())
        assert found == [whole, test, folder] and "owner/six: data set: is no file or folder here" in missing
        assert again.stderr.count(f"hub cannot be reached; read as fetched before, commit {COMMIT}") == 3
    pinned = [*command[:4], f"owner/six:test@{COMMIT}"]
    given = {"env": left, "cwd": tmp_path, "capture_output": True, "text": True, "timeout": 60}
    assert json.loads(subprocess.run(pinned, **given).stdout)[0] == test[0]
    for file in Path(tmp_path, "hf").rglob("snapshots/*/data/test-*.parquet"):
        file.unlink()  # of a cache that was cleaned, nothing is read in part
    assert "the hub cannot be reached" in json.loads(subprocess.run(pinned, **given).stdout)
    fetched = [line for line in asked if line.startswith("GET") and line.endswith(".parquet")]
    assert len(fetched) == 3 == len(set(fetched))  # each once, and only of the splits that were asked for
    assert not [line for line in asked if line.startswith("GET") and line.endswith(".py")]


def test_without_a_network_the_hub_is_named(tmp_path, monkeypatch):
    get = "hf download owner/name --repo-type dataset --local-dir name; and give name"
    refusal(lambda: read_sources("owner/name:train@main"), "owner/name", "cannot be reached", get)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    refusal(lambda: read_sources("owner/name"), "owner/name: folder: holds no .json or .jsonl file")
    refusal(lambda: read_sources("owner/rows.json"), "owner/rows.json", "is not there")


def test_nothing_is_imported_for_json(six):
    code = "import sys\nfrom moss_vllm.data.sources import read_sources\nread_sources(sys.argv[1])\n"
    code += "assert not {'datasets', 'pyarrow', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, str(six)], env=environment(), check=True, cwd=os.sep)


def test_a_table_without_rows_is_refused(tmp_path):
    path = in_table(tmp_path, {"turns": SAID, "video": b"a", "mp4": b"b"})
    refusal(lambda: read_sources(path, cache=tmp_path), path, "has 1 rows, none of which can be read")
