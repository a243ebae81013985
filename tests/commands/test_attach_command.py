"""Owns: `moss attach` writes what moss_vllm.load opens, says what it attached, and refuses other models."""

import json

import pytest
import torch
from host_checks import fresh, inputs_of, logits
from tiny_hosts import TINY_HOSTS

import moss_vllm
from moss_vllm.commands.scripts import attach

TINY = {tiny.name: tiny for tiny in TINY_HOSTS}


@pytest.fixture(scope="module", params=["qwen3_vl", "smolvlm", "video_llama_3"])
def attached(request, tmp_path_factory):
    """A tiny host, its folder, and the folder that the command wrote for it."""
    root = tmp_path_factory.mktemp(request.param)
    fresh(TINY[request.param]).save_pretrained(root / "base")
    attach.main([str(root / "base"), "--out", str(root / "out"), "--after-layer", "2", "--window", "3,3,3"])
    return TINY[request.param], root


def test_what_it_writes_opens_and_answers_as_the_base(attached):
    tiny, root = attached
    record = json.loads((root / "out" / "moss.json").read_text())
    sizes = record["sizes"]
    assert record["base_model"] == str(root / "base") and record["model_type"] == tiny.name
    assert [sizes["after_layer"], sizes["window"], sizes["orders"]] == [2, [3, 3, 3], [1, 2]]
    inputs = inputs_of(tiny)
    assert torch.equal(logits(moss_vllm.load(root / "out"), inputs), logits(fresh(tiny), inputs))


def test_it_says_what_it_attached(tmp_path, capsys):
    fresh(TINY["qwen3_vl"]).save_pretrained(tmp_path / "base")
    attach.main([str(tmp_path / "base"), "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Qwen3-VL: MOSS after layer 1 of 4, ") and lines[0].endswith(
        "one step = 2 frames"
    )
    assert lines[1].startswith("to be trained whole: model.visual.moss, model.visual.merger")
    assert lines[-1] == f"model = moss_vllm.load({str(tmp_path / 'out')!r})"


def test_what_cannot_be_attached_to_is_refused_before_it_is_opened(tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "gemma3"}')
    told = (
        f"was given {base}, of model_type 'gemma3'; it takes an opened .*ForConditionalGeneration of Qwen2.5"
    )
    with pytest.raises(SystemExit, match=told):
        attach.main([str(base), "--out", str(out)])
    (base / "config.json").write_text('{"model_type": "qwen2_5_vl", "vision_config": {"depth": "many"}}')
    with pytest.raises(SystemExit, match=r"config.json: .*'depth' expected int, got str .*; fetch it again"):
        attach.main([str(base), "--out", str(out)])
    assert not out.exists()
    out.mkdir()
    (out / "x").touch()
    with pytest.raises(SystemExit, match="out exists and is not empty; name a new folder"):
        attach.main([str(base), "--out", str(out)])
