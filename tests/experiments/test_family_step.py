"""Owns: the step and the answer of a released size; here of its classes with tiny sizes."""

import json

import family_step
import pytest
import tiny_hosts
from tiny_processors import fit

from moss_vllm.vlm import shapes


def test_every_shape_but_videollama3s_can_be_measured():
    assert set(family_step.OF_FAMILIES) == set(shapes.SHAPES) - {"2b", "7b"}


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["qwen2_5_vl_3b", "qwen3_vl_2b"])
def test_a_step_and_an_answer_are_measured_beside_the_estimate(shape, monkeypatch, tmp_path):
    kind = shapes.SHAPES[shape]["model_type"]
    tiny = fit(getattr(tiny_hosts, kind)(), kind).to_dict()
    monkeypatch.setitem(shapes.SHAPES, shape, tiny)
    monkeypatch.setattr(family_step, "SHORT_SIDE_PX", 64)
    found = family_step.main(
        [shape, "--seconds", "1", "--lora-rank", "2", "--json", str(tmp_path / "step.json")]
    )
    assert json.loads((tmp_path / "step.json").read_text()) == found
    assert found["last_layers_of_moss_moved"] and 0 < found["loss_per_token"] < 10
    assert found["clip"]["frames"] == 4 and found["tokens"] > 20
    assert (
        0 < found["peak_gib"] < found["process_peak_gib"] and found["estimated_gib"] > 0.7 * found["peak_gib"]
    )
