"""Owns: a detector's test by two processes, killed at any moment, ends as one that never was."""

import json
import random
import shutil
import signal
import time

import pytest
from detection_layouts import TEST
from killing import begin_rank, finish, outputs
from launching import ROOT, launch
from tiny_detector import MOSS, write_checkpoint, write_encoder, write_videos

SCRIPT = ROOT / "eval" / "detection.py"
KILLS, COPIES = 4, 4

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Each test video five times."""
    root = tmp_path_factory.mktemp("many")
    file = write_videos(root / "thumos")
    content = json.loads(file.read_text())
    for name in TEST:
        for copy in range(1, COPIES + 1):
            other = name.replace("_test_0000", f"_test_{copy}000")
            content["database"][other] = content["database"][name]
            source = next((root / "thumos" / "raw_data" / "video").glob(f"{name}*"))
            target = source.with_name(source.name.replace(name, other))
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    file.write_text(json.dumps(content))
    return root


def stored(out):
    """Whole lines of all processes by video, without their headers."""
    lines = [line for file in (out / "answers").glob("*") for line in file.read_text().split("\n")[1:-1]]
    return sorted((json.loads(line)["video_id"], line) for line in lines)


def test_kills_cost_nothing(many, tmp_path):
    rng = random.Random(0)
    encoder = write_encoder(tmp_path / "videomae")
    folder = write_checkpoint(tmp_path / "best", many / "thumos", encoder, **MOSS)
    argv = ["--ckpt", str(folder), "--device", "cpu", "--workers", "1"]
    whole, out = tmp_path / "whole", tmp_path / "killed"
    launch("DDP", [*argv, "--out", str(whole)], tmp_path, SCRIPT)
    assert len(stored(whole)) == 3 * (1 + COPIES)
    kills = 0
    while kills < KILLS:
        ranks = [begin_rank(SCRIPT, [*argv, "--out", str(out)], tmp_path, rank) for rank in range(2)]
        aim = len(stored(out)) + 1
        while len(stored(out)) < aim and all(process.is_alive() for process in ranks):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.2))
        for process in ranks:
            process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL), outputs(tmp_path)
            kills += process.exitcode == -signal.SIGKILL
    assert 0 < len(stored(out)) < len(stored(whole)), f"tested all between {kills} kills"
    finish(
        *(begin_rank(SCRIPT, [*argv, "--out", str(out)], tmp_path, rank) for rank in range(2)),
        folder=tmp_path,
    )
    assert stored(out) == stored(whole) and not list(out.rglob("*.part*"))
    for name in ("predictions.json", "result.json", "per_class.csv"):
        assert (out / name).read_text() == (whole / name).read_text()
