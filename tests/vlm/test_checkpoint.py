"""Owns: a checkpoint folder reloads alone to exactly the model that was saved, or is refused by name."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModel, PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText, Qwen2Config, VideoLlama3ForConditionalGeneration

from moss_vllm.runtime.provenance import RUN_FILE
from moss_vllm.training.optim import VIDEO_LLM_RATES, parameter_groups
from moss_vllm.vlm import base, checkpoint
from moss_vllm.vlm.adapter import SETTINGS_FILE
from moss_vllm.vlm.checkpoint import ADAPTER_FILE
from moss_vllm.vlm.loss import AnswerLoss
from moss_vllm.vlm.video_llama3.chat import Turn, collate, encode
from moss_vllm.vlm.video_llama3.miniature import MINIATURE
from moss_vllm.vlm.video_llama3.model import MOSS_FIELDS, MossVideoLlama3ForConditionalGeneration


@pytest.fixture(scope="module")
def batch(processor, noise_clip):
    turn = Turn("What moves?", "The red circle moves left.")
    examples = [encode(processor, noise_clip(seed), [turn]) for seed in range(2)]
    return collate(examples, pad_id=processor.tokenizer.pad_token_id)


def train(tiny_base, moss, batch, **how):
    """Two large steps, after which every trained weight and statistic differs from its start."""
    torch.manual_seed(0)
    opened = checkpoint.load_base(tiny_base, moss=moss, **how)
    model = checkpoint.attach_lora(opened, rank=4, alpha=8, dropout=0.1)
    table = [row for row in VIDEO_LLM_RATES if moss is not None or row.name != "moss"]
    optimizer = torch.optim.AdamW([{**group, "lr": 0.01} for group in parameter_groups(model, table)])
    for _ in range(2):
        AnswerLoss(model.train(), how.get("dtype"))(**batch).backward()
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


def edit_json(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


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


def test_the_folder_says_where_its_base_is(saved, tiny_base):
    run = json.loads((saved[1] / RUN_FILE).read_text())
    assert run["base_model"] == str(tiny_base) and run["base_revision"] is None
    assert run["base_fingerprint"] == checkpoint.base_fingerprint(tiny_base)
    assert not (saved[1] / "README.md").exists()  # peft's form


def test_a_state_gathered_elsewhere_makes_the_same_files(saved, processor, tmp_path):
    """As under ZeRO-3, where the model's own tensors are empty."""
    model, folder = saved
    state = {name: value.detach().clone() for name, value in checkpoint.trained_state(model).items()}
    kept = {name: parameter.data for name, parameter in model.named_parameters() if name in state}
    try:
        for name, parameter in model.named_parameters():
            parameter.data = torch.empty(0) if name in state else parameter.data
        checkpoint.save(tmp_path / "gathered", model, processor, checkpoint.read_run(folder), state=state)
    finally:
        for name, parameter in model.named_parameters():
            parameter.data = kept.get(name, parameter.data)
    for name in (ADAPTER_FILE, SETTINGS_FILE, RUN_FILE):
        assert (tmp_path / "gathered" / name).read_bytes() == (folder / name).read_bytes(), name


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda state, name: state.pop(name), r"of the trained weights 1 missing \(vision_model"),
        (
            lambda state, name: state.update({name: torch.empty(0)}),
            r"1 empty \(.*with ZeRO-3 or FSDP `state`",
        ),
        (lambda state, name: state[name].view(-1)[0:1].fill_(float("nan")), r"1 not finite \(vision_model"),
        (lambda state, name: state.update(extra=torch.ones(1)), r"1 left over \(extra\)"),
    ],
)
def test_what_must_not_be_saved_is_not(saved, processor, tmp_path, spoil, message):
    state = {name: value.detach().clone() for name, value in checkpoint.trained_state(saved[0]).items()}
    spoil(state, next(iter(state)))
    with pytest.raises(ValueError, match=rf"new is not written: .*{message}"):
        checkpoint.save(tmp_path / "new", saved[0], processor, {"moss": None}, state=state)
    assert not (tmp_path / "new").exists()


