"""Owns: a resumed run tells of other versions; the seed of its data is its own or that of the weights."""

import json
from types import SimpleNamespace

import pytest

from moss_vllm.training import start

VERSIONS = {"torch": "2.12.1", "av": "18.1.0", "decord": "0.6.0"}


@pytest.mark.parametrize(
    "was, told",
    [
        ({**VERSIONS, "av": "17.1.0", "decord": "not installed"},
         "it was trained with other versions, so frames and numbers may differ: av 17.1.0 and 18.1.0, decord "
         "not installed and 0.6.0"),
        ({"torch": "2.12.1"}, None),  # of an earlier version, which recorded less
        (None, None),
    ],
)  # fmt: skip
def test_a_resumed_run_tells_in_a_line_of_other_versions(tmp_path, capsys, was, told):
    resume = tmp_path / "step-000002"
    resume.mkdir()
    (resume / "run.json").write_text(json.dumps({} if was is None else {"versions": was}))
    process, settings = SimpleNamespace(is_main_process=True), SimpleNamespace(steps=4, tracker="none")
    record = {"started": "now", "versions": VERSIONS}
    start.announce(process, settings, record, tmp_path, resume)
    assert capsys.readouterr().out.splitlines() == [f"resumed from {resume}", *([told] if told else [])]
    assert json.loads((tmp_path / "settings.json").read_text())["versions"] == VERSIONS


def test_the_datas_seed_is_that_of_the_weights_unless_it_is_given():
    assert start.data_seed(SimpleNamespace(seed=3, data_seed=None)) == 3
    assert start.data_seed(SimpleNamespace(seed=3, data_seed=0)) == 0
