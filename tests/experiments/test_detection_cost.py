"""Owns: the cost of AdaTAD with MOSS is what was counted on its authors' code, part by part."""

import detection_cost
import pytest
import torch
from detection_cost import COUNTED, COUNTED_PARAMETERS, PARTS, parameters_by_part
from rich.console import Console

from moss_vllm.detection.build import build_adatad


@pytest.mark.parametrize("variant", COUNTED_PARAMETERS)
def test_parameters_are_those_counted(variant):
    with torch.device("meta"):
        found = parameters_by_part(build_adatad(variant=variant, weights="random"))
    assert list(found) == list(PARTS)
    for part, millions in COUNTED_PARAMETERS[variant].items():
        assert found[part] == pytest.approx(millions, rel=0.005)


@pytest.mark.slow
def test_the_table_is_near_what_was_counted():
    rows = detection_cost.detection_costs()
    assert len(rows) == 2 * len(COUNTED)
    for plain, moss in zip(rows[::2], rows[1::2], strict=True):
        counted, alone, both = plain["counted"], plain["memory"], moss["memory"]
        assert (
            plain["encoder_macs"] == moss["encoder_macs"] == pytest.approx(counted["encoder_macs"], rel=0.025)
        )
        assert alone["checkpoints"] == pytest.approx(counted["checkpoints"], rel=0.03)
        assert plain["parameters"]["moss"] == 0 and both["checkpoints"] == alone["checkpoints"]
        assert 0.75 < both["total"] / counted["total"] < 0.93  # MOSS's own memory is counted there
        assert moss["macs"] > plain["macs"] > plain["encoder_macs"]
    console = Console(width=200)
    with console.capture() as capture:
        console.print(detection_cost.detection_table(rows))
    shown = capture.get()
    assert "AdaTAD-B + MOSS, 160 px" in shown and f"({COUNTED['l', 224].total:g})" in shown
