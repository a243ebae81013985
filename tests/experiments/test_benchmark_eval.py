"""Owns: random weights of a shape answer in both ways, about the videos that the whole world begins with."""

import json

import benchmark_eval as benchmark
import pytest

from moss_vllm.data.world.benchmarks import WorldSize, ensure_world
from moss_vllm.vlm import sizes

NARROW = {
    "vision_config": {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48},
    "text_config": {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48},
}


@pytest.mark.slow
def test_a_shape_answers_alike_in_both_ways_without_a_world(tmp_path, monkeypatch):
    narrow = {**sizes.SHAPES["2b"]}
    for part, widths in NARROW.items():
        layers = 7 if part == "vision_config" else 2  # MOSS taps the encoder's sixth
        narrow[part] = {**narrow[part], **widths, "num_hidden_layers": layers}
    monkeypatch.setitem(sizes.SHAPES, "2b", narrow)
    monkeypatch.setattr(benchmark, "DEFAULT_ROOT", tmp_path / "none")
    file = tmp_path / "eval.json"
    flags = ["--shape", "2b", "--video-count", "1", "--repeats", "1", "--short-side-px", "56"]
    record = benchmark.main([*flags, "--json", str(file)])
    assert json.loads(file.read_text()) == record and not (tmp_path / "none").exists()
    assert record["model"] == "2b" and record["videos"] == 1 and record["questions"] == 5
    assert record["ratio"]["min"] > 0 and 0 <= record["identical_answers"] <= 5


@pytest.mark.slow
def test_a_world_made_for_few_videos_begins_as_the_whole_one(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "DEFAULT_ROOT", tmp_path / "none")
    whole = ensure_world(tmp_path / "whole", WorldSize(2, 2, 0, favor_questions=24))
    (tmp_path / "few").mkdir()
    few = benchmark.find_world(2, tmp_path / "few")
    names = [root / "FAVOR" / "video_perspective.json" for root in (whole, few)]
    expected, found = (json.loads(name.read_text()) for name in names)
    assert 2 <= len(found) < len(expected) and found == expected[: len(found)]
    for row in found:
        files = [root / "FAVOR" / "videos" / "FAVOR-Bench" / row["video_name"] for root in (whole, few)]
        assert files[0].read_bytes() == files[1].read_bytes()
