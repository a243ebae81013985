"""Owns: every parameter trains at the rate of the first row that names it, or nothing trains."""

import math

import pytest
import torch
from torch import nn

from moss_vllm.training.optim import Rate, describe, parameter_groups, warmup_cosine, with_rates
from moss_vllm.vlm.adapter import attach_lora
from moss_vllm.vlm.base import load_base
from moss_vllm.vlm.families import VIDEO_LLAMA3


@pytest.fixture
def model():
    return nn.ModuleDict({"early": nn.Linear(2, 3), "late": nn.Linear(3, 4), "norm": nn.LayerNorm(4)})


def by_name(groups, model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {(g["name"], g["lr"], g["weight_decay"]): [names[id(p)] for p in g["params"]] for g in groups}


def test_first_match_wins(model):
    table = [Rate("bias", r"\.bias$", 0.5), Rate("early", "early", 0.1), Rate("rest", "", None)]
    assert by_name(parameter_groups(model, table), model) == {
        ("bias", 0.5, 0.0): ["early.bias", "late.bias", "norm.bias"],
        ("early", 0.1, 0.0): ["early.weight"],
    }
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["early.weight", "early.bias", "late.bias", "norm.bias"]


def test_groups_carry_what_the_schedule_scales(model):
    (group,) = parameter_groups(model, [Rate("all", "", 0.25)])
    assert (group["lr"], group["initial_lr"]) == (0.25, 0.25)


def test_a_frozen_row_freezes_and_a_trained_one_thaws(model):
    parameter_groups(model, [Rate("frozen", "early|norm", None), Rate("late", "late", 1.0)])
    parameter_groups(model, [Rate("early", "early", 1.0), Rate("frozen", "", None)])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["early.weight", "early.bias"]


def test_one_dimensional_parameters_do_not_decay(model):
    groups = parameter_groups(model, [Rate("all", "", 0.1, weight_decay=0.05)])
    assert by_name(groups, model) == {
        ("all", 0.1, 0.05): ["early.weight", "late.weight"],
        ("all", 0.1, 0.0): ["early.bias", "late.bias", "norm.weight", "norm.bias"],
    }


def test_ten_uncovered_parameters_are_named_and_the_rest_counted(model):
    with pytest.raises(ValueError, match=r"covers late\.weight, late\.bias; add a row"):
        parameter_groups(model, [Rate("early", "early", 0.1), Rate("norm", "norm", None)])
    with pytest.raises(ValueError, match=r"4\.weight, 4\.bias and 2 more; add a row"):
        parameter_groups(nn.ModuleList([nn.Linear(1, 1) for _ in range(6)]), [])


def test_a_trained_row_without_parameters_is_named(model):
    with pytest.raises(ValueError, match=r"rows \['moss'\] of the learning-rate table match no parameter"):
        parameter_groups(model, [Rate("moss", "moss", 0.1), Rate("rest", "", 0.1)])
    parameter_groups(model, [Rate("moss", "moss", None), Rate("rest", "", 0.1)])  # a frozen one may be empty


def test_describe_counts_what_each_row_got(model):
    table = [Rate("early", "early", 1e-4), Rate("rest", "", None)]
    assert describe(model, table) == [
        ("early", "early", 2, 2 * 3 + 3, "0.0001"),
        ("rest", "", 4, 3 * 4 + 4 + 4 + 4, "frozen"),
    ]


def test_with_rates_changes_named_rows_only():
    table = [Rate("a", "a", 0.1, 0.5), Rate("b", "b", 0.2), Rate("rest", "", None)]
    assert with_rates(table, {"a": 0.3}) == (Rate("a", "a", 0.3, 0.5), *table[1:])
    with pytest.raises(ValueError, match=r"no learning rate called \['rest'\]; the table has \['a', 'b'\]"):
        with_rates(table, {"rest": 0.3})


def test_warmup_cosine_at_its_corners():
    def at(step):
        return warmup_cosine(step, total=110, warmup=10, floor=0.2)

    assert [at(0), at(4), at(9)] == [0.1, 0.5, 1.0]  # a first step at 0 would train nothing
    assert at(10) == 1.0
    assert math.isclose(at(60), 0.2 + 0.8 / 2)
    assert math.isclose(at(110), 0.2) and at(1000) == at(110)
    falling = [at(step) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)
    assert warmup_cosine(5, total=5, warmup=5) == 1.0  # no step is left to fall


def test_the_papers_table_covers_a_real_model(tiny_base, moss):
    model = attach_lora(load_base(tiny_base, moss=moss), rank=4, alpha=4, dropout=0.0)
    groups = parameter_groups(model, VIDEO_LLAMA3.rates)
    assert {group["name"]: group["lr"] for group in groups} == {
        "moss": 1e-3,
        "projector": 1e-4,
        "llm lora": 1e-5,
    }
    counts = {name: (tensors, rate) for name, _, tensors, _, rate in describe(model, VIDEO_LLAMA3.rates)}
    original = sum(".original_module." in name for name, _ in model.named_parameters())
    modules = {
        name: len(list(model.get_submodule(path).modules_to_save["default"].parameters()))
        for name, path in (
            ("moss", "base_model.model.model.vision_model.moss"),
            ("projector", "base_model.model.model.projector"),
        )
    }
    assert counts["originals"] == (original, "frozen") and original == sum(modules.values())
    assert counts["moss"] == (modules["moss"], "0.001")
    assert counts["projector"] == (4, "0.0001")
    assert counts["llm lora"] == (4 * 7 * 2, "1e-05")  # layers, linears, A and B
    assert sum(tensors for tensors, _ in counts.values()) == len(list(model.parameters()))
    assert all(torch.is_tensor(p) and p.requires_grad for group in groups for p in group["params"])
