"""Owns: the lean layers equal the plain ones in value, gradient and running statistics, and keep less."""

import copy
import shutil

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from kept_for_backward import KeptForBackward
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn.utils import prune

from moss_vllm.core import MOSS, encoder, stss
from moss_vllm.core.ladder import TemporalBlock
from moss_vllm.core.lean import norm_gelu_conv, norm_linear, stss_linear
from moss_vllm.core.moss import checkpoint_moss
from moss_vllm.core.stss import stss_by_offset


def plain_norm_linear(x, norm, linear):
    return linear(norm(x))


def plain_norm_gelu_conv(x, norm, conv, *, offsets=1):
    y = rearrange(F.gelu(norm(x)), "(n l) d h w -> n (l d) h w", l=offsets)
    return y if conv is None else conv(y)


def plain_stss_linear(x, linear, window):
    return linear(stss_by_offset(x, window).to(linear.weight.dtype))


def moss(**settings):
    torch.manual_seed(0)
    return MOSS(8, 6, **{"window": (3, 5, 5), "d_hidden": 8, "d_similarity": 4, **settings})


def run(module, x, monkeypatch, lean):
    """Output, gradients and buffers of one step, with the lean layers or the plain ones."""
    with monkeypatch.context() as patch:
        if not lean:
            patch.setattr(encoder, "norm_linear", plain_norm_linear)
            patch.setattr(encoder, "norm_gelu_conv", plain_norm_gelu_conv)
            patch.setattr(encoder, "stss_linear", plain_stss_linear)
        module = copy.deepcopy(module)
        x = x.clone().requires_grad_()
        output = module(x)
        output.backward(torch.linspace(-1, 1, output.numel()).view(output.shape).to(output.dtype))
    tensors = {"output": output.detach(), "grad_input": x.grad, **dict(module.named_buffers())}
    return tensors | {f"grad.{name}": p.grad for name, p in module.named_parameters() if p.grad is not None}


def assert_equal(actual, expected, relative):
    assert actual.keys() == expected.keys()
    for name in expected:
        difference = (actual[name].double() - expected[name].double()).abs().max()
        assert difference <= relative * expected[name].double().abs().max() + 1e-12, name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("settings", [{}, {"orders": (3,)}, {"zero_init": True, "input_fc": True}])
def test_equal_to_plain_layers(monkeypatch, training, settings):
    module = moss(**settings).double().train(training)
    x = torch.randn(2, 4, 5, 6, 8, dtype=torch.float64)
    assert_equal(run(module, x, monkeypatch, True), run(module, x, monkeypatch, False), 1e-9)


def test_equal_under_autocast_and_in_bfloat16(monkeypatch):
    # A double precision run tells the error of each: the lean layers may not be worse than the plain ones.
    module, x = moss(), torch.randn(2, 4, 5, 6, 8)
    exact = run(module.double(), x.double(), monkeypatch, False)
    module = module.float()

    def error(lean, half):
        if half:
            tensors = run(copy.deepcopy(module).bfloat16(), x.bfloat16(), monkeypatch, lean)
        else:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                tensors = run(module, x, monkeypatch, lean)
        assert tensors["output"].dtype == torch.bfloat16
        assert tensors["grad.order1.in_proj.weight"].dtype == (torch.bfloat16 if half else torch.float32)
        return sum(
            ((tensors[k].double() - exact[k].double()).norm() / exact[k].double().norm()).item()
            for k in exact
            if k == "output" or k.startswith("grad")
        )

    for half in (False, True):
        assert error(True, half) < 1.2 * error(False, half)


