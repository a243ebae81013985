"""Owns: the held-out loss - that of the model in evaluation mode, over all rows, and it changes nothing."""

import json

import pytest
import torch
from launching import logged
from plain_keeper import Keeper
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from moss_vllm.data.rows import Rejected
from moss_vllm.training import engines, held_out
from moss_vllm.training.loop import Loop, Objective, train
from moss_vllm.training.optim import Rate, parameter_groups

pytestmark = pytest.mark.usefixtures("one_process")


class Numbers:
    """Rows of four numbers, a term each; those of `bad` are rejected."""

    def __init__(self, count=6, first=0, bad=()):
        self.shares, self.first, self.bad, self.read = [(count, 1.0)], first, bad, []

    def __getitem__(self, index):
        self.read.append(int(index))
        if index in self.bad:
            return Rejected(f"row {index}", "torn")
        return int(index), torch.randn(4, generator=torch.Generator().manual_seed(self.first + int(index)))

    def name(self, index):
        return str(index)

    def collate(self, rows):
        used = [row for row in rows if not isinstance(row, Rejected)]
        values = torch.stack([value for _, value in used]) if used else torch.zeros(2, 4)
        own = {"row_ids": [str(i) for i, _ in used], "rejected": [r for r in rows if isinstance(r, Rejected)]}
        return {
            "values": values,
            "weight": torch.tensor(float(bool(used))),
            "count": len(used),
            "read": 1,
        } | own


class Squares(Objective):
    """Noise, dropout and BatchNorm: what evaluation mode changes, and what draws numbers."""

    def forward(self, values, weight):
        if self.training:
            values = values + torch.randn(values.shape)
        return weight * self.model(values).square().sum()


@pytest.fixture
def run(tmp_path):
    """A function that trains a small model and returns the lines, its weights, and what is drawn next."""

    def start(out="run", *, unseen=None, resume=None, accelerator=None, **settings):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))
        groups = parameter_groups(model, [Rate("all", "", 0.05)])
        settings = {"steps": 5, "batch_size": 2, "workers": 0, "evaluate_every": 2, **settings}
        how = {"out": tmp_path / out, "keeper": Keeper(model), "resume": resume, "unseen": unseen}
        accelerator = accelerator or engines.start()
        lines = train(accelerator, Squares(model), groups, Numbers(), Loop(**settings), **how)
        assert all(module.training for module in model.modules())
        return lines, {name: value.clone() for name, value in model.state_dict().items()}, torch.randn(3)

    return start


def measured(folder):
    return {line["step"]: line for line in logged(folder) if "held_out_loss" in line}


@pytest.mark.parametrize("workers", [0, 2])
def test_measuring_changes_nothing_of_the_training(run, tmp_path, workers):
    plain, weights, drawn = run("plain", workers=workers)
    lines, same, then = run("asked", unseen=Numbers(5, first=100), workers=workers)
    assert [line["loss"] for line in lines] == [line["loss"] for line in plain]
    assert torch.equal(drawn, then) and all(torch.equal(weights[name], same[name]) for name in weights)
    assert int(weights["1.num_batches_tracked"]) == 5 and list(measured(tmp_path / "asked")) == [2, 4, 5]
    assert [line for line in logged(tmp_path / "asked") if "loss" in line] == lines


def test_it_is_the_mean_over_terms_of_the_model_as_it_is_used(run, tmp_path):
    unseen = Numbers(5, first=100, bad={3})
    _, weights, _ = run(unseen=unseen)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2)).eval()
    model.load_state_dict(weights)
    rows = torch.stack([Numbers(first=100)[index][1] for index in (0, 1, 2, 4)])
    line = measured(tmp_path / "run")[5]
    with torch.no_grad():
        assert line["held_out_loss"] == pytest.approx(float(model(rows).square().sum()) / 4, rel=1e-5)
    assert (line["rows"], line["terms"]) == (4, 4) and line["seconds"] > 0
    assert unseen.read == [0, 1, 2, 3, 4] * 3
    (rejected,) = map(json.loads, (tmp_path / "run" / "rejected-0.jsonl").read_text().splitlines())
    assert rejected == {"row_id": "row 3", "reason": "torn"}  # named once, and no reason to stop


