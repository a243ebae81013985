"""Owns: a checkpoint folder reloads alone to exactly the model that was saved."""

import json
import os
import subprocess
import sys

import pytest
import torch
from checkpoint_edits import edit_json, train
from peft import AutoPeftModel, PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, VideoLlama3ForConditionalGeneration

from moss_vllm.runtime.provenance import RUN_FILE
from moss_vllm.runtime.versions import versions
from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.adapter import ADAPTER_CONFIG, ADAPTER_FILE, attach_lora, trained_state
from moss_vllm.vlm.base import load_base
from moss_vllm.vlm.places import base_fingerprint, base_record
from moss_vllm.vlm.reload_check import next_logits
from moss_vllm.vlm.video_llama3.model import MOSS_FIELDS, MossVideoLlama3ForConditionalGeneration


def test_everything_trained_survives_exactly(saved, batch, tiny_base):
    model, folder = saved
    loaded = checkpoint.load(folder)
    assert not loaded.model.training and loaded.name == "a_run" and loaded.run["step"] == 2
    assert loaded.run["versions"] == versions()
    before, after = trained_state(model), trained_state(loaded.model)
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    means, variances, steps = (
        [value for name, value in after.items() if name.endswith(end)]
        for end in ("running_mean", "running_var", "num_batches_tracked")
    )
    assert [len(means), len(variances), *steps] == ([8, 8, *[2] * 8] if loaded.run["moss"] else [0, 0])
    assert all(mean.any() and (variance != 1).any() for mean, variance in zip(means, variances, strict=True))
    with torch.no_grad():
        expected = model(**batch).logits
        assert torch.equal(loaded.model(**batch).logits, expected)
        assert not torch.allclose(load_base(tiny_base).eval()(**batch).logits, expected, atol=0.1)


def test_the_folder_has_the_processor_and_names_its_base_which_is_not_copied(saved, processor, tiny_base):
    folder = saved[1]
    again = checkpoint.load(folder).processor
    text = "<|im_start|>user\nWhat moves?"
    assert again.tokenizer(text)["input_ids"] == processor.tokenizer(text)["input_ids"]
    assert again.chat_template == processor.chat_template
    assert (folder / ADAPTER_FILE).stat().st_size < (tiny_base / "model.safetensors").stat().st_size / 2
    assert not any(".original_module." in name for name in load_file(folder / ADAPTER_FILE))
    run = json.loads((folder / RUN_FILE).read_text())
    assert run["base_model"] == str(tiny_base) and run["base_revision"] is None
    assert run["base_fingerprint"] == base_fingerprint(tiny_base)
    assert not (folder / "README.md").exists()  # peft's form


def test_a_state_gathered_elsewhere_makes_the_same_files(saved, processor, tmp_path):
    """As under ZeRO-3, where the model's own tensors are empty."""
    model, folder = saved
    state = {name: value.detach().clone() for name, value in trained_state(model).items()}
    kept = {name: parameter.data for name, parameter in model.named_parameters() if name in state}
    try:
        for name, parameter in model.named_parameters():
            parameter.data = torch.empty(0) if name in state else parameter.data
        checkpoint.save(
            tmp_path / "gathered", model, processor, checkpoint.read_run_file(folder), state=state
        )
    finally:
        for name, parameter in model.named_parameters():
            parameter.data = kept.get(name, parameter.data)
    for name in (ADAPTER_FILE, ADAPTER_CONFIG, RUN_FILE):
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
    state = {name: value.detach().clone() for name, value in trained_state(saved[0]).items()}
    spoil(state, next(iter(state)))
    with pytest.raises(ValueError, match=rf"new is not written: .*{message}"):
        checkpoint.save(tmp_path / "new", saved[0], processor, {"moss": None}, state=state)
    assert not (tmp_path / "new").exists()


def test_restore_puts_everything_trained_into_another_model(saved, tiny_base, moss):
    model, folder = saved
    has_moss = isinstance(model.get_base_model(), MossVideoLlama3ForConditionalGeneration)
    opened = load_base(tiny_base, moss=moss if has_moss else None)
    other = attach_lora(opened, rank=4, alpha=8, dropout=0.1)
    checkpoint.restore_trained(folder, other)
    before, after = trained_state(model), trained_state(other)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert any(parameter.requires_grad for parameter in other.parameters())
    assert not any(parameter.requires_grad for parameter in checkpoint.load(folder).model.parameters())
    another = attach_lora(load_base(tiny_base), rank=2, alpha=8, dropout=0.1)
    message = "holds MOSS and" if has_moss else "of another shape .* and the rank of LoRA"
    with pytest.raises(ValueError, match=message):
        checkpoint.restore_trained(folder, another)


