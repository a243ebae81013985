"""Owns: all of a boundary model trains at one rate but for the first convolution and the ResNet's norms."""

import pytest
import torch
from tiny_boundaries import WITHOUT, gebd

from moss_vllm.boundaries.rates import rate_table, step_rate
from moss_vllm.training.optim import describe, parameter_groups


def test_the_first_convolution_and_the_norms_are_frozen():
    model = gebd()
    table = rate_table(model, 1e-2, 1e-4)
    groups = parameter_groups(model, table)
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("encoder", 1e-2, 1e-4), ("moss", 1e-2, 1e-4), ("head", 1e-2, 1e-4)
    ]  # fmt: skip
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    frozen = [name for name, parameter in model.named_parameters() if id(parameter) not in trained]
    assert frozen == ["encoder.model.conv1.weight"]
    assert [row[-1] for row in describe(model, table)] == ["frozen", "0.01", "0.01", "0.01"]
    norms = {name for name, _ in model.encoder.named_buffers() if name.endswith("running_var")}
    assert len(norms) == 17  # they are no parameters


def test_adamw_spares_vectors_and_sgd_does_not():
    model = gebd(**WITHOUT)
    groups = parameter_groups(model, rate_table(model, 1e-4, 0.05, decay_vectors=False))
    assert [(group["name"], group["weight_decay"]) for group in groups] == [
        ("encoder", 0.05), ("head", 0.05), ("head", 0.0)
    ]  # fmt: skip
    assert all(parameter.dim() == 1 for parameter in groups[2]["params"])


def test_a_step_trains_what_it_should_and_leaves_statistics():
    model = gebd().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    groups = parameter_groups(model, rate_table(model, 1e-2, 1e-4))
    model(torch.randint(256, (2, 20, 3, 32, 32), dtype=torch.uint8)).square().sum().backward()
    torch.optim.SGD(groups, momentum=0.9).step()
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert "encoder.model.conv1.weight" in same
    assert {name for name in before if name.startswith("encoder.") and "bn" in name} <= same
    assert not {name for name, p in model.named_parameters() if p.requires_grad} & same


def test_the_rate_falls_to_a_tenth_at_each_milestone():
    found = [step_rate(step, 1e-2, drops=(6, 8, 12)) for step in (0, 5, 6, 7, 8, 11, 12, 99)]
    assert found == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])
    assert step_rate(50, 0.5, drops=()) == 0.5
