"""Owns: eval/detection.py - a checkpoint wherever it lies, a file without a model, what both write."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from detection_layouts import CLASSES, TEST
from launching import ROOT, environment, load_script
from safetensors.torch import load_file, save_file
from tiny_detector import MOSS, WITHOUT, edit_run, write_checkpoint

from moss_vllm.data.detection.datasets import read_detection
from moss_vllm.detection import checkpoint
from moss_vllm.detection.scores import AVERAGE, score_detections

GOLDEN = ROOT / "tests" / "golden_detection"


@pytest.fixture(scope="module")
def script():
    return load_script(ROOT / "eval" / "detection.py")


@pytest.fixture(params=[MOSS, WITHOUT], ids=["MOSS", "none"])
def folder(request, thumos_root, encoder, tmp_path):
    return write_checkpoint(tmp_path / "run" / "best", thumos_root, encoder, **request.param)


def run(script, folder, *more):
    return script.main(["--ckpt", str(folder), "--workers", "0", "--device", "cpu", *map(str, more)])


def own_lines(out):
    """Lines of the store but its header."""
    return [
        line for file in sorted((out / "answers").glob("*")) for line in file.read_text().splitlines()[1:]
    ]


def test_a_checkpoint_is_tested_and_its_predictions_score_the_same(
    script, folder, thumos_root, tmp_path, capsys
):
    scores = run(script, folder)
    out = tmp_path / "run" / "best-test"
    assert sorted(path.name for path in out.iterdir()) == [
        "answers", "per_class.csv", "predictions.json", "result.json"
    ]  # fmt: skip
    told = capsys.readouterr()
    assert "thumos14 test: kept 3 of 3 videos, 0 missing, 5 actions of 3 classes" in told.err
    assert "video_test_0000270 is left out: it is another video than annotated" in told.err
    for words in ("AdaTAD-B + MOSS (paper)", "step 3, average weights", "95 % interval", "CliffDiving"):
        assert words in told.out
    result = json.loads((out / "result.json").read_text())
    assert result["mAP"] == scores.mean and (result["step"], result["weights"]) == (3, "average")
    (file,) = out.glob("predictions.json")
    given = ["--predictions", str(file), "--root", str(thumos_root), "--out", str(tmp_path / "scored")]
    assert script.main(given) == scores
    again = json.loads((tmp_path / "scored" / "result.json").read_text())
    assert again["mAP"] == scores.mean and again["predictions"] == str(file)
    assert (tmp_path / "scored" / "per_class.csv").read_text() == (out / "per_class.csv").read_text()


def test_the_papers_rows_are_not_beside_data_drawn_here(script, thumos_root, capsys):
    split = read_detection("thumos14", thumos_root, "test")
    scores, _ = score_detections(split, {}), capsys.readouterr()
    for dataset, rows in (("thumos14", True), ("mini", False)):
        script.show("mine", scores, replace(split, dataset=dataset), "b")
        told = capsys.readouterr().out
        assert ("AdaTAD-B + MOSS (paper)" in told) == rows and "mine" in told


def test_the_weights_of_the_last_step_are_another_test(script, folder, tmp_path):
    average, last = run(script, folder), run(script, folder, "--no-average")
    assert own_lines(tmp_path / "run" / "best-test") != own_lines(tmp_path / "run" / "best-test-last")
    with pytest.raises(SystemExit, match=r"another run \(.*weights was \w+, is \w+"):
        run(script, folder, "--no-average", "--out", tmp_path / "run" / "best-test")
    shutil.copy(folder / "average.safetensors", folder / "detector.safetensors")
    assert run(script, folder, "--no-average", "--overwrite") == average != last


def test_a_killed_test_resumes_with_a_checkpoint_that_was_moved(script, folder, encoder, tmp_path):
    run(script, folder)
    out = tmp_path / "run" / "best-test"
    whole = own_lines(out)
    (file,) = (out / "answers").glob("*.jsonl")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    moved = (tmp_path / "run").rename(tmp_path / "moved") / "best"
    edit_run(moved, model={"encoder": str(shutil.copytree(encoder, tmp_path / "encoder"))})
    scores = run(script, moved)
    assert own_lines(tmp_path / "moved" / "best-test") == whole and scores.rows > 1000


def test_another_root_has_its_own_annotation_and_videos(script, folder, thumos_root, tmp_path):
    scores = run(script, folder)
    root = tmp_path / "elsewhere"
    shutil.copytree(thumos_root / "annotations", root / "annotations")
    shutil.copytree(thumos_root / "raw_data" / "video", tmp_path / "videos")
    edit_run(folder, settings={"annotation": "gone.json", "videos": "gone"})
    given = ["--root", root, "--videos", f"{tmp_path / 'none'}:{tmp_path / 'videos'}"]
    (tmp_path / "none").mkdir()
    assert run(script, folder, *given) == scores  # nothing is left to test
    assert run(script, folder, *given, "--overwrite", "--out", tmp_path / "again") == scores


def test_other_weights_and_other_settings_are_refused_by_name(script, folder, tmp_path):
    run(script, folder)
    out, copy = tmp_path / "run" / "best-test", shutil.copytree(folder, tmp_path / "copy")
    file = copy / checkpoint.AVERAGE_FILE
    weights = load_file(file)
    bias = "detector.head.cls_out.bias"
    save_file({**weights, bias: weights[bias] + 1}, file)
    with pytest.raises(SystemExit, match=rf"\(weights was \w+, is \w+, checkpoint was {folder}, is {copy}\)"):
        run(script, copy, "--out", out)
    save_file(weights, file)
    edit_run(copy, model={"in_chunks": True})
    with pytest.raises(SystemExit, match=rf"is {copy}, model_settings was \w+, is \w+\)"):
        run(script, copy, "--out", out)


@pytest.mark.parametrize("name", ["map_few", "map_many"])
def test_a_file_scores_as_the_authors_code_says_without_a_model(script, name, tmp_path, capsys):
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    for file in ("ground_truth", "predictions"):
        (tmp_path / f"{file}.json").write_text(json.dumps(golden[file]))
    given = ["--annotation", str(tmp_path / "ground_truth.json"), "--data", "json"]
    scores = script.main(["--predictions", str(tmp_path / "predictions.json"), *given])
    expected = golden["expected"]
    for column, value in scores.mean.items():
        key = "average_mAP" if column == AVERAGE else f"mAP@{column}"
        assert value / 100 == pytest.approx(expected[key], abs=1e-6)
    assert "(paper)" not in capsys.readouterr().out
    script.main(["--predictions", str(tmp_path / "predictions.json"), *given, "--variant", "l"])
    assert "AdaTAD-L + MOSS (paper)" in capsys.readouterr().out


def test_a_file_is_scored_without_torch_and_videos(thumos_root, tmp_path):
    annotation = shutil.copytree(thumos_root / "annotations", tmp_path / "annotations")
    rows = [{"segment": [0.5, 2.0], "label": "CricketShot", "score": 0.9}]
    (tmp_path / "found.json").write_text(json.dumps({"results": {TEST[0]: rows}}))
    code = "import runpy, sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
    code += f"runpy.run_path({str(ROOT / 'eval' / 'detection.py')!r}, run_name='__main__')"
    words = ["--predictions", "found.json", "--annotation", str(annotation)]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment(), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "found" in done.stdout and "videos without any detection: 2" in done.stdout
    assert Path(annotation).is_dir() and len(CLASSES) == 3
