"""Owns: experiments/orders.py reads the tower's layers, resumes its runs, and adds seeds up in pairs."""

import json
import shutil
import statistics

import numpy as np
import orders
import orders_runs
import pytest
import torch

from moss_vllm.data.world import segments
from moss_vllm.vlm.places import base_fingerprint


@pytest.fixture(scope="module")
def tower():
    return orders_runs.Tower("miniature")


def test_the_towers_tokens_are_those_of_its_layers(tower):
    frames = orders_runs.pixels(orders_runs.draw_clips(12, 0)[0][0, :2])
    tokens = tower(frames)
    assert tokens.shape == (len(orders_runs.LAYERS), 2, 100, tower.vision.config.hidden_size)
    patches = frames.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    found = tower.vision(
        patches,
        torch.tensor([[1, 10, 10]] * 2),
        torch.ones(2, dtype=torch.long),
        output_hidden_states=True,
    )
    for layer, taken in zip(orders_runs.LAYERS, tokens, strict=True):
        torch.testing.assert_close(found.hidden_states[layer].view_as(taken), taken)


def test_a_changed_patch_changes_its_own_token_most(tower):
    frame = torch.zeros(1, 3, 140, 140)
    other = frame.clone()
    other[:, 0, 3 * 14 : 4 * 14, 7 * 14 : 8 * 14] = 1
    changed = (tower(other) - tower(frame))[0, 0].norm(dim=-1)
    assert int(changed.argmax()) == 3 * 10 + 7


def test_pixels_are_the_clips():
    rng = np.random.default_rng(0)
    clip = segments.render_segments(segments.draw_segments(rng, "a tall shape"))
    side = segments.SQUARE_PX
    whole = orders_runs.pixels(torch.from_numpy(clip[:, ::side, ::side]))
    wanted = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(whole, wanted)


@pytest.fixture
def files(tmp_path):
    """Sixteen training and as many test clips, with random numbers for what the tower sees."""
    found = []
    for seed in range(2):
        torch.save(orders_runs.draw_clips(16, seed), tmp_path / f"{seed}.pt")
        found.append(tmp_path / f"{seed}.pt")
    for seed in range(2):
        seen = np.random.default_rng(seed).normal(size=(16, 2, segments.SEGMENT_FRAMES, 100, 8))
        np.save(tmp_path / f"{seed}.npy", seen.astype(np.float16))
        found.append(tmp_path / f"{seed}.npy")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("row", ["none", "MOSS"])
def test_a_stopped_run_continues_as_if_it_had_not_stopped(row, files, tmp_path, monkeypatch):
    run = dict(row=row, seed=1, steps=3, files=files, threads=torch.get_num_threads())
    orders_runs.train_run(folder=tmp_path / "straight", **run)
    plain, calls = orders_runs.accuracy, []

    def stop(*given):
        calls.append(given)
        if len(calls) == 5:  # the first of two tests after the third step
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(orders_runs, "accuracy", stop)
    with pytest.raises(KeyboardInterrupt):
        orders_runs.train_run(folder=tmp_path / "stopped", **run)
    assert orders.steps_of(tmp_path / "stopped") == 2
    monkeypatch.setattr(orders_runs, "accuracy", plain)
    orders_runs.train_run(folder=tmp_path / "stopped", **run)
    straight, stopped = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("straight", "stopped")
    )
    assert straight == stopped and [line["step"] for line in stopped["log"]] == [1, 2, 3]
    assert not (tmp_path / "stopped" / "state.pt").exists()


def test_a_run_ends_with_the_command_that_was_killed(files, tmp_path, monkeypatch):
    parents = iter([7, 7, 7, 1])
    monkeypatch.setattr(orders_runs.os, "getppid", lambda: next(parents))
    with pytest.raises(SystemExit):
        orders_runs.train_run("none", 0, 9, tmp_path, files, torch.get_num_threads())
    assert orders.steps_of(tmp_path) == 2 and (tmp_path / "state.pt").is_file()


def test_every_row_can_be_built():
    assert tuple(orders_runs.ROWS) == orders.ROW_NAMES
    sizes = {row: sum(p.numel() for p in orders_runs.build(row, 8).parameters()) for row in orders_runs.ROWS}
    assert sizes["none"] < sizes["1st order"] < sizes["MOSS"] == sizes["2nd order"]


def fabricated(*finals, steps=(1, 2, 3, 4)):
    """Results of seeds whose accuracy grows to `finals`; every column has the same."""

    def line(step, final):
        percent = final * step / steps[-1]
        test = dict.fromkeys(orders.COLUMNS, percent)
        return {"step": step, "loss": 1.0, "test": test, "train": dict.fromkeys(orders.COLUMNS, percent + 4)}

    return [{"trainable": 5000, "log": [line(step, final) for step in steps]} for final in finals]


def test_seeds_are_added_up_and_paired():
    found = {"1st order": fabricated(40.0, 60.0), "MOSS": fabricated(60.0, 64.0)}
    args = orders.options().parse_args(["--seeds", "2"])
    table = orders.make_table(found, args)
    assert table.rows["MOSS"]["test clips"]["pair"] == (62.0, pytest.approx(statistics.stdev([60, 64])))
    assert table.rows["MOSS"]["training clips"]["all"][0] == 66.0
    assert table.rows["1st order"]["gain"]["last quarter"][0] == 12.5  # a quarter of 50
    added = orders.paired(found)
    assert added["shape"] == [20.0, 4.0] and orders.paired({"MOSS": found["MOSS"]}) == {}
    assert "- all: +12.0 ± 11.3 (+20.0 +4.0)" in orders.in_words(added)
    curve = orders.curves_of(found["MOSS"])["all"]
    assert curve["test"] == [(1, 15.5), (2, 31.0), (3, 46.5), (4, 62.0)] and curve["train"][-1] == (4, 66.0)


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    settings = {"steps": 4, "base_fingerprint": base_fingerprint("miniature")}
    orders.keep_settings(tmp_path, settings)
    orders.keep_settings(tmp_path, settings)
    with pytest.raises(ValueError, match=r"has runs of .*'steps': 4.*remove it or name another --out"):
        orders.keep_settings(tmp_path, {**settings, "steps": 5})


@pytest.mark.parametrize(
    "flags", [["--rows", "4th"], ["--seeds", "0"], ["--train", "3"], ["--jobs", "0"], ["--json", "."]]
)
def test_bad_arguments_are_refused(flags, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        orders.main([*flags, "--out", str(tmp_path)])
    assert stopped.value.code == 2


@pytest.mark.slow
def test_two_rows_for_real(tmp_path, monkeypatch, capsys):
    flags = ["--rows", "1st order", "MOSS", "--seeds", "1", "--steps", "2", "--train", "16", "--test", "16"]
    flags += ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "a.json")]
    found = orders.main(flags)
    assert set(found["rows"]) == {"1st order", "MOSS"}
    assert set(found["moss_minus_first_order"]) == set(orders.COLUMNS)
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads(json.dumps(found))
    monkeypatch.setattr(orders, "get_context", lambda _: pytest.fail("a finished run was repeated"))
    assert orders.main(flags)["rows"] == found["rows"]
    shutil.rmtree(tmp_path / "out")  # what the json has is not repeated either
    assert orders.main(flags)["rows"] == found["rows"]
    flags[flags.index("--steps") + 1] = "1"
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(pytest.fail.Exception):
        orders.main(flags)
    assert "a.json has runs of other settings: they are not taken over" in capsys.readouterr().out
