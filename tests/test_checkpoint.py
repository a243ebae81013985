"""Owns: a checkpoint folder reloads alone to exactly the model that was saved, or is refused by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen2Config

from moss_vllm.data.chat import Turn, collate, encode
from moss_vllm.optim import VIDEO_LLM_RATES, parameter_groups
from moss_vllm.training import AnswerLoss
from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.checkpoint import ADAPTER_FILE, RUN_FILE
from moss_vllm.vlm.miniature import MINIATURE
from moss_vllm.vlm.video_llama3 import MossVideoLlama3ForConditionalGeneration


@pytest.fixture(scope="module")
def batch(processor, noise_clip):
    turn = Turn("What moves?", "The red circle moves left.")
    examples = [encode(processor, noise_clip(seed), [turn]) for seed in range(2)]
    return collate(examples, pad_id=processor.tokenizer.pad_token_id)


def train(tiny_base, moss, batch):
    """Two large steps, after which every trained weight and statistic differs from its start."""
    torch.manual_seed(0)
    model = checkpoint.attach_lora(checkpoint.load_base(tiny_base, moss=moss), rank=4, alpha=8, dropout=0.1)
    table = [row for row in VIDEO_LLM_RATES if moss is not None or row.name != "moss"]
    optimizer = torch.optim.AdamW([{**group, "lr": 0.01} for group in parameter_groups(model, table)])
    for _ in range(2):
        AnswerLoss(model.train())(**batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module", params=["moss", "plain"])
def saved(request, tiny_base, moss, batch, processor, tmp_path_factory):
    """A trained model and the folder it was saved to, with and without MOSS."""
    settings = moss if request.param == "moss" else None
    model = train(tiny_base, settings, batch)
    folder = tmp_path_factory.mktemp(request.param) / "a_run" / "step-000002"
    run = {"base_model": str(tiny_base), "base_revision": None, "moss": settings, "step": 2}
    checkpoint.save(folder, model, processor, run)
    return model, folder


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the folder, to be damaged."""
    return shutil.copytree(saved[1], tmp_path / "step-000002")


def test_everything_trained_survives_exactly(saved, batch, tiny_base):
    model, folder = saved
    loaded = checkpoint.load(folder)
    assert not loaded.model.training and loaded.name == "a_run" and loaded.run["step"] == 2
    assert set(loaded.run["versions"]) == {"python", *checkpoint.VERSIONED}
    before, after = checkpoint.trained_state(model), checkpoint.trained_state(loaded.model)
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    with torch.no_grad():
        expected = model(**batch).logits
        assert torch.equal(loaded.model(**batch).logits, expected)
        assert not torch.allclose(checkpoint.load_base(tiny_base).eval()(**batch).logits, expected, atol=0.1)


def test_batch_norm_statistics_survive(saved):
    model, folder = saved
    loaded = checkpoint.load(folder)
    pairs = [
        (a, b)
        for (name, a), b in zip(model.named_modules(), loaded.model.modules(), strict=True)
        if isinstance(a, nn.BatchNorm2d) and "modules_to_save" in name
    ]
    has_moss = isinstance(model.get_base_model(), MossVideoLlama3ForConditionalGeneration)
    assert len(pairs) == (8 if has_moss else 0)
    for a, b in pairs:
        assert a.running_mean.abs().max() > 0 and not torch.equal(
            a.running_var, torch.ones_like(a.running_var)
        )
        assert torch.equal(a.running_mean, b.running_mean) and torch.equal(a.running_var, b.running_var)
        assert int(a.num_batches_tracked) == int(b.num_batches_tracked) == 2


def test_the_processor_travels_along(saved, processor):
    again = checkpoint.load(saved[1]).processor
    text = "<|im_start|>user\nWhat moves?"
    assert again.tokenizer(text)["input_ids"] == processor.tokenizer(text)["input_ids"]
    assert again.chat_template == processor.chat_template


def test_the_frozen_base_is_not_copied_into_it(saved, tiny_base):
    size = (saved[1] / ADAPTER_FILE).stat().st_size
    assert size < (tiny_base / "model.safetensors").stat().st_size / 2
    assert not any(".original_module." in name for name in load_file(saved[1] / ADAPTER_FILE))


# ---- what is refused


def change_run(folder, **values):
    run = json.loads((folder / RUN_FILE).read_text())
    (folder / RUN_FILE).write_text(json.dumps({**run, **values}))


def change_adapter(folder, change):
    weights = load_file(folder / ADAPTER_FILE)
    change(weights)
    save_file(weights, folder / ADAPTER_FILE, {"format": "pt"})


def test_a_missing_adapter_file_is_refused(copy):
    (copy / ADAPTER_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=f"{ADAPTER_FILE} is missing; the checkpoint is incomplete"):
        checkpoint.load(copy)


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
@pytest.mark.parametrize("kept_bytes", [0, 5, 2000, -1])
def test_an_adapter_file_cut_short_is_refused(copy, kept_bytes):
    file = copy / ADAPTER_FILE
    file.write_bytes(file.read_bytes()[:kept_bytes])
    with pytest.raises(ValueError, match=rf"{ADAPTER_FILE}: cannot be read .*; the file is cut short"):
        checkpoint.load(copy)


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
@pytest.mark.parametrize("lost", ["order1.fuse.conv.weight", "order2.block1.batch_norm.running_mean"])
def test_a_missing_moss_weight_or_statistic_is_refused(copy, lost):
    name = f"vision_model.moss.{lost}"
    change_adapter(copy, lambda weights: weights.pop(f"base_model.model.model.{name}"))
    with pytest.raises(
        ValueError, match=f"does not fit the base model, 1 weights .*: {name}; check base_model"
    ):
        checkpoint.load(copy)


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
def test_an_adapter_with_moss_and_a_run_without_is_refused(copy):
    change_run(copy, moss=None)
    with pytest.raises(
        ValueError, match=r"does not fit the base model.*vision_model\.moss\..*moss in run\.json"
    ):
        checkpoint.load(copy)