def test_what_moss_was_is_written_in_full_whatever_was_passed(saved, copy, processor):
    model, folder = saved
    config = model.get_base_model().config.vision_config
    run = checkpoint.read_run_file(folder)
    if run["moss"] is None:
        assert not hasattr(model.get_base_model().model.vision_model, "moss")
        return
    assert run["moss"].keys() == set(MOSS_FIELDS)
    assert all(list(v) == list(getattr(config, n)) for n, v in run["moss"].items() if isinstance(v, list))
    assert all(v == getattr(config, n) for n, v in run["moss"].items() if not isinstance(v, list))
    for name in MOSS_FIELDS:  # nothing of it is this version's default
        edit_json(copy / RUN_FILE, moss={key: value for key, value in run["moss"].items() if key != name})
        with pytest.raises(ValueError, match=rf"run\.json: moss has no {name}, which this version does"):
            checkpoint.load(copy)


def test_its_files_can_be_read_by_whoever_may(saved, processor, tmp_path):
    before = os.umask(0o027)
    try:
        checkpoint.save(tmp_path / "shared", saved[0], processor, {})
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "shared").iterdir()} == {0o640}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own
def test_plain_peft_refuses_moss_and_opens_a_checkpoint_without(saved, tiny_base, batch):
    model, folder = saved
    plain = VideoLlama3ForConditionalGeneration.from_pretrained(tiny_base)
    if checkpoint.read_run_file(folder)["moss"] is None:
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
    edit_json(copy / ADAPTER_CONFIG, peft_type="LORA")
    after = trained_state(checkpoint.load(copy).model)
    assert all(torch.equal(value, after[name]) for name, value in trained_state(saved[0]).items())


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


def test_on_a_bfloat16_base_what_is_trained_stays_float32(tiny_base, moss, batch, processor, tmp_path):
    model = train(tiny_base, moss, batch, dtype=torch.bfloat16)
    trained = trained_state(model)
    frozen = [p for n, p in model.named_parameters() if not p.requires_grad and ".moss." not in n]
    assert {value.dtype for value in trained.values()} == {torch.float32, torch.int64}
    assert {parameter.dtype for parameter in frozen} == {torch.bfloat16}
    means = [value for name, value in trained.items() if "running_mean" in name]
    assert len(means) == 8 and all((mean != mean.to(torch.bfloat16)).any() for mean in means)
    checkpoint.save(tmp_path / "half", model, processor, {"moss": moss})
    loaded = checkpoint.load(tmp_path / "half", dtype=torch.bfloat16)
    after = trained_state(loaded.model)
    assert all(torch.equal(value, after[name]) for name, value in trained.items())
    checkpoint.check_reload(tmp_path / "half", model, trained)
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


def test_four_bits_without_bitsandbytes_names_the_extra(tiny_base, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r'needs bitsandbytes .*: pip install -e "\.\[quantize\]"'):
        load_base(tiny_base, quantize=True)


def test_a_base_in_four_bits_trains_saves_and_loads(tiny_base, moss, batch, processor, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = train(tiny_base, moss, batch, quantize=True)
    packed = [name for name, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(packed) == 4 * 7 and all(".language_model.layers." in name for name in packed)
    trained = trained_state(model)
    assert {value.dtype for value in trained.values()} == {torch.float32, torch.int64}
    assert all(value.any() for name, value in trained.items() if ".lora_B." in name)
    checkpoint.save(tmp_path / "packed", model, processor, {"moss": moss})
    checkpoint.check_reload(tmp_path / "packed", model, trained)
    expected = next_logits(model, processor)
    loaded = checkpoint.load(tmp_path / "packed", quantize=True)
    torch.testing.assert_close(next_logits(loaded.model, processor), expected, atol=1e-5, rtol=0)


def test_a_base_loads_plain_with_what_it_says_of_itself(tiny_base, moss):
    loaded = checkpoint.load(tiny_base)
    assert loaded.run == {"moss": moss} == base_record(tiny_base)
    assert loaded.name == str(tiny_base) and not loaded.model.training
    assert loaded.model.dtype == torch.float32
    assert checkpoint.load(tiny_base, dtype=torch.bfloat16).model.dtype == torch.bfloat16
