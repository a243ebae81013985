"""Owns: a merged model answers as its checkpoint, opens through Auto classes, our `load` and the scripts."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, VideoLlama3Config

from moss_vllm.commands.scripts import merge
from moss_vllm.data.rows import Turn
from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.adapter import attach_lora, trained_state
from moss_vllm.vlm.base import load_base, moss_to_train
from moss_vllm.vlm.places import base_record
from moss_vllm.vlm.reload_check import next_logits
from moss_vllm.vlm.video_llama3.chat import collate, encode
from moss_vllm.vlm.video_llama3.model import MossVideoLlama3ForConditionalGeneration


@pytest.fixture(scope="module", params=["moss", "plain"])
def trained(request, tiny_base, moss, processor, tmp_path_factory):
    """A checkpoint whose every trained weight and statistic is random, and its own logits."""
    settings = moss if request.param == "moss" else None
    torch.manual_seed(0)
    model = attach_lora(load_base(tiny_base, moss=settings), rank=4, alpha=8, dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    for name, value in trained_state(model).items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(value + 0.1 * (noise.abs() if "running_var" in name else noise))
    folder = tmp_path_factory.mktemp(request.param) / "a_run" / "step-000002"
    run = {"moss": settings, "protocol": {"short_side_px": 56}, "step": 2, "command": "recipes/favor_lora.py"}
    checkpoint.save(folder, model, processor, run)
    return folder, next_logits(model.eval(), processor)


@pytest.fixture(scope="module")
def merged(trained, tmp_path_factory):
    """The folder it is merged into, in float32."""
    out = tmp_path_factory.mktemp("merged") / "model"
    merge.main([str(trained[0]), str(out), "--precision", "fp32"])
    return out


def test_it_answers_as_the_checkpoint(trained, merged, tiny_base):
    loaded = checkpoint.load(merged)
    logits = next_logits(loaded.model, loaded.processor)
    torch.testing.assert_close(logits, trained[1], atol=1e-4, rtol=1e-4)
    plain = checkpoint.load(tiny_base)
    assert (next_logits(plain.model, plain.processor) - logits).abs().max() > 0.5
    assert loaded.run["protocol"] == {"short_side_px": 56} and loaded.run["merged_from"] == "a_run"
    assert not list(merged.parent.glob(".*"))


def test_auto_classes_open_it_complete(trained, merged, noise_clip, processor):
    has_moss = json.loads((trained[0] / "run.json").read_text())["moss"] is not None
    model, info = AutoModelForImageTextToText.from_pretrained(merged, output_loading_info=True)
    assert not any(info.values()) and model.dtype == torch.float32
    assert isinstance(model, MossVideoLlama3ForConditionalGeneration) is has_moss
    assert (AutoConfig.from_pretrained(merged).model_type == VideoLlama3Config.model_type) is not has_moss
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    again = AutoProcessor.from_pretrained(merged)
    assert again.chat_template == processor.chat_template
    batch = collate([encode(again, noise_clip(), [Turn("What moves?")])], pad_id=0)
    with torch.no_grad():
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        expected = checkpoint.load(trained[0]).model(**inputs).logits
        torch.testing.assert_close(model.eval()(**inputs).logits, expected, atol=1e-3, rtol=1e-3)


def test_no_trace_of_peft_is_left(merged):
    names = load_file(merged / "model.safetensors")
    assert not any("lora" in name or "modules_to_save" in name or "base_layer" in name for name in names)
    assert not (merged / "adapter_config.json").exists() and not (merged / "run.json").exists()


@pytest.mark.parametrize("trained", ["moss"], indirect=True)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_is_written_and_the_difference_told(trained, tmp_path, dtype, capsys):
    out = tmp_path / "half"
    difference = merge.main([str(trained[0]), str(out), "--precision", dtype])
    assert 0 < difference < 0.1 * trained[1].abs().max()
    assert f"logits differ by at most {difference:.2g}; the largest is" in capsys.readouterr().out
    stored = {value.dtype for value in load_file(out / "model.safetensors").values()}
    assert stored == {merge.DTYPES[dtype], torch.int64}  # BatchNorm counts its batches
    for asked in (torch.float32, torch.bfloat16):
        loaded = checkpoint.load(out, dtype=asked)
        statistics = [v for n, v in loaded.model.state_dict().items() if "running_var" in n]
        assert len(statistics) == 8 and all(value.dtype == torch.float32 for value in statistics)
        logits = next_logits(loaded.model, loaded.processor)
        assert logits.isfinite().all()
        if asked == torch.float32:
            assert (logits - trained[1]).abs().max() == pytest.approx(difference, rel=1e-4)


@pytest.mark.parametrize("trained", ["moss"], indirect=True)
def test_a_merged_model_is_a_base_for_further_training(trained, merged, moss, processor, tmp_path):
    recorded = moss_to_train(merged)  # what the recipe asks for
    assert recorded == base_record(merged)["moss"] and recorded.items() >= moss.items()
    base = load_base(merged, moss=recorded)
    model = attach_lora(base, rank=2, alpha=2, dropout=0.0).eval()
    torch.testing.assert_close(next_logits(model, processor), trained[1], atol=1e-4, rtol=1e-4)
    checkpoint.save(tmp_path / "next", model, processor, {"moss": moss})
    checkpoint.check_reload(tmp_path / "next", model, trained_state(model))
    with pytest.raises(ValueError, match=r"has a MOSS already, with moss_d_fuse=12 \(asked for: 16\)"):
        load_base(merged, moss={**moss, "moss_d_fuse": 16})


@pytest.mark.parametrize("trained", ["moss"], indirect=True)
def test_a_merged_moss_is_not_trained_without(merged, recipe):
    settings = recipe.FavorLora(model=str(merged), use_moss=False)
    with pytest.raises(ValueError, match="has a MOSS already; leave --no-use-moss out"):
        recipe.build_model(settings, None, torch.device("cpu"))


@pytest.mark.parametrize("trained", ["moss"], indirect=True)
def test_a_merged_model_without_some_of_moss_is_refused(merged, tmp_path):
    model = load_base(merged)
    state = {name: value for name, value in model.state_dict().items() if "order1.fuse" not in name}
    model.save_pretrained(tmp_path / "half", state_dict=state)
    with pytest.raises(ValueError, match=r"weights missing or left over: .*moss\.order1\.fuse"):
        checkpoint.load(tmp_path / "half")


@pytest.mark.parametrize("trained", ["plain"], indirect=True)
def test_a_plain_one_keeps_what_its_base_says_of_moss(merged, moss):
    record = base_record(merged)
    assert record["moss"] is None and record["moss_to_train"] == moss
    wanted = moss_to_train(merged)
    assert wanted == {"moss_after_layer": 6, "moss_orders": [1, 2], "moss_input_fc": True, **moss}
    assert load_base(merged, moss=wanted).model.vision_model.moss is not None


def test_its_weights_can_be_read_by_whoever_reads_its_config(merged):
    assert {file.stat().st_mode for file in merged.iterdir()} == {(merged / "config.json").stat().st_mode}


@pytest.mark.parametrize("trained", ["moss"], indirect=True)
def test_a_config_that_leaves_out_some_of_moss_is_refused(merged, tmp_path):
    folder = shutil.copytree(merged, tmp_path / "merged")
    config = json.loads((folder / "config.json").read_text())
    del config["vision_config"]["moss_after_layer"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not describe its MOSS: .* has no moss_after_layer; merge"):
        checkpoint.load(folder)


@pytest.mark.parametrize("trained", ["moss"], indirect=True)
def test_what_answers_otherwise_is_not_written(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(merge.ALLOWED, "bf16", 1e-9)
    with pytest.raises(SystemExit, match="merged in bf16 does not answer like the checkpoint"):
        merge.main([str(trained[0]), str(tmp_path / "out")])
    assert list(tmp_path.iterdir()) == []


def test_a_base_is_not_merged(tiny_base, tmp_path):
    with pytest.raises(SystemExit, match=r"tiny has no run\.json, so there is nothing to merge"):
        merge.main([str(tiny_base), str(tmp_path / "out")])