def test_autocast_computes_and_keeps_what_it_would_for_plain_layers():
    norm, linear, batch_norm = nn.LayerNorm(8), nn.Linear(8, 4), nn.BatchNorm2d(4)
    conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    for dtype, expected in ((torch.float32, torch.bfloat16), (torch.float64, torch.float64)):
        layers = [layer.to(dtype) for layer in (norm, linear, batch_norm, conv)]
        x = torch.randn(2, 3, 5, 8, dtype=dtype, requires_grad=True)
        kept = []
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.autograd.graph.saved_tensors_hooks(lambda t, to=kept: to.append(t) or t, lambda t: t):
                y = norm_linear(x, *layers[:2])
                z = norm_gelu_conv(y.permute(0, 3, 1, 2), *layers[2:])
            z.sum().backward()  # within the region, where its own products must not be cast again
            plain = layers[1](layers[0](x))
        assert y.dtype == z.dtype == plain.dtype == expected
        torch.testing.assert_close(y, plain)
        assert x.grad.dtype == dtype and {t.dtype for t in kept} <= {dtype, expected}


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_over_several_steps(momentum):
    norm = nn.BatchNorm2d(4, momentum=momentum)
    plain = copy.deepcopy(norm)
    for _ in range(3):
        x = torch.randn(6, 4, 3, 5) * 2 + 1
        norm_gelu_conv(x, norm, None)
        plain(x)
    torch.testing.assert_close(norm.state_dict(), plain.state_dict())


def test_gradcheck():
    norm, linear, batch_norm = nn.LayerNorm(5).double(), nn.Linear(5, 4).double(), nn.BatchNorm2d(4).double()
    conv = nn.Conv2d(8, 3, 3, padding=1, bias=False).double()
    x = torch.randn(4, 3, 2, 5, dtype=torch.float64, requires_grad=True)

    def layers(x):
        y = rearrange(norm_linear(x, norm, linear), "n h w c -> n c h w")
        return norm_gelu_conv(y, batch_norm, conv, offsets=2)

    assert torch.autograd.gradcheck(layers, (x,), fast_mode=True)
    batch_norm.eval()
    assert torch.autograd.gradcheck(layers, (x,), fast_mode=True)


@pytest.mark.parametrize("frozen", ["block1", "norm", "in_proj"])
def test_frozen_layers_do_not_change_the_gradients_of_others(frozen):
    module, whole = moss(), moss()
    module.order2.get_submodule(frozen).requires_grad_(False)
    x = torch.randn(1, 3, 4, 4, 8)
    for each in (module, whole):
        each(x).square().sum().backward()
    for (name, ours), other in zip(module.named_parameters(), whole.parameters(), strict=True):
        assert ours.requires_grad == (ours.grad is not None), name
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, other.grad)


def test_a_second_derivative_is_an_error():
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    y = norm_gelu_conv(x, nn.BatchNorm2d(4), None)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_adapters_pruning_and_hooks_work():
    x = torch.randn(1, 3, 4, 4, 8)
    for name in ("in_proj", "uv_proj.linear", "block1.conv", "fuse.conv"):
        module = moss().eval()
        before = module(x)
        seen = []
        layer = module.order1.get_submodule(name)
        layer.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        torch.testing.assert_close(module(x), before)
        assert seen, name
        prune.l1_unstructured(layer, "weight", 0.5)
        assert (module(x) - before).abs().max() > 1e-4, name
    adapted = moss().eval()
    before = adapted(x)
    targets = ["in_proj", "uv_proj.linear", "block2.conv"]
    inject_adapter_in_model(LoraConfig(target_modules=targets, init_lora_weights=False), adapted)
    assert (adapted.eval()(x) - before).abs().max() > 1e-4
    adapted(x).sum().backward()
    assert all(p.grad is not None for name, p in adapted.named_parameters() if "lora_" in name)


def test_other_norms_are_called():
    norm = nn.GroupNorm(2, 4)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(norm_gelu_conv(x, norm, None), F.gelu(norm(x)))


def test_a_linear_layer_with_a_bias_is_called():
    linear, x = nn.Linear(27, 5), torch.randn(1, 3, 4, 4, 8)
    expected = linear(stss_by_offset(x, (3, 3, 9)))
    torch.testing.assert_close(stss_linear(x, linear, (3, 3, 9)), expected)


