"""Owns: a training on a table is the one on the same rows as JSON, also killed, and records what was read."""

import json
import signal
import subprocess
import sys
import time

import pytest
from killing import begin, check_equal, finish, kill_once, saved_steps
from launching import SCRIPT, as_flags, environment
from table_files import (
    COMMIT,
    rows_of,
    samples_of,
    stand_in_hub,
    write_parquet,
    write_saved,
    write_shard,
    write_six,
    write_video_column,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_process")]
SHORT = {"steps": 2, "batch_size": 2, "workers": 0, "lora_rank": 4, "short_side_px": 56, "max_frames": 4}


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    return write_six(tmp_path_factory.mktemp("six") / "FAVOR")


def test_losses_on_a_table_are_those_on_json(recipe, tiny_base, six, tmp_path):
    table = write_parquet(tmp_path / "six.parquet", rows_of(six))
    losses = {}
    for name, data in (("json", six), ("table", table)):
        given = {**SHORT, "model": tiny_base, "data": data, "out": tmp_path / name, "tracker": "none"}
        lines = recipe.main(as_flags({**given, "cache": tmp_path / "cache"}))
        losses[name] = [[line["loss"], line["grad_norm"]] for line in lines]
    assert losses["json"] == losses["table"] and len(losses["table"]) == 2
    run = json.loads((tmp_path / "table" / "step-000002" / "run.json").read_text())
    settings = json.loads((tmp_path / "table" / "settings.json").read_text())
    (origin,) = run["data"]
    assert settings["data"] == run["data"] and len(origin.pop("fingerprint")) == 16
    assert origin == {"name": "six.parquet", "format": "FAVOR-Train", "revision": None}
    assert len(list((tmp_path / "cache" / "videos").iterdir())) == 6


def test_a_streamed_run_goes_on_where_it_was_stopped(recipe, tiny_base, six, tmp_path):
    rows = [*rows_of(six), {"video_name": "bad.mp4", "caption": "It turns.", "video": {"bytes": b"no video"}}]
    for part in (0, 1):
        write_parquet(tmp_path / "six" / f"train-{part}.parquet", rows[part::2])

    def train(out, steps, *more):
        given = {**SHORT, "workers": 2, "model": tiny_base, "data": tmp_path / "six", "out": tmp_path / out}
        given |= {"cache": tmp_path / "cache", "tracker": "none", "max_bad_share": 0.01}
        lines = recipe.main(as_flags({**given, "steps": steps, "save_every": 2}) + ["--stream", *more])
        return [[line["step"], line["loss"], line["grad_norm"]] for line in lines]

    straight = train("straight", 4)
    kept = tmp_path / "straight" / "step-000002"
    (tmp_path / "again").mkdir()
    kept.rename(tmp_path / "again" / "step-000002")
    assert train("again", 4, "--resume", "auto") == straight[2:]
    settings = json.loads((tmp_path / "straight" / "settings.json").read_text())
    assert settings["plan"].startswith(
        "streamed, each row checked as it comes; of the first 7: 0 too long, 1 bad"
    )
    (rejected,) = (tmp_path / "straight" / "rejected-0.jsonl").read_text().splitlines()
    assert json.loads(rejected)["row_id"] == "bad"


# ---- every format, killed and resumed, on the miniature with MOSS


STREAMED = {"read whole": [], "streamed": ["--stream"]}


def miniature_flags(out, data, cache, *more, **settings):
    given = {
        **SHORT,
        "steps": 6,
        "save_every": 2,
        "data": data,
        "out": out,
        "cache": cache,
        "tracker": "none",
    }
    return [*as_flags({**given, "resume": "auto", **settings}), *more]


@pytest.fixture(scope="module")
def formats(six, tmp_path_factory):
    """The six rows in a file of each format, with the flags that they need; and a repository of the hub."""
    root, rows = tmp_path_factory.mktemp("formats"), list(rows_of(six))
    named = [{name: row[name] for name in ("video_name", "caption", "subset")} for row in rows]
    write_parquet(root / "paths.parquet", named)
    write_video_column(root / "column.parquet", rows)
    write_shard(root / "shard.tar", samples_of(rows))
    write_saved(root / "saved", rows)
    write_video_column(root / "repo" / "data" / "train-00000-of-00001.parquet", rows)
    (arrow,) = (root / "saved" / "train").glob("*.arrow")
    return {
        "json": (six,),
        "parquet of paths": (root / "paths.parquet", "--videos", str(six)),
        "parquet with a Video column": (root / "column.parquet",),
        "WebDataset": (root / "shard.tar",),
        "save_to_disk": (f"{root / 'saved'}:train",),
        "arrow": (arrow,),
        "hub": root / "repo",
    }


@pytest.fixture(scope="module")
def straight(formats, tmp_path_factory):
    """Runs that nobody killed: on JSON, and streamed from a parquet file."""
    root, runs = tmp_path_factory.mktemp("straight"), {}
    for kind, source in (("read whole", "json"), ("streamed", "parquet of paths")):
        data, *more = formats[source]
        runs[kind] = root / kind.replace(" ", "-")
        flags = miniature_flags(runs[kind], data, root / "cache", *more, *STREAMED[kind])
        finish(begin(SCRIPT, flags, root), folder=root)
        assert json.loads((runs[kind] / "step-000006" / "run.json").read_text())["moss"] is not None
    return runs


LOCAL = ["parquet of paths", "parquet with a Video column", "WebDataset", "save_to_disk", "arrow"]


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (source, kind)
        for source in LOCAL
        for kind in STREAMED
        if (source, kind) != ("save_to_disk", "streamed")
    ],
)
def test_a_killed_run_on_any_format_ends_as_the_one_on_json(formats, straight, tmp_path, source, kind):
    data, *more = formats[source]
    flags = miniature_flags(tmp_path / "run", data, tmp_path / "cache", *more, *STREAMED[kind])
    kill_once(lambda: saved_steps(tmp_path / "run") >= 2, begin(SCRIPT, flags, tmp_path), tmp_path)
    assert 2 <= saved_steps(tmp_path / "run") < 6
    finish(begin(SCRIPT, flags, tmp_path), folder=tmp_path)
    check_equal(straight[kind], tmp_path / "run")