def test_the_step_lines_tell_the_last_one(run, tmp_path, capsys):
    run(unseen=Numbers(4, first=100), log_every=1)
    told, losses = capsys.readouterr().out, measured(tmp_path / "run")
    assert f"step 2: held-out loss {losses[2]['held_out_loss']:.3f} over 4 rows, in " in told
    third = next(line for line in told.splitlines() if line.startswith("step 3/5"))
    assert f" (held out {losses[2]['held_out_loss']:.3f} at step 2)  " in third
    assert "held out" not in next(line for line in told.splitlines() if line.startswith("step 1/5"))


def test_a_tracker_gets_it_beside_the_loss_and_the_norms_of_groups(run, tmp_path):
    accelerator = engines.start(tracker="tensorboard", folder=str(tmp_path))
    accelerator.init_trackers("tensorboard")
    lines, *_ = run(unseen=Numbers(4, first=100), log_every=2, accelerator=accelerator)
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {tag: {one.step: one.value for one in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    losses = {step: line["held_out_loss"] for step, line in measured(tmp_path / "run").items()}
    assert found["held_out_loss"] == pytest.approx(losses, rel=1e-6)
    assert found["loss"] == pytest.approx({line["step"]: line["loss"] for line in lines}, rel=1e-6)
    norms = {line["step"]: line["grad_norms"]["all"] for line in lines if "grad_norms" in line}
    assert found["grad_norms/all"] == pytest.approx(norms, rel=1e-6) and list(norms) == [2, 4]


def test_a_resumed_run_has_each_measurement_once(run, tmp_path):
    run("straight", unseen=Numbers(5, first=100), save_every=3)
    half = tmp_path / "straight" / "step-000003"
    straight = measured(tmp_path / "straight")
    _, weights, _ = run("straight", unseen=Numbers(5, first=100), save_every=3, resume=half)
    again = measured(tmp_path / "straight")
    assert [line["step"] for line in logged(tmp_path / "straight")] == [1, 2, 2, 3, 4, 4, 5, 5]
    assert {k: v["held_out_loss"] for k, v in again.items()} == {
        k: v["held_out_loss"] for k, v in straight.items()
    }


def test_without_a_usable_row_or_a_finite_loss_there_is_none(run, tmp_path, capsys):
    run(unseen=Numbers(2, bad={0, 1}))
    assert {line["held_out_loss"] for line in measured(tmp_path / "run").values()} == {None}
    assert (
        "step 2: no held-out loss: it is not finite, or none of the rows can be used"
        in capsys.readouterr().out
    )


def test_a_run_that_is_asked_to_stop_does_not_finish_it():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    unseen, loop = Numbers(6), Loop(1, batch_size=2, workers=0)
    asked = iter([False, True])
    found = held_out.measure(engines.start(), Squares(model), unseen, loop, lambda: next(asked))
    assert found is None and unseen.read == [0, 1, 2, 3] and model.training
    found = held_out.measure(engines.start(), Squares(model), unseen, loop, lambda: False)
    assert found.rows == 6


@pytest.mark.parametrize("rows, processes", [(5, 2), (1, 3), (6, 3)])
def test_every_process_has_as_many_batches_and_every_row_is_read_once(monkeypatch, rows, processes):
    class Alone:
        device, num_processes = torch.device("cpu"), processes

        def __init__(self, rank):
            self.process_index, self.reduced = rank, 0

        def reduce(self, value, how):
            self.reduced += 1
            return value

    monkeypatch.setattr(torch.distributed, "broadcast", lambda buffer, src: None)
    read, exchanges = [], set()
    for rank in range(processes):
        unseen, one = Numbers(rows), Alone(rank)
        calls = []
        model = nn.Linear(4, 3)
        model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        held_out.measure(one, Squares(model), unseen, Loop(1, batch_size=2, workers=0), lambda: False)
        read += unseen.read
        exchanges.add((len(calls), one.reduced))
    assert sorted(read) == list(range(rows)) and len(exchanges) == 1


def test_other_processes_borrow_the_first_ones_statistics_and_get_their_own_back(monkeypatch):
    model = nn.BatchNorm1d(2)
    model.running_mean.fill_(7.0)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda buffer, src: buffer.fill_(1))

    class Second:
        num_processes = 2

    with engines.same_statistics(Second(), model):
        assert model.running_mean.tolist() == [1.0, 1.0]
    assert model.running_mean.tolist() == [7.0, 7.0] and int(model.num_batches_tracked) == 0
