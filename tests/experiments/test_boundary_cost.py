"""Owns: the cost of BasicGEBD with MOSS is what was counted on its authors' code; a step's benchmark runs."""

import json

import benchmark_boundaries
import boundary_cost
import pytest
from boundary_cost import COUNTED, multiply_adds, open_model, parameters_by_part
from rich.console import Console


@pytest.mark.slow
def test_parameters_and_multiply_adds_are_those_counted():
    assert sum(parameters_by_part(open_model("none")).values()) == pytest.approx(
        COUNTED["parameters"], abs=0.005
    )
    assert parameters_by_part(open_model("moss"))["moss"] == pytest.approx(1.112, abs=5e-4)
    plain = multiply_adds("none")
    assert COUNTED["macs"] <= plain < COUNTED["macs"] + 0.002  # the map encoder's norms come on top
    # The paper counts the correlation of whole frames: 216e9 of a clip.
    assert 100 * (multiply_adds("moss") - plain) == pytest.approx(216, abs=0.5)


@pytest.mark.slow
def test_what_is_kept_is_less_than_counted_and_far_less_by_chunks():
    rows = boundary_cost.boundary_costs()
    plain, moss = (row["memory"] for row in rows)
    for kind in ("fp32, whole", "bf16, whole"):
        assert plain[kind]["kept"] < COUNTED[kind] and plain[kind]["step"] > plain[kind]["kept"]
    assert moss["fp32, whole"]["kept"] - plain["fp32, whole"]["kept"] == pytest.approx(1.01, abs=0.02)
    assert plain["fp32, chunks"]["kept"] < 0.2 and moss["fp32, chunks"]["step"] < 2.3
    console = Console(width=200)
    with console.capture() as capture:
        console.print(boundary_cost.boundary_table(rows), *boundary_cost.published_notes(), sep="\n")
    shown = capture.get()
    assert "+ MOSS" in shown and "(30.98)" in shown and "1562 frames a second" in shown


def test_a_step_is_timed(tmp_path, capsys):
    argv = ["--frames", "5", "--size-px", "32", "--temporal", "none", "--json", str(tmp_path / "a.json")]
    record = benchmark_boundaries.main(argv)
    assert list(record["seconds"]) == list(benchmark_boundaries.PARTS)
    assert min(record["seconds"].values()) > 0 and 0.3 < record["loss"] < 3
    assert record["frames_per_s"] == 5 / record["seconds"]["forward of a test"]
    assert 0.1 < record["peak_gb"] < 8
    assert json.loads((tmp_path / "a.json").read_text())["loss"] == record["loss"]
    assert "mini, none: a clip of 5 x 32 px, fp32" in capsys.readouterr().out


def test_a_benchmark_refuses_what_it_cannot_measure(capsys):
    for argv, told in ((["--frames", "0"], "at least 1"), (["--chunk-frames", "-1"], "at least 0")):
        with pytest.raises(SystemExit):
            benchmark_boundaries.main(argv)
        assert told in capsys.readouterr().err
