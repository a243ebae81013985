"""Owns: the ladder's lean blocks equal its layers in value, gradient and statistics, and keep less."""

import copy

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import prune

from moss_vllm.core import MOSS, lean, lean_ladder
from moss_vllm.core.ladder import Ladder, TemporalBlock
from moss_vllm.core.lean import norm_linear

LAYERS = ("adapter", "conv_in", "conv_time", "conv_out", "attn", "attn.out_proj", "mlp", "mlp.in", "mlp.out")


def ladder(moss=False):
    torch.manual_seed(0)
    temporal = {2: MOSS(6, 8, window=(3, 3, 3), d_hidden=4, d_similarity=4)} if moss else None
    sizes = {"heads": 2, "classes": 5, "patch_size": 2, "grid": (3, 4)}
    return Ladder(6, 8, layers=(2, 3), temporal=temporal, **sizes)


def clip(frames=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    taps = torch.randn(2, 2, frames, 13, 6, generator=generator, dtype=dtype)
    return taps, torch.randn(2, frames, 3, 6, 8, generator=generator, dtype=dtype)


def run(module, *inputs, plain=False, backwards=1):
    """Output, gradients and buffers of one step, of the lean layers or the plain ones."""
    with pytest.MonkeyPatch.context() as patch:
        if plain:
            for called in (lean, lean_ladder):
                patch.setattr(called, "unwrapped", lambda *_: False)
        module = copy.deepcopy(module)
        inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
        output = module(*inputs)
        grad = torch.linspace(-1, 1, output.numel()).view(output.shape).to(output.dtype)
        for left in reversed(range(backwards)):
            output.backward(grad, retain_graph=left > 0)
    tensors = {"output": output.detach(), **dict(module.named_buffers())}
    tensors |= {f"grad.{n}": p.grad for n, p in module.named_parameters() if p.grad is not None}
    return tensors | {f"grad.input{n}": x.grad for n, x in enumerate(inputs) if x.grad is not None}


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        difference = (actual[name].double() - expected[name].double()).abs().max()
        assert difference <= 1e-9 * max(1, expected[name].double().abs().max()), name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frames, moss, momentum, graph", [(3, True, 0.1, False), (1, False, None, True)])
def test_equal_to_the_layers_called(training, frames, moss, momentum, graph):
    module = ladder(moss).double().train(training)
    for block in (module.block0, module.block1):
        block.conv_norm.momentum = momentum
    taps, video = clip(frames, torch.float64)
    taps.requires_grad_(graph)
    whole = run(module, taps, video)
    assert ("grad.input0" in whole) == graph
    assert sum(name.startswith("grad.") for name in whole) == len(list(module.parameters())) + graph
    assert_equal(whole, run(module, taps, video, plain=True))


def test_a_second_backward_gives_the_same_gradients_and_moves_no_statistics():
    module, inputs = ladder().double(), clip(dtype=torch.float64)
    once, twice = run(module, *inputs), run(module, *inputs, backwards=2)
    assert once["block0.mlp_norm.num_batches_tracked"] == 1
    for name in once:
        torch.testing.assert_close(twice[name], once[name] * (2 if name.startswith("grad.") else 1))


def test_training_ends_in_the_same_weights():
    ends, (taps, video) = [], clip(dtype=torch.float64)
    for plain in (False, True):
        module = ladder().double()
        optimizer = torch.optim.AdamW(module.parameters(), 1e-2)
        for step in range(10):
            gradients = run(module, taps.roll(step, 1), video.roll(step, 0), plain=plain)
            for name, parameter in module.named_parameters():
                parameter.grad = gradients[f"grad.{name}"]
            for name, buffer in module.named_buffers():
                buffer.copy_(gradients[name])
            optimizer.step()
        ends.append(module.state_dict())
    assert_equal(*ends)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_no_worse_than_of_the_layers_called(dtype):
    module, inputs = ladder(moss=True), clip()
    exact = run(copy.deepcopy(module).double(), *(x.double() for x in inputs), plain=True)

    def error(plain):
        with torch.autocast("cpu", dtype):
            tensors = run(module, *inputs, plain=plain)
        assert (
            tensors["output"].dtype == dtype and tensors["grad.block0.adapter.weight"].dtype == torch.float32
        )
        return sum(
            ((tensors[k].double() - exact[k]).norm() / (exact[k].norm() + 1e-3)).item()
            for k in exact
            if k == "output" or k.startswith("grad")
        )

    assert error(False) < 1.2 * error(True)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_bfloat16_gradient_of_the_temporal_convolution_is_float32s(frames):
    torch.manual_seed(0)
    block, y, tap = (
        TemporalBlock(6, 16, heads=1),
        torch.randn(2, frames, 3, 4, 16),
        torch.randn(2, frames, 13, 6),
    )
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            loss = block(y, tap, torch.zeros(12, 16)).float().square().sum()
        left = [torch.full((size,), float("nan")) for size in (16, 48, 144, 256, 768, 2304)]
        del left  # a part of the gradient that nothing writes would be NaN from here
        gradients.append(torch.autograd.grad(loss, block.conv_time.weight)[0])
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()


def test_a_layer_norm_of_tokens_without_gradient():
    torch.manual_seed(0)
    norm, linear, x = nn.LayerNorm(6).double(), nn.Linear(6, 4).double(), torch.randn(5, 3, 6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    gradients = []
    for y in (norm_linear(x, norm, linear), linear(norm(x))):
        gradients.append(torch.autograd.grad(y.sin().sum(), [*norm.parameters(), *linear.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_hooks_and_pruning_work(name):
    module, inputs, seen = ladder(), clip(), []
    before = run(module, *inputs)["output"]
    module.block0.get_submodule(name).register_forward_hook(lambda *_: seen.append(1))
    output = module(*inputs)
    output.sum().backward()
    assert len(seen) == 1 or name == "attn.out_proj"  # whose weights attention reads, without calling it
    torch.testing.assert_close(output, before)
    if name == "mlp":
        return
    pruned = ladder()
    layer = pruned.block0.get_submodule(name)
    prune.l1_unstructured(layer, "in_proj_weight" if name == "attn" else "weight", 0.5)
    assert (pruned(*inputs) - before).abs().max() > 1e-5


def test_full_backward_hooks_and_replaced_forwards_are_called():
    module, inputs, seen = ladder(), clip(), []
    module.block0.conv_in.register_full_backward_hook(lambda *_: seen.append("backward"))
    layer = module.block1.mlp.out
    layer.forward = lambda x: seen.append("forward") or nn.functional.linear(x, layer.weight, layer.bias)
    module(*inputs).sum().backward()
    assert seen == ["forward", "backward"]


def test_adapters_on_the_layers_work():
    module, inputs = ladder(), clip()
    before = run(module, *inputs)["output"]
    targets = ["adapter", "attn", "mlp.in", "mlp.out", "conv_in", "conv_out"]
    inject_adapter_in_model(LoraConfig(r=2, target_modules=targets, init_lora_weights=False), module)
    output = module(*inputs)
    output.sum().backward()
    assert (output - before).abs().max() > 1e-4
    assert all(p.grad is not None for name, p in module.named_parameters() if "lora_" in name)


def test_other_norms_are_called():
    module, inputs = ladder(), clip()
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(ladder()).eval()
    torch.testing.assert_close(synced(*inputs), module.eval()(*inputs))


def test_keeps_the_input_of_each_norm_queries_keys_values_and_what_attention_gives():
    block, kept = TemporalBlock(6, 8, heads=2), {}
    y, tap, position = (
        torch.randn(2, 3, 4, 5, 8, requires_grad=True),
        torch.randn(2, 3, 21, 6),
        torch.zeros(20, 8),
    )
    own = {t.untyped_storage().data_ptr() for t in (*block.parameters(), *block.buffers(), tap, position)}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t) is None or t, lambda t: t
    ):
        block(y, tap, position)
    sizes = sorted(t.untyped_storage().nbytes() // 4 for pointer, t in kept.items() if pointer not in own)
    patches, tokens = 6 * 20 * 8, 6 * 21 * 8
    large = [size for size in sizes if size > patches // 2]
    # y before the convolutions and the MLP, queries, what attention gives; tokens, keys with values
    assert large == [patches] * 4 + [tokens, 2 * tokens]
    assert sum(sizes) - sum(large) <= 6 * 21 * 6 + 6 * 20 * 2 + 100  # statistics of LayerNorms, of softmax


def test_a_second_derivative_is_an_error():
    module, (taps, video) = ladder(), clip()
    (gradient,) = torch.autograd.grad(module(taps, video).sum(), module.stem.conv.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


def test_a_weight_changed_before_backward_is_an_error():
    module = ladder()
    loss = module(*clip()).sum()
    with torch.no_grad():
        module.block0.get_submodule("mlp.in").weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_shapes_without_data():
    with torch.device("meta"):
        output = ladder()(torch.randn(2, 2, 3, 13, 6), torch.randn(2, 3, 3, 6, 8))
        output.sum().backward()
    assert output.shape == (2, 5)


def test_gradients_in_data_parallel_training():
    module, inputs = ladder(), clip()
    expected = run(module, *inputs)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(copy.deepcopy(module))
        output = parallel(*inputs)
        output.backward(torch.linspace(-1, 1, output.numel()).view(output.shape))
        found = {f"grad.{name}": p.grad for name, p in parallel.module.named_parameters()}
    finally:
        dist.destroy_process_group()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])
