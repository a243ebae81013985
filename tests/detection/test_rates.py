"""Owns: the rates of AdaTAD's schedule and of each part of a detector; the encoder trains in none."""

import json

import pytest
from golden_adatad import FOLDER
from tiny_detector import WITHOUT, detector

from moss_vllm.detection.rates import rate_table, warmup_cosine_rate
from moss_vllm.training.optim import describe, parameter_groups


def test_golden_schedule():
    golden = json.loads((FOLDER / "schedule.json").read_text())
    warmup, total = (
        golden[name] * golden["iterations_per_epoch"] for name in ("warmup_epochs", "max_epochs")
    )
    for row in golden["rows"]:
        for peak, rate in zip(golden["base_lr"], row["lr"], strict=True):
            found = warmup_cosine_rate(row["step"], peak, warmup=warmup, total=total)
            assert found == pytest.approx(rate, rel=1e-9, abs=1e-18)
    assert warmup_cosine_rate(total + 5, 1e-4, warmup=warmup, total=total) == pytest.approx(golden["eta_min"])
    assert [warmup_cosine_rate(step, 1.0, warmup=1, total=3) for step in (0, 1)] == [0, 1]


def test_every_part_trains_at_its_rate(encoder):
    model = detector(encoder)
    table = rate_table(model, 1e-4, 2e-4)
    groups = parameter_groups(model, table)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        (group["name"], group["lr"], group["weight_decay"]): [names[id(p)] for p in group["params"]]
        for group in groups
    }
    assert list(found) == [
        ("adapters", 2e-4, 0.05),
        ("moss", 2e-4, 0.05),
        ("moss", 2e-4, 0.0),
        ("detector", 1e-4, 0.05),
        ("detector", 1e-4, 0.0),
    ]
    assert "adapters.0.gamma" in found["adapters", 2e-4, 0.05]
    spared = found["detector", 1e-4, 0.0]
    assert {"detector.stem.0.mlp_scale.scale", "detector.head.level_scales", "detector.neck.0.bias"} < set(
        spared
    )
    trained = {name for names in found.values() for name in names}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith("encoder.")}
    assert describe(model, table)[0][-1] == "frozen"


def test_without_a_temporal_module_there_is_no_row_of_it(encoder):
    model = detector(encoder, **WITHOUT)
    assert [row.name for row in rate_table(model, 1e-4, 2e-4)] == ["encoder", "adapters", "detector"]
    model.extra = model.detector.head.cls_out
    with pytest.raises(ValueError, match=r"covers .*; add a row"):
        parameter_groups(model, rate_table(model, 1e-4, 2e-4)[:2])
