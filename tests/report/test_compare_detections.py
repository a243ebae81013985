"""Owns: eval/compare.py between tests of detectors - its table, its json, what it refuses."""

import json
import shutil

import pytest
from detection_folders import FOUND, TEST, edit_result, write_test
from launching import ROOT, load_script


@pytest.fixture
def script(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    return load_script(ROOT / "eval" / "compare.py")


@pytest.fixture
def folders(tmp_path):
    """Of a test, and of one that finds an action more."""
    first = write_test(tmp_path, size_px=160)
    second = shutil.copytree(first, tmp_path / "better")
    content = json.loads((second / "predictions.json").read_text())
    row = {"segment": [2.5, 4.4], "label": "CricketShot", "score": 0.85}
    content["results"][TEST[2]] = [row]
    (second / "predictions.json").write_text(json.dumps(content))
    return [str(first), str(second)]


def test_two_tests_are_compared_by_column_and_class(script, folders, tmp_path, capsys):
    file = tmp_path / "compare.json"
    (found,) = script.main([*folders, "--names", "AdaTAD", "+ MOSS", "--json", str(file)])
    told = capsys.readouterr().out
    assert "+ MOSS against AdaTAD, 5 actions in 3 videos" in told
    for name in ("mAP, average", "mAP at tIoU 0.5", "CliffDiving", "CricketShot", "95 % interval"):
        assert name in told
    assert found.columns["avg"].points > 0 == found.classes["Diving"].points
    assert f"AdaTAD: runs/detection/best in {folders[0]}" in told and "WARNING" not in told
    written = json.loads(file.read_text())
    assert (
        written["comparisons"][0]["classes"]["CricketShot"]["points"] == found.classes["CricketShot"].points
    )
    assert written["tests"]["+ MOSS"]["folder"] == folders[1] and written["bootstrap"]["draws"] == 1000
    script.main([*folders, "--markdown"])
    told = capsys.readouterr().out
    assert "|  | actions | test | better | difference | 95 % interval |" in told and "```" not in told


def test_what_differs_beside_the_model_is_warned_of(script, folders, tmp_path, capsys):
    second = tmp_path / "better"
    edit_result(tmp_path / "test", environment={"av": "17.1.0", "torch": "2.12"})
    edit_result(second, environment={"av": "18.1.0", "torch": "2.12", "timm": "1.0"})
    edit_result(second, size_px=224, failed={TEST[0]: "no video"})
    script.main(folders)
    told = " ".join(capsys.readouterr().out.split())
    assert "WARNING: size_px differs: 160 and 224" in told
    assert "WARNING: the environments differ: av 17.1.0 and 18.1.0 WARNING" in told
    assert (
        f"WARNING: better has 1 videos that could not be read, whose actions count as missed ({TEST[0]})"
        in told
    )
    shutil.copy(tmp_path / "test" / "predictions.json", second / "predictions.json")
    script.main(folders)
    assert "WARNING: the detections are the same" in capsys.readouterr().out
    assert FOUND


def test_what_cannot_be_compared_is_told(script, folders, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    with pytest.raises(SystemExit, match=r"other holds no finished test of a detector, as others do"):
        script.main([*folders, str(tmp_path / "other")])
    with pytest.raises(SystemExit) as stopped:
        script.main([*folders, "--changed", "5"])
    told = "--changed has no effect between tests of detectors, which ask no questions; leave it out"
    assert stopped.value.code == 2 and told in capsys.readouterr().err
    with pytest.raises(SystemExit, match="^error: the folder of --json, /proc/x is not a folder"):
        script.main([*folders, "--json", "/proc/x/compare.json"])
