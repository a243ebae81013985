"""Owns: the trace of some steps - whole files that name the steps and the modules, and nothing without."""

import gzip
import json

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from moss_vllm.core import MOSS
from moss_vllm.training.trace import WARM_UP, StepTrace


class Model(nn.Module):
    """MOSS whose forward pass runs again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.moss = MOSS(8, 8, window=(3, 3, 3), d_hidden=4, d_similarity=4, d_fuse=4)

    def forward(self, x):
        return checkpoint(self.moss, x, use_reentrant=False).square().sum()


def work(trace, steps, model):
    x = torch.randn(1, 4, 4, 4, 8)
    for step in steps:
        trace.begin(step)
        model(x).backward()
        trace.end(step)


def names(file):
    with gzip.open(file) as text:
        return [event.get("name") for event in json.load(text)["traceEvents"]]


def test_the_steps_after_the_warm_up_are_traced(tmp_path, capfd):
    model = Model()
    with StepTrace(tmp_path, model, 10, 2) as trace:
        work(trace, range(10, 20), model)
    (file,) = (tmp_path / "profile").iterdir()
    assert file.name == f"steps-{10 + WARM_UP + 1:06d}-to-{10 + WARM_UP + 2:06d}.json.gz"
    found = names(file)
    assert [found.count(f"step {n}") for n in range(10, 21)] == [0] * 4 + [1, 1] + [0] * 5
    # Each step's forward pass, and the second one in its backward pass.
    assert found.count("MOSS moss") == 4 and found.count("Model") == 2
    told, errors = capfd.readouterr()
    assert (
        "rofiler" not in errors
        and told.startswith(f"{file}: a trace of 2 steps")
        and "https://ui.perfetto.dev" in told
    )
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_run_that_ends_in_the_warm_up_says_that_nothing_was_traced(tmp_path, capsys):
    model = Model()
    with StepTrace(tmp_path, model, 0, 2) as trace:
        work(trace, range(WARM_UP), model)
    assert "nothing was traced; the run ended before step 4" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_run_that_ends_early_leaves_what_it_traced(tmp_path):
    model = Model()
    with pytest.raises(RuntimeError, match="lost"), StepTrace(tmp_path, model, 0, 5) as trace:
        work(trace, range(4), model)
        trace.begin(4)
        raise RuntimeError("lost")
    (file,) = (tmp_path / "profile").iterdir()
    assert file.name == "steps-000004-to-000004.json.gz" and names(file).count("step 4") == 1


def test_nothing_is_hooked_or_written_without_steps_to_trace(tmp_path):
    for first, count in ((0, None), (0, 3)):  # the second run is over before its warm-up
        model = Model()
        with StepTrace(tmp_path, model, first, count) as trace:
            work(trace, range(2), model)
            assert not any(module._forward_hooks for module in model.modules())
        assert list(tmp_path.iterdir()) == []


def test_a_folder_that_was_taken_away_is_not_made_anew(tmp_path):
    model = Model()
    with StepTrace(tmp_path / "gone", model, 0, 1) as trace:
        work(trace, range(5), model)
    assert list(tmp_path.iterdir()) == []
