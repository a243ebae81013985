"""Owns: the decoding benchmark compares readers of the same frames and writes what it measured."""

import json

import benchmark_decoding
import numpy as np
import pytest
from launching import as_flags


def test_one_clip(tmp_path, capsys):
    pytest.importorskip("decord")
    out = tmp_path / "out.json"
    asked = as_flags({"only": "240p-1s", "folder": tmp_path, "turns": 1, "json": out})
    result = benchmark_decoding.main(["--synthetic", *asked])
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
