"""Owns: what a task may set in the loop - schedule, divisor, end of a step, float16 - and that it resumes.

A gradient beyond float16 changes no weight; its step is counted and said.
"""

import json

import pytest
import torch
from launching import logged
from plain_keeper import FILE, Keeper
from torch import nn

from moss_vllm.runtime.trained_weights import read_trained
from moss_vllm.training import engines
from moss_vllm.training.loop import Loop, Objective, train
from moss_vllm.training.optim import Rate, parameter_groups

pytestmark = pytest.mark.usefixtures("one_process")


class Numbers:
    """Rows of four numbers; a row counts as many terms as its index and one."""

    shares = ((6, 1.0),)

    def __getitem__(self, index):
        return int(index), torch.randn(4, generator=torch.Generator().manual_seed(int(index)))

    def name(self, index):
        return str(index)

    def collate(self, rows):
        indices, values = zip(*rows, strict=True)
        own = {"row_ids": [str(index) for index in indices], "rejected": [], "read": len(rows)}
        return {"values": torch.stack(values), "count": sum(index + 1 for index in indices), **own}


class Squares(Objective):
    """Notes what the loop asks of it; multiplies losses by `factor`, whose gradient float16 may not hold."""

    def __init__(self, model, dtype=None, factors=None):
        super().__init__(model, dtype)
        self.asked, self.steps, self.factors = [], 0, factors or {}

    def divisor(self, terms):
        self.asked.append(terms)
        return 10.0 * len(self.asked)

    def after_step(self):
        self.steps += 1

    def forward(self, values):
        with self.autocast(values.device):
            scores = self.model(values)
        return scores.float().square().sum() * self.factors.get(self.steps, 1.0)


@pytest.fixture
def run(tmp_path):
    """A function that trains a linear layer and returns the lines, the objective and its weights."""

    def start(out="run", *, dtype=None, factors=None, resume=None, kind=Squares, **settings):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        groups = parameter_groups(model, [Rate("all", "", 0.1, 0.05, decay_vectors=True)])
        objective = kind(model, dtype, factors) if kind is Squares else kind(model)
        loop = Loop(**{"steps": 4, "batch_size": 2, "workers": 0, "save_every": 2, **settings})
        how = {"out": tmp_path / out, "keeper": Keeper(model), "resume": resume}
        lines = train(engines.start(), objective, groups, Numbers(), loop, **how)
        return lines, objective, model.state_dict()

    return start


def test_a_schedule_gives_the_rates_of_each_step_and_peak(run):
    lines, *_ = run(schedule=lambda step, peak: peak * (step + 1) ** 2 + 0.5)
    assert [line["lr"]["all"] for line in lines] == pytest.approx([0.6, 0.9, 1.4, 2.1])
    assert Loop(4, warmup_share=0.5).rate(0, 3e-3) == 1.5e-3  # without one, warm-up and cosine


def test_the_divisor_is_asked_once_a_step_for_all_its_terms(run):
    lines, objective, weights = run(batch_size=1, accumulate=2)
    whole, other, same = run("whole")
    assert objective.asked == other.asked and len(objective.asked) == 4
    assert all(3 <= terms <= 11 for terms in objective.asked) and objective.steps == 4
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in whole], rel=1e-5)
    assert all(torch.allclose(weights[name], same[name], rtol=1e-4) for name in weights)
    # Half the divisor, twice the loss.
    plain, *_ = run("plain", kind=type("Fives", (Squares,), {"divisor": lambda self, terms: 5.0}), steps=1)
    assert plain[0]["loss"] == pytest.approx(2 * whole[0]["loss"])


def test_by_default_the_terms_divide_and_nothing_follows(run):
    objective = Objective(nn.Linear(1, 1))
    assert (objective.divisor(7), objective.divisor(0), objective.after_step()) == (7, 1, None)


# ---- float16


def test_float16_trains_near_float32_and_says_its_scale(run):
    lines, _, weights = run(dtype=torch.float16)
    plain, _, expected = run("plain")
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in plain], rel=1e-2)
    assert all(torch.allclose(weights[name], expected[name], atol=2e-2) for name in weights)
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert {line["loss_scale"] for line in lines} == {65536.0} and not any(line["skipped"] for line in lines)
    assert not {"loss_scale", "skipped"} & plain[0].keys()


def test_a_gradient_beyond_float16_skips_its_step_alone(run, tmp_path, capsys):
    lines, objective, _ = run(dtype=torch.float16, factors={1: 1e30}, save_every=1, log_every=1)
    assert [line["skipped"] for line in lines] == [False, True, False, False] and objective.steps == 4
    assert [line["loss_scale"] for line in lines] == [65536.0, 65536.0, 32768.0, 32768.0]
    assert lines[1]["grad_norm"] is None and "grad_norms" not in lines[1] and lines[2]["grad_norm"] > 0
    first, second, third = (read_trained(tmp_path / "run" / f"step-00000{n}" / FILE) for n in (1, 2, 3))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(second[name], third[name]) for name in first)
    assert logged(tmp_path / "run") == lines
    assert (
        "step 2 changed no weight: its gradient exceeds float16 at a loss scale of 65536, which is halved"
        in capsys.readouterr().out
    )


def test_a_gradient_that_no_scale_helps_ends_the_run(run):
    bad = {step: 1e30 for step in range(40)}
    with pytest.raises(RuntimeError, match="the gradient of step 18 is (inf|nan); rows"):
        run(dtype=torch.float16, factors=bad, steps=40, save_every=100)


def test_float16_resumes_bit_for_bit_with_its_scale(run, tmp_path):
    settings = {"dtype": torch.float16, "steps": 6, "save_every": 3}
    straight, _, weights = run("straight", factors={1: 1e30}, **settings)
    half = tmp_path / "straight" / "step-000003"
    assert json.loads((half / "state" / "loss_scale.json").read_text())["scale"] == 32768.0
    resumed, objective, again = run("resumed", resume=half, **settings)
    assert [line["loss_scale"] for line in resumed] == [32768.0] * 3
    # The divisor and the factors of this objective count from each start, a scale that is a power of 2 not.
    assert objective.steps == 3 and len(straight) == 6 and weights.keys() == again.keys()
    file = half / "state" / "loss_scale.json"
    whole = json.loads(file.read_text())
    for damaged, told in (
        ({"scale": 1.0}, "holds other values than scale, "),
        ({**whole, "scale": -1.0}, "has the scale -1.0"),
        ([], "it holds a list"),
    ):
        file.write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match=f"state: cannot be read .*loss_scale.json.* ?{told}"):
            run("other", resume=half, **settings)
    file.unlink()  # as of a run in another precision
    fresh, *_ = run("fresh", resume=half, **settings)
    assert fresh[0]["loss_scale"] == 65536.0


def test_float16_is_refused_where_another_engine_scales(monkeypatch):
    accelerator = engines.start()
    monkeypatch.setattr(engines, "name", lambda _: "DeepSpeed ZeRO-2")
    assert engines.loss_scaler(accelerator, torch.bfloat16) is None
    with pytest.raises(ValueError, match="--precision fp16 does not go with DeepSpeed ZeRO-2; use bf16"):
        engines.loss_scaler(accelerator, torch.float16)
