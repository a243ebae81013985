"""Owns: eval/boundaries.py - a checkpoint wherever it lies, a file without a model, what both write."""

import json
import shlex
import shutil
import subprocess
import sys

import pytest
from boundary_layouts import TEST, golden, write_pickle
from launching import ROOT, environment, load_script
from tiny_boundaries import MOSS, WITHOUT, write_checkpoint, write_moving
from tiny_detector import edit_run

GOLDEN = golden("f1")


@pytest.fixture(scope="module")
def script():
    return load_script(ROOT / "eval" / "boundaries.py")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "kinetics"
    write_moving(root)
    return root


@pytest.fixture(params=[MOSS, WITHOUT], ids=["MOSS", "none"])
def folder(request, root, tmp_path):
    return write_checkpoint(tmp_path / "run" / "best", root, **request.param)


@pytest.fixture
def plain(root, tmp_path):
    return write_checkpoint(tmp_path / "run" / "best", root, **WITHOUT)


def run(script, folder, *more):
    return script.main(["--ckpt", str(folder), "--workers", "0", "--device", "cpu", *map(str, more)])


def own_lines(out):
    """Lines of the store but its header."""
    return [
        line for file in sorted((out / "answers").glob("*")) for line in file.read_text().splitlines()[1:]
    ]


def test_a_checkpoint_is_tested_and_its_files_score_the_same(script, folder, root, tmp_path, capsys):
    scores = run(script, folder)
    out = tmp_path / "run" / "best-test"
    (picture,) = out.glob("timeline_*.png")
    assert sorted(path.name for path in out.iterdir()) == [
        "answers", "page.html", "per_clip.csv", "predictions.json", "result.json", "scores.json", picture.name
    ]  # fmt: skip
    told = capsys.readouterr()
    assert "kinetics_gebd test: kept 3 of 3 clips, 0 missing" in told.err
    for words in (
        "BasicGEBD + MOSS (paper)",
        "step 3",
        "95 % interval",
        "in frames and without the clips",
        "boundaries at a threshold of 0.5",
        f"written to {out}: page.html, and {picture.name}",
    ):
        assert words in told.out
    result = json.loads((out / "result.json").read_text())
    assert result["F1@0.05"] == scores.mean["F1@0.05"] and (result["step"], result["threshold"]) == (3, 0.5)
    where = ["--root", str(root), "--out", str(tmp_path / "scored")]
    for given in (["scores.json", "--threshold", "0.5"], ["predictions.json"]):
        again = script.main(["--predictions", str(out / given[0]), *given[1:], *where])
        assert again.f1 == scores.f1 and again.intervals == scores.intervals and again.other == scores.other
        assert (tmp_path / "scored" / "per_clip.csv").read_text() == (out / "per_clip.csv").read_text()
    assert json.loads((tmp_path / "scored" / "result.json").read_text())["predictions"] == str(
        out / "predictions.json"
    )


@pytest.mark.slow
def test_the_next_commands_run_as_they_are_printed(script, plain, tmp_path, capsys):
    run(script, plain)
    commands = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python ")]
    assert [shlex.split(line)[1] for line in commands] == ["scripts/timeline.py", "eval/boundaries.py"]
    for line in commands:
        words = shlex.split(line)
        done = subprocess.run(
            [sys.executable, *words[1:]], env=environment(), cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert "at a threshold of 0.5" in done.stdout
    (further,) = (line for line in done.stdout.splitlines() if line.startswith("for a page and pictures: "))
    words = shlex.split(further.split(": ", 1)[1])
    assert words[-2:] == ["--out", "scores"] and words[2:-2] == shlex.split(commands[1])[2:]


def test_another_threshold_scores_the_same_lines(script, plain, tmp_path):
    run(script, plain)
    lines = own_lines(tmp_path / "run" / "best-test")
    low = run(script, plain, "--threshold", "0.01", "--peaks", "official", "--rule", "efficientgebd")
    assert own_lines(tmp_path / "run" / "best-test") == lines
    result = json.loads((tmp_path / "run" / "best-test" / "result.json").read_text())
    assert (result["threshold"], result["peaks"], result["rule"]) == (0.01, "official", "efficientgebd")
    assert result["other_rule"]["rule"] == "official" and low.rule == "efficientgebd"


def test_a_killed_test_resumes_with_a_checkpoint_that_was_moved(script, folder, tmp_path):
    scores = run(script, folder)
    out = tmp_path / "run" / "best-test"
    whole = own_lines(out)
    (file,) = (out / "answers").glob("*.jsonl")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    moved = (tmp_path / "run").rename(tmp_path / "moved") / "best"
    assert run(script, moved).f1 == scores.f1
    assert own_lines(tmp_path / "moved" / "best-test") == whole


def test_two_processes_share_the_clips(script, folder, tmp_path, monkeypatch, capsys):
    scores = run(script, folder)
    monkeypatch.setenv("WORLD_SIZE", "2")
    shared = ["--out", tmp_path / "shared"]
    monkeypatch.setenv("RANK", "1")
    assert run(script, folder, *shared) is None
    assert "2 clips are left to other processes" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "0")
    assert run(script, folder, *shared).summary() == scores.summary()
    assert sorted(own_lines(tmp_path / "shared")) == sorted(own_lines(tmp_path / "run" / "best-test"))
    for name in ("predictions.json", "scores.json", "result.json", "per_clip.csv"):
        assert (tmp_path / "shared" / name).read_text() == (tmp_path / "run" / "best-test" / name).read_text()


