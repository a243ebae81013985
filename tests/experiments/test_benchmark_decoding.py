"""Owns: the decoding benchmark compares readers of the same frames and writes what it measured."""

import json

import benchmark_decoding
import numpy as np
import pytest


def test_one_clip(tmp_path, capsys):
    pytest.importorskip("decord")
    out = tmp_path / "out.json"
    asked = [
        "--synthetic",
        "--only",
        "240p-1s",
        "--folder",
        str(tmp_path),
        "--turns",
        "1",
        "--json",
        str(out),
    ]
    result = benchmark_decoding.main(asked)
    assert json.loads(out.read_text()) == result
    (row,) = result["clips"]
    assert row["stored"] == "h264 426x240" and row["frames"] == 2 and row["length_s"] == 1
    assert row["same"] == {"ours": True, "decord": True, "pyav": True}
    cheapest = min(row["cpu_s"]["decord"], row["cpu_s"]["pyav"])
    assert row["ratio"] == pytest.approx(row["cpu_s"]["ours"] / cheapest, abs=0.02)
    assert "240p-1s.mp4" in capsys.readouterr().out


def test_other_frames_are_not_the_same():
    frames = np.zeros((3, 4, 4, 3), np.uint8)
    others = frames.copy()
    others[2] = 30
    assert benchmark_decoding.difference(frames, frames) == 0
    assert benchmark_decoding.difference(frames, others) == 30


@pytest.mark.parametrize("words", [[], ["x.mp4", "--turns", "0"], ["x.mp4", "--before", "nowhere"]])
def test_bad_options(words):
    with pytest.raises(SystemExit) as stopped:
        benchmark_decoding.main(words)
    assert stopped.value.code == 2
