"""Owns: --data-seed decides what is drawn of the data, --seed the weights; alone, --seed decides both."""

import json
from itertools import islice

import pytest
import torch
from action_layouts import TINY
from boundary_runs import flags as boundary_flags
from detection_runs import flags as detection_flags
from launching import as_flags
from tiny_boundaries import write_moving

from moss_vllm.runtime.provenance import fingerprint
from moss_vllm.training import loop as training

pytestmark = pytest.mark.usefixtures("one_process", "small_detector")
VIDEO_LLM = {"steps": 2, "batch_size": 2, "workers": 0, "lora_rank": 4, "tracker": "none"}


class Begun(Exception):
    """Carries what a run would train, and on which first batches."""


def begin(accelerator, objective, groups, dataset, loop, *, started, **_):
    started()
    with training._batches(accelerator, dataset, loop, 0, lambda: False) as batches:
        raise Begun(fingerprint(objective.model.state_dict()), list(islice(batches, 2)))


@pytest.fixture(params=["favor_lora", "favor_lora without MOSS", "action_recog", "detection", "boundaries"])
def run(request, tmp_path, monkeypatch):
    """A function from flags to the first weights, the first batches and settings.json of a recipe's run."""
    out, of = tmp_path / "run", request.getfixturevalue
    if request.param.startswith("favor_lora"):
        recipe, given = of("recipe"), {"model": of("tiny_base"), "data": of("world") / "FAVOR", "out": out}
        argv = as_flags({**given, **VIDEO_LLM}) + ["--no-use-moss"] * request.param.endswith("MOSS")
    elif request.param == "action_recog":
        recipe = of("action_recipe")
        argv = as_flags({**TINY, "root": of("layouts") / "list", "out": out})
    elif request.param == "detection":
        recipe, root = of("detection_recipe"), of("tiny_detection")
        argv = detection_flags(root / "thumos", root / "videomae", out)
    else:
        recipe = of("boundary_recipe")
        write_moving(tmp_path / "kinetics")
        argv = boundary_flags(tmp_path / "kinetics", out)
    monkeypatch.setattr(recipe, "train", begin)

    def start(*flags):
        with pytest.raises(Begun) as begun:
            recipe.main([*argv, *map(str, flags)])
        return *begun.value.args, json.loads((out / "settings.json").read_text())

    return start


def same(batches, others):
    """Whether two lists of batches have the same rows and the same numbers."""
    return all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for one, other in zip(batches, others, strict=True)
        for name, value in one.items()
    )


@pytest.mark.slow
def test_each_seed_decides_its_own(run):
    weights, batches, report = run("--seed", 1, "--data-seed", 5)
    assert report["data_seed"] == report["settings"]["data_seed"] == 5
    other_weights, same_batches, _ = run("--seed", 2, "--data-seed", 5)
    same_weights, other_batches, _ = run("--seed", 1, "--data-seed", 6)
    assert weights == same_weights != other_weights
    assert same(batches, same_batches) and not same(batches, other_batches)
    _, of_one_seed, report = run("--seed", 5)
    assert same(batches, of_one_seed)
    assert report["data_seed"] == 5 and report["settings"]["data_seed"] is None