@pytest.mark.parametrize("saved", ["plain"], indirect=True)
def test_an_adapter_without_moss_and_a_run_with_it_is_refused(copy, moss):
    change_run(copy, moss=moss)
    with pytest.raises(ValueError, match=r"does not fit the base model.*vision_model\.moss\."):
        checkpoint.load(copy)


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
def test_moss_of_another_size_is_refused(copy, moss):
    change_run(copy, moss={**moss, "moss_d_fuse": 16})
    with pytest.raises(ValueError, match=r"does not fit the base model.*order1\.fuse"):
        checkpoint.load(copy)


def test_a_projector_of_another_shape_is_refused(copy):
    name = "base_model.model.model.projector.readout.0.bias"
    change_adapter(copy, lambda weights: weights.update({name: torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"1 weights .*: projector\.readout\.0\.bias; check"):
        checkpoint.load(copy)


@pytest.mark.parametrize("lost", ["base_model", "base_revision", "moss"])
def test_a_run_file_without_a_name_it_needs_is_refused(copy, lost):
    run = json.loads((copy / RUN_FILE).read_text())
    run.pop(lost)
    (copy / RUN_FILE).write_text(json.dumps(run))
    with pytest.raises(ValueError, match=rf"run\.json: .*{lost}"):
        checkpoint.load(copy)


def test_a_broken_run_file_is_named(copy):
    (copy / RUN_FILE).write_text('{"base_model": ')
    with pytest.raises(ValueError, match=r"run\.json"):
        checkpoint.load(copy)


@pytest.mark.parametrize("protocol", [None, [2.0], {"sample_fps": "2"}])
def test_a_protocol_that_is_none_is_named(copy, protocol):
    change_run(copy, protocol=protocol)
    with pytest.raises(ValueError, match="run.json: protocol=.* is not names with numbers"):
        checkpoint.load(copy)


def test_a_base_that_is_gone_is_named(copy, tmp_path):
    change_run(copy, base_model=str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match="gone: no config.json there"):
        checkpoint.load(copy)


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./nowhere", "nowhere", "~/no/such/folder"])
def test_a_path_that_does_not_exist_is_named(source):
    with pytest.raises(FileNotFoundError, match=f"{source}: no config.json there; give a checkpoint folder"):
        checkpoint.load(source)


def test_the_folder_of_a_run_is_not_taken_for_a_hub_id(saved, monkeypatch):
    runs = saved[1].parent.parent
    monkeypatch.chdir(runs.parent)
    with pytest.raises(FileNotFoundError, match="no config.json there; give a checkpoint folder"):
        checkpoint.load(f"{runs.name}/a_run")


def test_another_kind_of_model_is_refused(tmp_path):
    Qwen2Config(hidden_size=8).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type 'qwen2' is not native VideoLLaMA3"):
        checkpoint.load(tmp_path)


def test_the_authors_remote_code_release_is_refused(tmp_path):
    auto_map = {"AutoConfig": "configuration_videollama3.Videollama3Qwen2Config"}
    config = {"model_type": "videollama3_qwen2", "auto_map": auto_map}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"'videollama3_qwen2' is not native .*; convert the authors'"):
        checkpoint.load(tmp_path)


def test_a_base_without_some_of_its_weights_is_refused(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    lost = weights.pop("model.projector.readout.0.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"weights missing or left over: model\.projector\.readout\.0\.weight"
    ):
        checkpoint.load(folder)
    assert lost.any()


# ---- names


def test_resolve(tiny_base, monkeypatch):
    assert checkpoint.resolve("miniature") == str(MINIATURE)
    assert checkpoint.resolve("DAMO-NLP-SG/VideoLLaMA3-2B") == "DAMO-NLP-SG/VideoLLaMA3-2B"
    assert checkpoint.resolve(tiny_base) == checkpoint.resolve(str(tiny_base)) == str(tiny_base)
    monkeypatch.chdir(tiny_base.parent.parent)
    relative = f"{tiny_base.parent.name}/{tiny_base.name}"  # looks like a hub id, and is a folder
    assert checkpoint.resolve(relative) == relative
    monkeypatch.setenv("HOME", str(tiny_base.parent))
    assert checkpoint.resolve("~/tiny") == str(tiny_base)


def test_a_base_loads_plain_with_what_it_says_of_itself(tiny_base, moss):
    loaded = checkpoint.load(tiny_base)
    assert loaded.run == {"moss": moss} == checkpoint.base_record(tiny_base)
    assert loaded.name == str(tiny_base) and not loaded.model.training
    assert loaded.model.dtype == torch.float32
    assert checkpoint.load(tiny_base, dtype=torch.bfloat16).model.dtype == torch.bfloat16
