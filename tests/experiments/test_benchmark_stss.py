"""Owns: the benchmark compares equal functions, its numbers are what they are called, its json is whole."""

import json

import benchmark_stss as benchmark
import pytest
import torch

from moss_vllm.core import stss_plain

TINY = {"a": ((2, 3, 4, 5, 6), (3, 5, 3), 4, 8, 8, 6)}


def test_textbook_is_the_definition():
    x = torch.randn(2, 3, 4, 6, 5)
    torch.testing.assert_close(benchmark.textbook_stss(x, (5, 3, 9)), stss_plain(x, (5, 3, 9)))


def test_kept_bytes_are_counted_once():
    x = torch.randn(2**18, requires_grad=True)  # 1 MiB
    assert benchmark.kept_mib(lambda x: x.exp(), x) == pytest.approx(1)
    assert benchmark.kept_mib(lambda x: (y := x.exp()) * y, x) == pytest.approx(1)
    assert benchmark.kept_mib(lambda x: x * x, x) == 0


def test_keeps_a_twentieth_and_a_module_a_third_of_the_textbook():
    for part, least in (("stss", 19.99), ("module", 3)):
        x, (textbook, ours) = benchmark.ways(part, "a", "cpu", torch.float32)
        x.requires_grad_()
        assert benchmark.kept_mib(textbook, x) >= least * benchmark.kept_mib(ours, x)


def test_peak_memory_sees_what_is_freed_again():
    x = torch.randn(2**20, requires_grad=True)  # 4 MiB
    grad = torch.ones_like(x)
    peak = benchmark.Meter("cpu", 1).peak_mib(lambda x: x + torch.ones(2**24).sum(), x, grad)
    assert peak is None or 60 < peak < 128


def test_runs_every_part_and_writes_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "SHAPES", TINY)
    benchmark.main(["--shapes", "a", "--repeats", "1", "--json", str(tmp_path / "new" / "stss.json")])
    record = json.loads((tmp_path / "new" / "stss.json").read_text())
    assert [result["part"] for result in record["results"]] == list(benchmark.PARTS)
    for result in record["results"]:
        assert result["largest_difference"] < 1e-5
        assert result["ratio"]["kept_mib"] == result["textbook"]["kept_mib"] / result["ours"]["kept_mib"] > 1
    assert "module" in capsys.readouterr().out