def test_restore_puts_everything_trained_into_another_model(saved, tiny_base, moss):
    model, folder = saved
    has_moss = isinstance(model.get_base_model(), MossVideoLlama3ForConditionalGeneration)
    opened = checkpoint.load_base(tiny_base, moss=moss if has_moss else None)
    other = checkpoint.attach_lora(opened, rank=4, alpha=8, dropout=0.1)
    checkpoint.restore(folder, other)
    before, after = checkpoint.trained_state(model), checkpoint.trained_state(other)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert any(parameter.requires_grad for parameter in other.parameters())
    assert not any(parameter.requires_grad for parameter in checkpoint.load(folder).model.parameters())
    another = checkpoint.attach_lora(checkpoint.load_base(tiny_base), rank=2, alpha=8, dropout=0.1)
    message = "holds MOSS and" if has_moss else "of another shape .* and the rank of LoRA"
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(folder, another)


def test_what_moss_was_is_written_in_full_whatever_was_passed(saved, copy, processor):
    model, folder = saved
    config = model.get_base_model().config.vision_config
    run = checkpoint.read_run(folder)
    if run["moss"] is None:
        assert not hasattr(model.get_base_model().model.vision_model, "moss")
        return
    assert run["moss"].keys() == set(MOSS_FIELDS)
    assert all(list(v) == list(getattr(config, n)) for n, v in run["moss"].items() if isinstance(v, list))
    assert all(v == getattr(config, n) for n, v in run["moss"].items() if not isinstance(v, list))
    for name in MOSS_FIELDS:  # nothing of it is this version's default
        change_run(copy, moss={key: value for key, value in run["moss"].items() if key != name})
        with pytest.raises(
            ValueError, match=rf"run\.json: moss does not say {name}, which this version does"
        ):
            checkpoint.load(copy)


def test_its_files_can_be_read_by_whoever_may(saved, processor, tmp_path):
    before = os.umask(0o027)
    try:
        checkpoint.save(tmp_path / "shared", saved[0], processor, {})
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "shared").iterdir()} == {0o640}


def test_a_base_is_recorded_by_its_whole_path(tiny_base, monkeypatch):
    (tiny_base.parent / "below").mkdir(exist_ok=True)
    monkeypatch.chdir(tiny_base.parent / "below")
    assert checkpoint.load_base("../tiny").opened_from["base_model"] == str(tiny_base.resolve())


# ---- plain peft


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own
def test_plain_peft_refuses_moss_and_opens_a_checkpoint_without(saved, tiny_base, batch):
    model, folder = saved
    plain = VideoLlama3ForConditionalGeneration.from_pretrained(tiny_base)
    if checkpoint.read_run(folder)["moss"] is None:
        opened = PeftModel.from_pretrained(plain, folder)
        with torch.no_grad():
            torch.testing.assert_close(opened(**batch).logits, model(**batch).logits)
        return
    for attempt in (
        lambda: PeftModel.from_pretrained(plain, folder),
        lambda: PeftConfig.from_pretrained(folder),
        lambda: AutoPeftModel.from_pretrained(folder),
        lambda: plain.load_adapter(str(folder)),
        lambda: AutoModelForImageTextToText.from_pretrained(folder),
    ):
        with pytest.raises(KeyError, match="LORA with MOSS: open it with moss_vllm.vlm.checkpoint.load"):
            attempt()


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
def test_a_checkpoint_from_before_that_peft_did_not_refuse_opens(saved, copy):
    change_settings(copy, peft_type="LORA")
    after = checkpoint.trained_state(checkpoint.load(copy).model)
    assert all(torch.equal(value, after[name]) for name, value in checkpoint.trained_state(saved[0]).items())


