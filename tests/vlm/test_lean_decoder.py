"""Owns: a language model's lean training step equals the plain one and keeps less, whatever is around it."""

import copy
import gc
from contextlib import contextmanager, nullcontext

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

from moss_vllm.runtime.quiet import quiet
from moss_vllm.training.alive import AliveBytes
from moss_vllm.vlm import lean_decoder
from moss_vllm.vlm.lean_decoder import cross_entropy, lean_mlps, leave_casts_to_autocast, tokens_at_once

SIZES = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 64, "pad_token_id": 0}
GLM = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
CONFIGS = {
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "qwen3_vl": lambda: transformers.Qwen3VLTextConfig(**SIZES, head_dim=8),
    "glm4v": lambda: transformers.Glm4vTextConfig(**SIZES, head_dim=8, **GLM),  # gate and up are one layer
    "phi": lambda: transformers.PhiConfig(**SIZES | {"num_key_value_heads": 4}),  # its MLP has no gate
}
MODES = [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)]
TOKENS = 48


def build(kind, dtype, **lora):
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(CONFIGS[kind]()).to(dtype)
    with quiet():  # as in attach_lora
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", **lora))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.train()


def step(model, half, within, tokens=TOKENS):
    """Loss, gradients, and bytes kept for backward."""
    torch.manual_seed(1)
    ids = torch.randint(64, (2, tokens))
    with AliveBytes(*model.parameters(), *model.buffers(), ids) as alive:
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext(), within(model):
            hidden = model(input_ids=ids, use_cache=False).last_hidden_state
        loss = hidden.float().square().sum()
        del hidden
        kept = alive.now
        loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)], kept


@contextmanager
def as_it_is(model):
    yield


@pytest.mark.parametrize(("dtype", "half"), MODES)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_lean_step_is_a_plain_one_to_the_bit(kind, dropout, dtype, half):
    model = build(kind, dtype, lora_dropout=dropout)
    lean = copy.deepcopy(model)
    plain, kept = step(model, half, as_it_is)
    leave_casts_to_autocast(lean)
    found, kept_lean = step(lean, half, lean_mlps)
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    products = 0 if kind == "phi" else 2 * TOKENS * 96 * 2 * (2 if half else 4)  # silu(gate), 2 layers
    assert kept - kept_lean >= products


def test_without_dropout_lora_reads_one_tensor_and_the_product_is_not_kept():
    model = build("qwen2", torch.bfloat16)
    lean = copy.deepcopy(model)
    leave_casts_to_autocast(lean)
    copies, silu_and_product = 2 * TOKENS * 2 * 2 * (3 * 32 + 32), 2 * TOKENS * 2 * 2 * 96 * 2
    kept = [step(one, True, within)[1] for one, within in ((model, as_it_is), (lean, lean_mlps))]
    assert kept[0] - kept[1] == pytest.approx(copies + silu_and_product, rel=0.05)


def test_hooks_are_gone_afterwards_also_after_an_error(monkeypatch):
    model = build("qwen2", torch.float32)
    with pytest.raises(ValueError, match="at work"), lean_mlps(model):
        raise ValueError("at work")
    with lean_mlps(model):
        pass
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    unpacked = []
    monkeypatch.setattr(lean_decoder, "_unpack", lambda packed: unpacked.append(packed))
    step(model, False, as_it_is)
    assert not unpacked


def test_a_checkpointed_layer_and_a_graph_that_is_kept():
    model = build("llama", torch.float32)
    mlp = model.base_model.layers[0].mlp
    x = torch.randn(2, 5, 32, requires_grad=True)

    def gradients(run, times=1):
        with lean_mlps(model):
            loss = run(x).square().sum()
        return [torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(times)]

    plain = torch.autograd.grad(mlp(x).square().sum(), x)[0]
    for found in gradients(mlp, 2) + gradients(lambda x: checkpoint(mlp, x, use_reentrant=False), 2):
        assert torch.equal(found, plain)


def test_a_tensor_in_the_place_of_one_that_is_gone_is_not_taken_for_it():
    """What `down` makes for itself may lie where silu(gate) lay, were it not held."""
    model, seen = build("qwen2", torch.float32), []

    def look(module, args):
        made = [torch.randn(2, TOKENS, 96) for _ in range(20)]
        seen.append({tensor.untyped_storage()._cdata for tensor in made})

    down = model.base_model.layers[0].mlp.down_proj
    inner = down.base_layer.register_forward_pre_hook(look)
    taken = []
    with lean_mlps(model):
        activation = model.base_model.layers[0].mlp.act_fn
        watch = activation.register_forward_hook(
            lambda module, args, output: taken.append(output.untyped_storage()._cdata)
        )
        model(input_ids=torch.randint(64, (2, TOKENS)), use_cache=False)
    inner.remove(), watch.remove()
    assert len(seen) == len(taken) == 1 and taken[0] not in seen[0]


def one_mlp():
    model = build("llama", torch.float32)
    return model, model.base_model.layers[0].mlp, torch.randn(2, 5, 32, requires_grad=True)


