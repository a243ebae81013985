"""Owns: experiments/orders_maps.py measures what its page says, and reads the ladders of orders.py."""

import json

import numpy as np
import orders_maps
import orders_runs
import pytest
import torch
from safetensors.torch import save_file

from moss_vllm.data.world import segments

SIDES = (segments.SEGMENT_GRID,) * 2


def scene(name, seed=0):
    return segments.draw_segments(np.random.default_rng(seed), name)


def test_shapes_that_move_alike_are_one_and_the_wall_is_none():
    for name, motions in (("two side by side, alike", 1), ("two side by side, each its own way", 2)):
        drawn = scene(name)
        found = orders_maps.motion_map(drawn)
        assert len(np.unique(found)) == motions + 1
        for segment in drawn.segments:
            assert len(np.unique(found[segment.mask])) == 1 and found[segment.mask].min() > 0
        assert (found == 0).sum() == 100 - 2 * 9


@pytest.mark.parametrize("kind, wanted", [("alike", 100), ("same", 50), ("unlike", 0)])
def test_the_area_is_that_of_the_patches_that_move_alike(kind, wanted):
    motions = orders_maps.motion_map(scene("a tall shape"))
    alike = torch.from_numpy(np.eye(2)[motions.ravel()])
    features = {
        "alike": alike,
        "same": torch.ones(100, 2),
        "unlike": torch.eye(100) - alike @ (alike / alike.sum(0)).T,  # cosine below 0 within, 0 between
    }[kind]
    areas = orders_maps.told_apart(features.view(1, 1, *SIDES, -1).expand(1, 3, *SIDES, -1), motions)
    assert areas == pytest.approx(dict.fromkeys(orders_maps.QUERIES, wanted))


@pytest.mark.slow
def test_random_features_stand_at_chance_and_order_2_sees_the_shapes():
    drawn = [scene("two side by side, alike", seed) for seed in range(4)]
    tower = orders_runs.Tower("miniature")
    found = {}
    for one in drawn:
        for name, features in orders_maps.compared(orders_maps.tokens_of(tower, one), {}):
            found.setdefault(name, []).append(orders_maps.told_apart(features, orders_maps.motion_map(one)))
    shape = {name: np.mean([one[orders_maps.QUERIES[0]] for one in all_]) for name, all_ in found.items()}
    assert abs(shape["order 1, flattening, less the mean"] - 50) < 5
    assert shape["order 2, flattening, less the mean"] > 75


@pytest.mark.slow
def test_the_ladders_of_a_folder_are_measured(tmp_path, capsys, monkeypatch):
    tower = orders_runs.Tower("miniature")
    for seed in (0, 1):
        torch.manual_seed(seed)
        folder = tmp_path / "runs" / "MOSS" / f"seed-{seed}"
        folder.mkdir(parents=True)
        state = orders_runs.build("MOSS", tower.vision.config.hidden_size).state_dict()
        save_file(state, folder / orders_runs.WEIGHTS)
    flags = ["--test", "2", "--json", str(tmp_path / "a.json"), "--picture", str(tmp_path / "a.png")]
    record = orders_maps.main([*flags, "--runs", str(tmp_path / "runs")])
    assert {"order 2, trained MOSS, seed 0", "what it gives out, seed 1"} <= record["rows"].keys()
    assert json.loads((tmp_path / "a.json").read_text())["rows"] == record["rows"]
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"
    with pytest.raises(ValueError, match=r"has no MOSS/seed-\*/ladder.safetensors; name the --out"):
        orders_maps.main([*flags, "--runs", str(tmp_path)])
    with pytest.raises(SystemExit):
        orders_maps.main(["--picture", str(tmp_path / "a.jpg")])
    assert "name a .png in a folder that exists" in capsys.readouterr().err
