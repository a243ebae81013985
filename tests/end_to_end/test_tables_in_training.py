"""Owns: a training on a table is the one on the same rows as JSON, and records what was read."""

import json

import pytest
from launching import as_flags
from table_files import rows_of, write_parquet, write_six

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