def test_a_product_whose_inputs_are_not_both_kept_is_kept_itself():
    model, mlp, x = one_mlp()
    for change in ("up is frozen", "down's input is scaled"):
        if change == "up is frozen":
            mlp.up_proj.requires_grad_(False)
            mlp.up_proj.register_forward_pre_hook(lambda module, args: args[0].detach())
        else:
            mlp.down_proj.register_forward_pre_hook(lambda module, args: args[0] * 2, prepend=True)
        plain = torch.autograd.grad(mlp(x).square().sum(), x)[0]
        with lean_mlps(model):
            loss = mlp(x).square().sum()
        assert torch.equal(torch.autograd.grad(loss, x)[0], plain), change


def test_somebodys_own_hooks_stay_in_force():
    model, mlp, x = one_mlp()
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.shape) or t, lambda t: t):
        with lean_mlps(model):
            mlp(x)
    assert seen.count((2, 5, 96)) >= 3


def test_weights_stay_themselves(monkeypatch):
    """A copy would hold what ZeRO-3 gathered."""
    model, _, x = one_mlp()
    weight, kept, unpack = nn.Parameter(torch.randn(32, 3), requires_grad=False), [], lean_decoder._unpack
    monkeypatch.setattr(lean_decoder, "_unpack", lambda packed: kept.append(packed[0]) or unpack(packed))
    with lean_mlps(model):
        loss = (x[0] @ weight).sum()
    loss.backward()
    assert len(kept) == 1 and kept[0] is weight


def test_a_product_in_another_order_is_kept_itself():
    model, mlp, x = one_mlp()
    down, weight = mlp.down_proj.base_layer, torch.randn(96, 32, requires_grad=True)
    down.forward = lambda product: (
        product.transpose(0, 1).reshape(-1, 96).mm(weight).view(5, 2, 32).transpose(0, 1)
    )
    leaves = (x, weight)
    plain = torch.autograd.grad(mlp(x).square().sum(), leaves)
    with lean_mlps(model):
        loss = mlp(x).square().sum()
    assert all(torch.equal(*pair) for pair in zip(torch.autograd.grad(loss, leaves), plain, strict=True))


def test_a_change_in_place_is_found_and_a_graph_without_backward_is_freed():
    model, mlp, x = one_mlp()
    with lean_mlps(model):
        y = x * 2
        z = y * y
        y.mul_(3)
    with pytest.raises(RuntimeError, match=r"a tensor \(2, 5, 32\) that backward needs was changed in place"):
        z.sum().backward()
    with AliveBytes(*model.parameters(), *model.buffers(), x) as alive:
        for _ in range(2):
            with lean_mlps(model):
                kept = model(inputs_embeds=x.tanh(), use_cache=False).last_hidden_state.exp()
            del kept
        gc.collect()
    assert alive.now < 2 * x.nbytes


def test_a_head_of_another_kind_and_float16_compute_all_tokens_together(monkeypatch):
    monkeypatch.setattr(lean_decoder, "LOGITS_AT_ONCE", 1)
    calls, target = [], torch.randint(50, (9,))
    head = nn.Linear(16, 50).requires_grad_(False)
    head.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    cross_entropy(nn.Sequential(head), torch.randn(9, 16, requires_grad=True), target).backward()
    with torch.autocast("cpu", torch.float16):
        cross_entropy(head, torch.randn(9, 16, requires_grad=True), target).backward()
    assert calls == [9, 9]


@pytest.mark.parametrize("half", [False, True])
def test_logits_a_part_at_a_time(monkeypatch, half):
    torch.manual_seed(0)
    head = nn.Linear(16, 50, bias=False).requires_grad_(False)
    target = torch.randint(50, (37,))
    found, peaks = [], []
    for at_once in (2**25, 50 * 4):
        monkeypatch.setattr(lean_decoder, "LOGITS_AT_ONCE", at_once)
        torch.manual_seed(1)
        hidden = torch.randn(37, 16, requires_grad=True)
        with AliveBytes(head.weight, hidden, target) as alive:
            with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
                loss = cross_entropy(head, hidden, target)
                with torch.no_grad():
                    assert torch.equal(cross_entropy(head, hidden, target), loss)
            (loss / 8).backward()
        found.append((loss, hidden.grad))
        peaks.append(alive.peak)
    (loss, gradient), (in_parts, gradient_in_parts) = found
    torch.testing.assert_close(in_parts, loss)
    torch.testing.assert_close(gradient_in_parts, gradient)
    assert peaks[1] < 0.5 * peaks[0]


def test_the_tokens_at_once_are_those_of_the_vocabulary_and_one_at_least():
    assert (tokens_at_once(151_936), tokens_at_once(2**26)) == (220, 1)
    hidden = torch.randn(0, 16, requires_grad=True)
    loss = cross_entropy(nn.Linear(16, 50), hidden, torch.empty(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and hidden.grad.shape == (0, 16)


def test_a_head_that_trains_or_is_sharded_computes_all_tokens_together(monkeypatch):
    monkeypatch.setattr(lean_decoder, "LOGITS_AT_ONCE", 1)
    target, calls = torch.randint(50, (9,)), []
    for head in (nn.Linear(16, 50), nn.Linear(16, 50).requires_grad_(False)):
        head.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
        cross_entropy(head, torch.randn(9, 16, requires_grad=True), target).backward()
    assert calls == [9, *[1] * 9] and head.weight.grad is None
    head.weight.ds_id = 0  # as DeepSpeed names what it shards
    cross_entropy(head, torch.randn(9, 16, requires_grad=True), target).backward()
    assert calls[10:] == [9]
