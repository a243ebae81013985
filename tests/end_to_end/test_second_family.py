"""Owns: what README promises of recipe and evaluations holds for a Qwen2.5-VL as for a VideoLLaMA3."""

import json

import pytest
import torch
from killing import begin_rank, finish, run_two
from launching import ROOT, SCRIPT, as_flags, launch, load_script

from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.adapter import trained_state

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_process")]


@pytest.fixture(scope="module")
def flags(world):
    def make(out, *more, **settings):
        settings = {"batch_size": 2, "workers": 0, "save_every": 2, "lora_rank": 4, **settings}
        given = {"model": "miniature_qwen2_5_vl", "data": world / "FAVOR", "out": out, **settings}
        return [*as_flags(given), *more]

    return make


@pytest.fixture(scope="module")
def runs(flags, tmp_path_factory):
    """The folder of a launched run of 4 steps on two processes, and of one stopped after 2 and resumed."""
    root = tmp_path_factory.mktemp("qwen")
    said = launch("DDP", flags(root / "whole", steps=4), root)
    assert "DDP x2 on cpu" in said and "a step of time is 2 frames, every 0.5 s" in said
    run_two(SCRIPT, flags(root / "cut", steps=2), root)
    assert "resumed from" in run_two(SCRIPT, flags(root / "cut", steps=4, resume="auto"), root)
    return root


def test_a_resumed_run_ends_as_one_that_was_never_stopped(runs):
    whole, cut = (
        trained_state(checkpoint.load(runs / name / "step-000004").model) for name in ("whole", "cut")
    )
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
    start = trained_state(checkpoint.load(runs / "whole" / "step-000002").model)
    assert {name for name in whole if not torch.equal(start[name], whole[name])} >= {
        name for name in whole if ".moss." in name and name.endswith("weight") and whole[name].dim() > 1
    }


def test_deepspeed_trains_it_and_resumes(flags, tmp_path):
    settings = {"lora_dropout": 0.2, "tracker": "none"}
    engine = "DeepSpeed ZeRO-2"
    said = launch(engine, flags(tmp_path / "run", steps=2, **settings), tmp_path)
    assert f"{engine} x2 on cpu" in said
    assert "resumed from" in launch(
        engine, flags(tmp_path / "run", steps=4, resume="auto", **settings), tmp_path
    )
    checkpoint.load(tmp_path / "run" / "step-000004")


@pytest.mark.parametrize("name", ["motionbench", "favor_bench"])
@pytest.mark.parametrize("protocol", [None, "option_text"])
def test_two_processes_evaluate_it_as_one_does(runs, world, tmp_path, name, protocol):
    script, ckpt = ROOT / "eval" / f"{name}.py", runs / "whole" / "step-000004"
    argv = ["--ckpt", str(ckpt), "--data", str(world), "--device", "cpu"]
    argv += ["--protocol", protocol] if protocol else []
    alone = load_script(script).main([*argv, "--out", str(tmp_path / "one")])
    for rank in (1, 0):  # a process that is gone, and the one that goes on with what it left
        finish(begin_rank(script, [*argv, "--out", str(tmp_path / "two")], tmp_path, rank), folder=tmp_path)
    tables = [(tmp_path / out / "table.md").read_text() for out in ("one", "two")]
    assert tables[0] == tables[1] and alone is not None
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert result["protocol"]["sample_fps"] == 4.0 and result["run"]["family"] == "Qwen2.5-VL"


def test_a_merged_model_is_asked_and_trained_on(runs, flags, world, tmp_path, capsys):
    ckpt, merged = runs / "whole" / "step-000004", tmp_path / "merged"
    load_script(ROOT / "scripts" / "merge.py").main([str(ckpt), str(merged), "--precision", "fp32"])
    video = sorted((world / "FAVOR").rglob("*.mp4"))[0]
    ask = load_script(ROOT / "scripts" / "ask.py")
    asked = [str(video), "What moves?", "--max-new-tokens", "16", "--sample-fps", "4", "--short-side-px"]
    answers = [ask.main([*asked, "84", "--ckpt", str(place)]) for place in (ckpt, merged)]
    assert answers[0] == answers[1] and answers[0][0]
    recipe = load_script(SCRIPT)
    recipe.main(flags(tmp_path / "more", model=merged, steps=2))
    said = capsys.readouterr()
    assert "reloads to the weights in memory" in said.out and "moss_qwen2_5_vl" not in said.err
    with pytest.raises(ValueError, match="has a MOSS already; leave --no-use-moss out"):
        recipe.main(flags(tmp_path / "other", "--no-use-moss", model=merged, steps=2))
