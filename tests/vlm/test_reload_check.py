"""Owns: a checkpoint that does not reload to the model in memory is noticed, to the bit."""

import shutil

import pytest
import torch
from checkpoint_edits import change_adapter, edit_json

from moss_vllm.vlm import checkpoint
from moss_vllm.vlm.adapter import trained_state
from moss_vllm.vlm.reload_check import next_logits


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
def test_next_logits_leave_the_model_as_it_was(saved, processor):
    model, folder = saved
    base_model = model.get_base_model()
    try:
        model.train()
        base_model.model.projector.eval()
        modes = [module.training for module in model.modules()]
        before = {name: value.clone() for name, value in model.state_dict().items()}
        logits = next_logits(model, processor)
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    finally:
        model.eval()
    assert logits.shape == (base_model.config.text_config.vocab_size,) and not logits.requires_grad
    assert torch.equal(logits, next_logits(model, processor))  # dropout was off


@pytest.mark.parametrize("part", ["lora_B", ".moss.order2.fuse.conv.weight", "running_mean", "projector"])
@pytest.mark.parametrize("saved", ["moss"], indirect=True)
def test_verify_notices_one_bit_that_was_not_saved(saved, copy, part):
    def damage(weights):
        name = next(name for name in weights if part in name)
        flat = weights[name].view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(torch.inf))

    checkpoint.check_reload(copy, saved[0], trained_state(saved[0]))
    change_adapter(copy, damage)
    with pytest.raises(
        RuntimeError, match=f"step-000002 does not reload .* it differs in .*{part[6:]}.*; do not use"
    ):
        checkpoint.check_reload(copy, saved[0], trained_state(saved[0]))


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
def test_verify_notices_other_settings_of_the_same_weights(saved, copy):
    edit_json(copy / "adapter_config.json", lora_alpha=3)
    with pytest.raises(RuntimeError, match=r"it differs in alpha 3 \(was \d+\); do not use"):
        checkpoint.check_reload(copy, saved[0], trained_state(saved[0]))
    shutil.copy(saved[1] / "adapter_config.json", copy)
    edit_json(copy / "run.json", moss={**checkpoint.read_run_file(copy)["moss"], "moss_after_layer": 1})
    with pytest.raises(
        RuntimeError, match=r"it differs in MOSS .*'moss_after_layer': 1.* \(was .*\); do not use"
    ):
        checkpoint.check_reload(copy, saved[0], trained_state(saved[0]))


@pytest.mark.parametrize("saved", ["moss"], indirect=True)
def test_verify_makes_no_second_model(saved, monkeypatch):
    held, make = [], checkpoint._open_adapter
    monkeypatch.setattr(
        checkpoint, "_open_adapter", lambda *args, **options: held.append(make(*args, **options)) or held[0]
    )
    checkpoint.check_reload(saved[1], saved[0], trained_state(saved[0]))
    with_memory = {name for name, value in held[0].state_dict().items() if not value.is_meta}
    assert {name for name in with_memory if ".original_module." not in name} == trained_state(saved[0]).keys()
