"""Owns: the benchmark compares equal functions, its numbers are what they are called, its json is whole."""

import json
from types import SimpleNamespace

import benchmark_stss as benchmark
import pytest
import torch

from moss_vllm.core import encoder, stss_plain

TINY = {"a": ((2, 3, 4, 5, 6), (3, 5, 3), 4, 8, 8, 6)}


def test_textbook_is_the_definition():
    x = torch.randn(2, 3, 4, 6, 5)
    torch.testing.assert_close(benchmark.textbook_stss(x, (5, 3, 9)), stss_plain(x, (5, 3, 9)))


def test_textbook_has_no_direction_outside_the_clip_in_float16():
    x = torch.randn(1, 2, 3, 3, 8).half()
    expected = stss_plain(x.float(), (5, 3, 3))
    torch.testing.assert_close(benchmark.textbook_stss(x, (5, 3, 3)).float(), expected, atol=2e-3, rtol=0)


def test_plain_torch_is_ours_without_the_fused_kernel(monkeypatch):
    monkeypatch.setattr(benchmark, "SHAPES", TINY)
    x, (textbook, ours) = benchmark.ways("stss+linear", "a", "cpu", torch.float32)
    monkeypatch.setattr(encoder, "stss_path", lambda *_: ("fused", "as on a GPU"))
    monkeypatch.setattr(encoder, "fused_stss_linear", lambda *_: pytest.fail("the kernel ran"))
    torch.testing.assert_close(benchmark.PlainTorch(ours)(x), textbook(x), atol=1e-5, rtol=1e-5)


def test_bounds_count_windows_and_bytes():
    size, window = benchmark.SHAPES["a"][:2]
    entries = 2 * 8 * 14 * 14 * 5 * 9 * 9
    found = benchmark.bounds_ms("stss", "a", torch.bfloat16, "NVIDIA H200")
    assert found["forward"] == pytest.approx(
        {"arithmetic": 2 * 128 * entries / 989e9, "bandwidth": 2 * (2 * 8 * 14 * 14 * 128 + entries) / 4.8e9}
    )
    assert found["step"]["arithmetic"] == pytest.approx(3 * found["forward"]["arithmetic"])
    assert found["step"]["bandwidth"] == pytest.approx(2 * found["forward"]["bandwidth"])
    assert benchmark.bounds_ms("stss", "a", torch.bfloat16, "another") is None
    assert size == (2, 8, 14, 14, 128) and window == (5, 9, 9)


def test_tuning_is_kept_with_the_time_of_every_choice(monkeypatch):
    pytest.importorskip("triton")
    from moss_vllm.core import stss_kernels

    tuned = SimpleNamespace(cache={(128, "bf16"): "tile 8"}, configs_timings={})
    monkeypatch.setattr(stss_kernels, "forward", tuned)
    before = benchmark.tuning()
    tuned.cache[64, "bf16"] = "tile 4"
    tuned.configs_timings = {"tile 4": [1.0, 0.9, 1.1], "tile 8": [float("inf")] * 3}
    [gained] = benchmark.tuned_since(before)
    assert gained == {
        "kernel": "forward",
        "for": ["64", "bf16"],
        "chosen": "tile 4",
        "ms": {"tile 4": [1.0, 0.9, 1.1], "tile 8": [None] * 3},
    }
    json.dumps(gained, allow_nan=False)


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
