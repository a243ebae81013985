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
