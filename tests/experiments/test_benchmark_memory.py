"""Owns: the benchmark of memory compares ways with equal gradients, and ours keep less."""

import json

import benchmark_memory
import pytest


@pytest.mark.slow
def test_rooms_are_those_of_the_estimates(tmp_path, capsys):
    file = tmp_path / "a.json"
    record = benchmark_memory.main(["--parts", "rooms", "--json", str(file)])
    rooms = json.loads(file.read_text())["rooms"]
    assert rooms == record["rooms"] and list(rooms) == ["Video-LLM", "detection", "boundaries"]
    video = rooms["Video-LLM"]
    assert video["and --checkpoint-moss"]["moss"] < 0.3 * video["--checkpoint-llm"]["moss"]
    assert video["all kept"]["language_model"] < 0.6 * video["LoRA's dropout"]["language_model"]
    assert rooms["boundaries"]["fp32, --checkpoint-moss"]["total"] < rooms["boundaries"]["fp32"]["total"]
    shown = capsys.readouterr().out
    assert "AdaTAD with MOSS" in shown and "BasicGEBD with MOSS" in shown and "language model" in shown


@pytest.mark.slow
def test_ways_have_equal_gradients_and_ours_keep_less(capsys):
    flags = ["--parts", "ways", "--tokens", "300", "--frames", "2", "--repeats", "1"]
    ways = benchmark_memory.main(flags)["ways"]
    assert list(ways) == list(benchmark_memory.LAYERS)
    for layer in ways.values():
        for way, one in layer.items():
            if way in ("ours", "load_average"):
                continue
            kept = one["of_ours"]["kept"]
            assert (kept < 0.6 if way == "--checkpoint-moss" else kept > 1.1) and one["ms"]["min"] > 0
    assert "similarity kept" in capsys.readouterr().out


def test_a_gpu_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        benchmark_memory.main(["--device", "cuda"])
    assert "torch finds no CUDA device" in capsys.readouterr().err