def test_one_value_per_channel_is_named():
    with pytest.raises(ValueError, match=r"one value per channel, got \(1, 4, 1, 1\)"):
        norm_gelu_conv(torch.randn(1, 4, 1, 1), nn.BatchNorm2d(4), None)


def test_keeps_only_what_the_norms_read():
    module = moss(orders=(1,))
    x = torch.randn(2, 4, 5, 6, 8)
    own = {p.untyped_storage().data_ptr() for p in module.parameters()} | {x.untyped_storage().data_ptr()}
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t) is None or t, lambda t: t
    ):
        module(x)
    positions = 2 * 4 * 5 * 6
    per_position = 8 + 1 + 3 * 3 * 4 + 2 * 8  # unit, 1/norm; 3 BatchNorm inputs; fuse's and M
    numbers = sum(t.numel() for pointer, t in kept.items() if pointer not in own)
    assert (
        positions * per_position <= numbers <= positions * (per_position + 2) + 200
    )  # LayerNorm's statistics


SECONDS = [{"second": name, "orders": (1, 2)} for name in ("r2plus1d", "difference")]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("settings", [{}, {"orders": (1, 3), "zero_init": True, "input_fc": True}, *SECONDS])
def test_orders_computed_again_are_the_same_to_the_bit_and_keep_what_they_read(training, settings):
    plain, x = moss(**settings).train(training), torch.randn(2, 4, 5, 6, 8)
    again, found, kept = copy.deepcopy(plain), [], []
    assert checkpoint_moss(again, True) and not checkpoint_moss(nn.Linear(1, 1), True)
    for module in (plain, again):
        read = x.clone().requires_grad_()
        with KeptForBackward(module, [read]) as counter:
            output = module(read)
        kept.append(counter.total_bytes())
        for _ in range(2):
            output = module(read)
            output.square().sum().backward()
        found.append([output, read.grad, *(p.grad for p in module.parameters()), *module.buffers()])
    assert all(torch.equal(a, b) if a is not None else b is None for a, b in zip(*found, strict=True))
    assert kept[1] < 0.5 * kept[0]
    assert checkpoint_moss(again, False) and not again.checkpointing


def test_shapes_without_data():
    with torch.device("meta"):
        output = moss()(torch.randn(1, 3, 4, 5, 8))
        output.sum().backward()
    assert output.shape == (1, 3, 4, 5, 6)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_compiled_equals_eager(training):
    module, compiled = moss().train(training), moss().train(training)
    x = torch.randn(1, 3, 4, 5, 8)
    results = []
    for run_it in (module, torch.compile(compiled, fullgraph=True, backend="aot_eager")):
        features = x.clone().requires_grad_()
        output = run_it(features)
        output.square().sum().backward()
        results.append([output, features.grad])
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(list(compiled.buffers()), list(module.buffers()))
    for ours, plain in zip(compiled.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, plain.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_compiled_block_of_the_ladder_equals_eager():
    block, tap = TemporalBlock(6, 8, heads=2), torch.randn(2, 3, 13, 6)
    compiled, inputs = copy.deepcopy(block), (torch.randn(2, 3, 3, 4, 8), tap, torch.zeros(12, 8))
    compiled.compile(fullgraph=True, backend="aot_eager")
    tensors = []
    for each in (block, compiled):
        output = each(*inputs)
        output.square().sum().backward()
        tensors.append([output, *each.buffers(), *(p.grad for p in each.parameters())])
    torch.testing.assert_close(tensors[1], tensors[0], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="inductor needs a C++ compiler")
def test_inductor_equals_eager_also_for_turned_input():
    # One order has every layer; a second would compile them again.
    module, x = moss(orders=(1,)).eval(), torch.randn(1, 3, 8, 4, 5).movedim(2, -1)
    features, similarity = torch.compile(lambda x: (module(x), stss(x * 2, (3, 3, 3))), fullgraph=True)(x)
    torch.testing.assert_close(features, module(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(similarity, stss(x, (3, 3, 3)), atol=1e-6, rtol=0)