@pytest.mark.slow
@pytest.mark.parametrize("saved", ["moss"], indirect=True)
def test_plain_peft_refuses_moss_in_a_process_without_this_package(saved, tiny_base):
    code = (
        "import sys\nfrom peft import PeftModel\n"
        "from transformers import AutoModelForImageTextToText as Auto\n"
        f"base = Auto.from_pretrained({str(tiny_base)!r})\nassert 'moss_vllm' not in sys.modules\n"
        f"PeftModel.from_pretrained(base, {str(saved[1])!r})"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert (
        done.stderr.strip().splitlines()[-1].startswith("KeyError: 'LORA with MOSS: open it with moss_vllm")
    )


# ---- the self-test


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
def test_next_logits_leave_the_model_as_it_was(saved, processor):
    model, folder = saved
    base_model = model.get_base_model()
    try:
        model.train()
        base_model.model.projector.eval()
        modes = [module.training for module in model.modules()]
        before = {name: value.clone() for name, value in model.state_dict().items()}
        logits = checkpoint.next_logits(model, processor)
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    finally:
        model.eval()
    assert logits.shape == (base_model.config.text_config.vocab_size,) and not logits.requires_grad
    assert torch.equal(logits, checkpoint.next_logits(model, processor))  # dropout was off


@pytest.mark.parametrize("part", ["lora_B", ".moss.order2.fuse.conv.weight", "running_mean", "projector"])
@pytest.mark.parametrize("saved", ["moss"], indirect=True)
def test_verify_notices_one_bit_that_was_not_saved(saved, copy, part):
    def damage(weights):
        name = next(name for name in weights if part in name)
        flat = weights[name].view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(torch.inf))

    checkpoint.verify(copy, saved[0], checkpoint.trained_state(saved[0]))
    change_adapter(copy, damage)
    with pytest.raises(
        RuntimeError, match=f"step-000002 does not reload .* it differs in .*{part[6:]}.*; do not use"
    ):
        checkpoint.verify(copy, saved[0], checkpoint.trained_state(saved[0]))


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
def test_verify_notices_other_settings_of_the_same_weights(saved, copy):
    edit_json(copy / "adapter_config.json", lora_alpha=3)
    with pytest.raises(RuntimeError, match=r"it differs in alpha 3 \(was \d+\); do not use"):
        checkpoint.verify(copy, saved[0], checkpoint.trained_state(saved[0]))
    shutil.copy(saved[1] / "adapter_config.json", copy)
    edit_json(copy / "run.json", moss={**checkpoint.read_run(copy)["moss"], "moss_after_layer": 1})
    with pytest.raises(
        RuntimeError, match=r"it differs in MOSS .*'moss_after_layer': 1.* \(was .*\); do not use"
    ):
        checkpoint.verify(copy, saved[0], checkpoint.trained_state(saved[0]))


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
def test_verify_makes_no_second_model(saved, monkeypatch):
    held, make = [], checkpoint._open_adapter
    monkeypatch.setattr(checkpoint, "_open_adapter", lambda *given: held.append(make(*given)) or held[0])
    checkpoint.verify(saved[1], saved[0], checkpoint.trained_state(saved[0]))
    with_memory = {name for name, value in held[0].state_dict().items() if not value.is_meta}
    assert {name for name in with_memory if ".original_module." not in name} == checkpoint.trained_state(
        saved[0]
    ).keys()


# ---- half precision


def test_on_a_bfloat16_base_what_is_trained_stays_float32(tiny_base, moss, batch, processor, tmp_path):
    model = train(tiny_base, moss, batch, dtype=torch.bfloat16)
    trained = checkpoint.trained_state(model)
    frozen = [p for n, p in model.named_parameters() if not p.requires_grad and ".moss." not in n]
    assert {value.dtype for value in trained.values()} == {torch.float32, torch.int64}
    assert {parameter.dtype for parameter in frozen} == {torch.bfloat16}
    means = [value for name, value in trained.items() if "running_mean" in name]
    assert len(means) == 8 and all((mean != mean.to(torch.bfloat16)).any() for mean in means)
    checkpoint.save(tmp_path / "half", model, processor, {"moss": moss})
    loaded = checkpoint.load(tmp_path / "half", dtype=torch.bfloat16)
    after = checkpoint.trained_state(loaded.model)
    assert all(torch.equal(value, after[name]) for name, value in trained.items())
    checkpoint.verify(tmp_path / "half", model, trained)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad(), loaded.autocast():
        logits = loaded.model(**inputs).logits
        ids = loaded.model.generate(**inputs, max_new_tokens=3, do_sample=False)
    with torch.no_grad():
        exact = checkpoint.load(tmp_path / "half").model(**inputs).logits
    assert logits.dtype == torch.bfloat16 and ids.shape[1] == inputs["input_ids"].shape[1] + 3
    assert (logits - exact).norm() < 0.3 * exact.norm()


def test_autocast_is_for_half_precision_only(tiny_base):
    for dtype, enabled in ((None, False), (torch.bfloat16, True), (torch.float16, True)):
        with checkpoint.load(tiny_base, dtype=dtype).autocast():
            assert torch.is_autocast_enabled("cpu") is enabled
            assert not enabled or torch.get_autocast_dtype("cpu") == dtype


# ---- 4 bits


def test_four_bits_without_bitsandbytes_names_the_extra(tiny_base, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r'needs bitsandbytes .*: pip install -e "\.\[quantize\]"'):
        checkpoint.load_base(tiny_base, quantize=True)