def test_other_weights_and_other_settings_are_refused_by_name(script, plain, root, tmp_path):
    run(script, plain)
    out = tmp_path / "run" / "best-test"
    other = write_checkpoint(tmp_path / "other", root, **MOSS)
    with pytest.raises(
        SystemExit, match=r"another run \(.*weights was \w+, is \w+.*model_settings was \w+, is"
    ):
        run(script, other, "--out", out)
    edit_run(plain, clips={"frames": 10})
    with pytest.raises(SystemExit, match=r"another run \(protocol.frames was 20, is 10\)"):
        run(script, plain)


def test_another_root_has_its_own_annotation_and_clips(script, plain, root, tmp_path):
    scores = run(script, plain)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in root.glob("*.pkl"):
        shutil.copy(file, elsewhere)
    shutil.copytree(root / "images" / "val", tmp_path / "clips")
    edit_run(plain, settings={"annotation": "gone.pkl", "videos": "gone"})
    given = ["--root", elsewhere, "--videos", f"{root / 'images' / 'train'}:{tmp_path / 'clips'}"]
    assert run(script, plain, *given).f1 == scores.f1  # nothing is left to test
    assert run(script, plain, *given, "--overwrite", "--out", tmp_path / "again").f1 == scores.f1


def test_clips_that_are_missing_count(script, plain, root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    shutil.rmtree(copy / "images" / "val" / f"{TEST[2]}_000003_000013")
    with pytest.raises(SystemExit, match=rf"1 of 3 videos: neither .*{TEST[2]}; .*--allow-missing"):
        run(script, plain, "--root", copy)
    scores = run(script, plain, "--root", copy, "--allow-missing")
    assert scores.matches.missing == (TEST[2],)


# ---- files


@pytest.fixture
def challenge(tmp_path):
    """The golden ground truth and predictions, as files."""
    write_pickle(tmp_path / "gt" / "k400_mr345_val_min_change_duration0.3.pkl", GOLDEN["ground_truth"])
    (tmp_path / "found.json").write_text(json.dumps(GOLDEN["predictions_seconds"]))
    return ["--predictions", str(tmp_path / "found.json"), "--root", str(tmp_path / "gt")]


@pytest.mark.parametrize(
    "rule, values", [("official", "official_seconds"), ("efficientgebd", "efficientgebd_frames")]
)
def test_a_file_scores_as_the_authors_code_says(script, challenge, rule, values, capsys):
    scores = script.main([*challenge, "--rule", rule])
    for distance, value in zip(scores.distances, scores.f1, strict=True):
        assert value / 100 == pytest.approx(GOLDEN["results"][values][f"{distance:g}"]["f1"], abs=1e-9)
    assert "BasicGEBD + MOSS (paper)" in capsys.readouterr().out


def test_a_file_of_own_data_has_no_row_of_the_paper(script, tmp_path, capsys):
    clip = {"subset": "validation", "duration": 10.0, "fps": 10.0, "boundaries_s": [[2.0, 6.0]]}
    other = {**clip, "subset": "holdout", "boundaries_s": [[1.0]]}
    (tmp_path / "mine.json").write_text(json.dumps({"database": {"a": clip, "b": other}}))
    (tmp_path / "found.json").write_text(json.dumps({"a": [2.0], "b": [1.0]}))
    given = ["--predictions", str(tmp_path / "found.json"), "--data", "json", "--root", str(tmp_path)]
    given += ["--annotation", str(tmp_path / "mine.json")]
    assert script.main(given).mean["F1@0.05"] == pytest.approx(200 / 3)
    told = capsys.readouterr().out
    assert "(paper)" not in told and "json" in told
    scores = script.main([*given, "--subset", "holdout", "--out", str(tmp_path / "out")])
    assert scores.mean["F1@0.05"] == 100.0
    assert "1 of 1 boundaries of rater 1 found" in (tmp_path / "out" / "page.html").read_text()


@pytest.mark.slow
def test_a_file_is_scored_without_a_model_and_clips(challenge, tmp_path):
    code = "import runpy, sys\nfor name in ('torchvision', 'transformers', 'accelerate', 'matplotlib'):\n"
    code += "    sys.modules[name] = None\n"
    code += f"runpy.run_path({str(ROOT / 'eval' / 'boundaries.py')!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code, *challenge],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "clips without predictions: 1 (video_D_002)" in " ".join(done.stdout.split())


def test_flags_of_a_model_are_refused_beside_a_file(script, challenge, capsys):
    given = ["--workers", "0", "--overwrite", "--precision", "fp32", "--videos", "clips"]
    with pytest.raises(SystemExit) as error:
        script.main([*challenge, *given])
    told = capsys.readouterr().err
    assert error.value.code == 2
    assert "--videos, --overwrite, --workers, --precision have no effect with --predictions" in told