@pytest.mark.parametrize("kind", STREAMED)
def test_a_killed_run_on_the_hub_ends_as_the_one_on_json(formats, straight, tmp_path, kind):
    """What was fetched whole is there when the hub is gone; a stream needs it until the end."""
    out, cache = tmp_path / "run", tmp_path / "cache"
    flags = miniature_flags(out, "owner/six:train@main", cache, *STREAMED[kind])
    env = {**environment(), "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}

    def start(address):
        variables = {**env, "HF_ENDPOINT": address}
        return subprocess.Popen(
            [sys.executable, str(SCRIPT), *flags], env=variables, cwd=tmp_path, stdout=said, stderr=said
        )

    with (tmp_path / "said").open("w") as said:
        with stand_in_hub({"owner/six": formats["hub"]}) as (address, _):
            process = start(address)
            while process.poll() is None and saved_steps(out) < 2:
                time.sleep(0.01)
            process.kill()
            assert process.wait() == -signal.SIGKILL, (tmp_path / "said").read_text()[-3000:]
            resumed = start(address) if kind == "streamed" else None
            assert resumed is None or resumed.wait(timeout=200) == 0, (tmp_path / "said").read_text()[-3000:]
        if resumed is None:
            assert start(address).wait(timeout=200) == 0, (tmp_path / "said").read_text()[-3000:]
    check_equal(straight[kind], out)
    (origin,) = json.loads((out / "step-000006" / "run.json").read_text())["data"]
    assert origin["revision"] == COMMIT
    assert ("read as fetched before" in (tmp_path / "said").read_text()) is (kind == "read whole")


def test_a_killed_run_on_a_mix_with_a_stream_goes_on_exactly(formats, six, tmp_path):
    mix = tmp_path / "mix.yaml"
    mix.write_text(
        f"- {{path: {formats['WebDataset'][0]}, weight: 2, stream: true, name: tar}}\n"
        f"- {{path: {six}, weight: 1, name: own}}\n"
    )
    for out in ("straight", "killed"):
        flags = miniature_flags(tmp_path / out, mix, tmp_path / "cache", workers=2)
        if out == "killed":
            kill_once(lambda: saved_steps(tmp_path / "killed") >= 2, begin(SCRIPT, flags, tmp_path), tmp_path)
        finish(begin(SCRIPT, flags, tmp_path), folder=tmp_path)
    check_equal(tmp_path / "straight", tmp_path / "killed")
    said = " ".join((tmp_path / "output-0.txt").read_text().split())  # its lines are wrapped
    assert "kept 6 of 6 rows: 0 too long, 0 bad, 0 missing; streamed, each row checked as it comes" in said
    assert "tar: streamed, weight 2" in said and "own: 6 rows, weight 1" in said