def test_a_base_in_four_bits_trains_saves_and_loads(tiny_base, moss, batch, processor, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = train(tiny_base, moss, batch, quantize=True)
    packed = [name for name, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(packed) == 4 * 7 and all(".language_model.layers." in name for name in packed)
    trained = checkpoint.trained_state(model)
    assert {value.dtype for value in trained.values()} == {torch.float32, torch.int64}
    assert all(value.any() for name, value in trained.items() if ".lora_B." in name)
    checkpoint.save(tmp_path / "packed", model, processor, {"moss": moss})
    checkpoint.verify(tmp_path / "packed", model, trained)
    expected = checkpoint.next_logits(model, processor)
    loaded = checkpoint.load(tmp_path / "packed", quantize=True)
    torch.testing.assert_close(checkpoint.next_logits(loaded.model, processor), expected, atol=1e-5, rtol=0)


# ---- attention


@pytest.fixture
def flash(monkeypatch):
    """flash-attn as installed where it works."""
    module = types.ModuleType("flash_attn")
    module.__version__ = "2.8"
    monkeypatch.setitem(sys.modules, "flash_attn", module)


def test_attention_is_flash_where_it_runs(flash):
    assert checkpoint.choose_attention("cuda:1", torch.bfloat16) == ("flash_attention_2", "flash-attn 2.8")
    assert checkpoint.choose_attention("cuda", torch.float16)[0] == "flash_attention_2"
    assert checkpoint.choose_attention("cpu", torch.bfloat16) == (
        "sdpa",
        "flash-attn needs a CUDA device, this is cpu",
    )
    for dtype in (None, torch.float32):
        reason = "flash-attn needs a bf16 or fp16 base, this one is torch.float32"
        assert checkpoint.choose_attention("cuda", dtype) == ("sdpa", reason)


def test_attention_without_flash_says_why(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    if not __import__("importlib.util").util.find_spec("flash_attn"):
        name, reason = checkpoint.choose_attention("cuda", torch.bfloat16)
        assert name == "sdpa" and reason.startswith("flash-attn is not installed: pip install flash-attn")
    (tmp_path / "flash_attn.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    assert checkpoint.choose_attention("cuda", torch.bfloat16) == (
        "sdpa",
        "flash-attn is installed but does not load: undefined symbol: _ZN3c10",
    )


def test_the_attention_asked_for_is_used(tiny_base):
    for source in (None, "eager"):
        model = checkpoint.load(tiny_base, attention=source).model
        assert model.config._attn_implementation == (source or "sdpa")


# ---- which base


def test_a_fingerprint_is_of_the_weights_not_of_how_they_are_stored(tiny_base, tmp_path):
    expected = checkpoint.base_fingerprint(tiny_base)
    model = checkpoint.load_base(tiny_base)
    assert model.opened_from["base_fingerprint"] == expected
    model.save_pretrained(tmp_path / "shards", max_shard_size="1MB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert checkpoint.base_fingerprint(tmp_path / "shards") == expected
    assert checkpoint.base_fingerprint(tmp_path / "half") == expected


@pytest.mark.parametrize("name", ["model.language_model.layers.3.mlp.up_proj.weight", "lm_head.weight"])
def test_a_base_trained_further_has_another_fingerprint(tiny_base, tmp_path, name):
    folder = shutil.copytree(tiny_base, tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    weights[name] = weights.get(name, torch.zeros(2, 2)) + 0.1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert checkpoint.base_fingerprint(folder) != checkpoint.base_fingerprint(tiny_base)


def test_another_base_at_the_same_place_is_refused(saved, copy, tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    change_run(copy, base_model=str(folder))
    checkpoint.load(copy)  # a moved base is the same base
    weights = load_file(folder / "model.safetensors")
    weights["model.language_model.layers.0.self_attn.q_proj.weight"] *= 1.5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"base is not the base that .*step-000002 was trained on \(fingerprint"
    ):
        checkpoint.load(copy)


def test_a_checkpoint_on_the_hub_opens_by_its_name(saved, monkeypatch):
    folder = saved[1]
    asked = []

    def fetch(repo_id, name, revision=None):
        if repo_id == "someone/trained" and (folder / name).is_file():
            return str(folder / name)
        raise base.EntryNotFoundError(name)

    def fetch_all(repo_id, allow_patterns):
        asked.append((repo_id, allow_patterns))
        return str(folder)

    monkeypatch.setattr(base, "hf_hub_download", fetch)
    monkeypatch.setattr(checkpoint, "snapshot_download", fetch_all)
    loaded = checkpoint.load("someone/trained")
    assert loaded.name == "someone/trained" and loaded.run["step"] == 2
    assert asked == [("someone/trained", ["*.json", "*.jinja", "*.txt", "*.safetensors"])]


def test_a_base_of_the_hub_is_recorded_with_its_commit(tiny_base, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = shutil.copytree(tiny_base, tmp_path / "models--someone--base" / "snapshots" / commit)

    def fetch(repo_id, name, revision=None):
        assert (repo_id, revision) == ("someone/base", "main")
        if (snapshot / name).is_file():
            return str(snapshot / name)
        raise base.EntryNotFoundError(name)

    monkeypatch.setattr(base, "hf_hub_download", fetch)
    assert base._origin("someone/base", "main") == {
        "base_model": "someone/base",
        "base_revision": commit,
        "base_fingerprint": checkpoint.base_fingerprint(tiny_base),
    }


def test_a_head_that_should_be_tied_and_is_not_is_refused(tiny_base):
    model = checkpoint.load_base(tiny_base)
    assert model.config.tie_word_embeddings
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    with pytest.raises(ValueError, match="ties the head to the embedding and the loaded head is another"):
        base._check_tied(tiny_base, model)


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
        ValueError,
        match=rf"does not fit the base model: of its weights 1 missing \({name}\); check base_model",
    ):
        checkpoint.load(copy)


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
def test_an_adapter_with_moss_and_a_run_without_is_refused(copy):
    change_run(copy, moss=None)
    with pytest.raises(
        ValueError, match=r"holds MOSS and its base was opened without; the setting moss \(in run\.json"
    ):
        checkpoint.load(copy)


@pytest.mark.parametrize("saved", ["plain"], indirect=True)
def test_an_adapter_without_moss_and_a_run_with_it_is_refused(copy, tiny_base):
    change_run(copy, moss=checkpoint.moss_to_train(tiny_base))
    with pytest.raises(ValueError, match=r"holds no MOSS and its base was opened with MOSS; the setting"):
        checkpoint.load(copy)


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
def test_moss_of_another_size_is_refused(copy):
    change_run(copy, moss={**checkpoint.read_run(copy)["moss"], "moss_d_fuse": 16})
    with pytest.raises(
        ValueError, match=r"does not fit the base model: .* of another shape \(.*order1\.fuse"
    ):
        checkpoint.load(copy)


def test_a_projector_of_another_shape_is_refused(copy):
    name = "base_model.model.model.projector.readout.0.bias"
    change_adapter(copy, lambda weights: weights.update({name: torch.zeros(3)}))
    with pytest.raises(ValueError, match=r"1 of another shape \(projector\.readout\.0\.bias\); check"):
        checkpoint.load(copy)


@pytest.mark.parametrize("lost", ["base_model", "base_revision", "base_fingerprint", "moss"])
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
    message = f"is the folder of a run; give one of its checkpoints, such as {runs.name}/a_run/step-"
    with pytest.raises(FileNotFoundError, match=message):
        checkpoint.load(f"{runs.name}/a_run")


def test_another_kind_of_model_is_refused(tmp_path):
    Qwen2Config(hidden_size=8).save_pretrained(tmp_path)
    for opened in (checkpoint.load, checkpoint.load_base, checkpoint.load_processor):
        with pytest.raises(ValueError, match="model_type 'qwen2' is not native VideoLLaMA3"):
            opened(tmp_path)


def test_the_authors_remote_code_release_is_refused(tmp_path):
    auto_map = {"AutoConfig": "configuration_videollama3.Videollama3Qwen2Config"}
    config = {"model_type": "videollama3_qwen2", "auto_map": auto_map}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError,
        match=r"'videollama3_qwen2' is not native .*: python scripts/convert_videollama3.py SOURCE OUT",
    ):
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


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
@pytest.mark.parametrize(
    "name, value, fault",
    [
        ("vision_model.moss.order1.fuse.conv.weight", torch.empty(0), "empty"),
        ("vision_model.moss.order2.block1.batch_norm.running_var", float("inf"), "not finite"),
        ("language_model.layers.1.mlp.up_proj.lora_B.weight", float("nan"), "not finite"),
    ],
)
def test_empty_and_not_finite_weights_are_refused(copy, name, value, fault):
    def damage(weights):
        key = f"base_model.model.model.{name}"
        weights[key] = value if isinstance(value, torch.Tensor) else torch.full_like(weights[key], value)

    change_adapter(copy, damage)
    with pytest.raises(ValueError, match=rf"of its weights 1 {fault} \({name}\); check"):
        checkpoint.load(copy)


def test_a_weight_too_many_is_refused(copy):
    change_adapter(copy, lambda weights: weights.update({"base_model.model.lm_head.weight": torch.ones(1)}))
    with pytest.raises(ValueError, match=r"1 left over \(base_model\.model\.lm_head\.weight\)"):
        checkpoint.load(copy)


class Harm:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
@pytest.mark.parametrize("alone", [True, False])
def test_a_pickled_adapter_is_refused_and_not_opened(copy, tmp_path, alone):
    (copy / "adapter_model.bin").write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    if alone:
        (copy / ADAPTER_FILE).unlink()
    with pytest.raises(ValueError, match=r"adapter_model\.bin is a pickle, which can run code when opened"):
        checkpoint.load(copy)
    assert not (tmp_path / "harm").exists()


def change_settings(folder, **values):
    settings = json.loads((folder / SETTINGS_FILE).read_text())
    (folder / SETTINGS_FILE).write_text(json.dumps({**settings, **values}))


def test_the_adapters_settings_cannot_name_code_or_another_base(saved, copy, tmp_path, monkeypatch):
    (tmp_path / "harmful.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\nclass Model: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    change_settings(
        copy,
        auto_mapping={"base_model_class": "Model", "parent_library": "harmful"},
        base_model_name_or_path=str(tmp_path / "gone"),
        revision="elsewhere",
    )
    before, after = (checkpoint.trained_state(checkpoint.load(folder).model) for folder in (saved[1], copy))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not (tmp_path / "harm").exists() and "harmful" not in sys.modules


@pytest.mark.parametrize("saved", ["plain"], indirect=True)
@pytest.mark.parametrize(
    "values, message",
    [
        ({"use_dora": True}, "use_dora=True is not what this package trains with"),
        ({"use_rslora": True}, "use_rslora=True is not what"),
        ({"peft_type": "IA3"}, "peft_type='IA3' is not what"),
        ({"target_modules": ["q_proj"]}, r"target_modules=\['q_proj'\] is not what"),
        ({"new_thing": {"a": 1}}, "new_thing={'a': 1} is not what"),
        ({"r": 0}, "r=0, lora_alpha=8, lora_dropout=0.1 are not a rank from 1"),
        ({"lora_alpha": "8"}, "lora_alpha='8'"),
        ({"lora_dropout": 2}, "lora_dropout=2 are not"),
        ({"r": 8}, "r=8, and the rank of the weights beside it is 4"),
    ],
)
def test_settings_that_are_not_this_packages_are_refused(copy, values, message):
    change_settings(copy, **values)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(copy)


@pytest.mark.parametrize("saved", ["plain"], indirect=True)
def test_settings_that_cannot_be_read_are_named(copy):
    (copy / SETTINGS_FILE).write_text("[1]")
    with pytest.raises(ValueError, match=r"adapter_config\.json: cannot be read as JSON \(it holds a list"):
        checkpoint.load(copy)
    (copy / SETTINGS_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json is missing; the checkpoint is incom"):
        checkpoint.load(copy)


@pytest.mark.parametrize("saved", ["plain"], indirect=True)
def test_an_adapter_without_its_run_file_is_named(copy):
    (copy / RUN_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no run\.json, which names the base model"):
        checkpoint.load(copy)


@pytest.mark.parametrize("saved", ["plain"], indirect=True)
@pytest.mark.parametrize(
    "values, message",
    [
        ({"base_model": 3}, "base_model=3 is not text"),
        ({"base_revision": []}, r"base_revision=\[\] is not text"),
        ({"moss": [1]}, r"moss=\[1\] is not names with values, or null"),
        ({"moss": {}}, r"run\.json: moss does not say moss_after_layer, .*; write there what it was trained"),
        ({"moss": {"d_fuse": 12}}, r"unknown MOSS settings \['d_fuse'\]; known are"),
    ],
)
def test_a_run_file_with_wrong_values_is_named(copy, values, message):
    change_run(copy, **values)
    with pytest.raises(ValueError, match=message):
        checkpoint.load(copy)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_named(tiny_base, device):
    with pytest.raises(ValueError, match=rf"device='{device}' is not to be had here \(.*\); use 'cpu'"):
        checkpoint.load(tiny_base, device=device)


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
