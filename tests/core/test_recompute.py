"""Owns: a block computed again in backward has the values, gradients and statistics of a plain call."""

import copy

import pytest
import torch
from kept_for_backward import KeptForBackward
from torch import nn

from moss_vllm.core.ladder import TemporalBlock
from moss_vllm.core.recompute import recomputed


def make_block(kind):
    torch.manual_seed(0)
    if kind == "ladder's":
        block = TemporalBlock(24, 16, heads=2).double()
        inputs = [torch.randn(2, 3, 2, 2, 16), torch.randn(2, 3, 5, 24), torch.randn(4, 16), None]
    else:  # dropout, and a BatchNorm whose average runs over all batches
        block = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=None), nn.GELU(), nn.Dropout(0.5))
        block, inputs = block.double(), [torch.randn(16, 6)]
    return block.train(), [x if x is None else x.double().requires_grad_() for x in inputs]


def step(run, block, inputs):
    """Output, gradients and state after two steps."""
    torch.manual_seed(1)
    for x in inputs:
        if x is not None:
            x.grad = None
    for _ in range(2):
        output = run(block, inputs)
        output.square().sum().backward()
    given = [x.grad for x in inputs if x is not None] + [p.grad for p in block.parameters()]
    return [output, *given, *block.state_dict().values()]


@pytest.mark.parametrize("kind", ["ladder's", "with dropout"])
def test_a_block_computed_again_is_a_plain_call(kind):
    block, inputs = make_block(kind)
    other = copy.deepcopy(block)
    plain = step(lambda block, inputs: block(*inputs), block, inputs)
    again = step(lambda block, inputs: recomputed(block, *inputs, layers=[block]), other, inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    [count] = {int(m.num_batches_tracked) for m in other.modules() if hasattr(m, "num_batches_tracked")}
    assert count == 2


@pytest.mark.parametrize("kind", ["ladder's", "with dropout"])
def test_a_mode_set_before_backward_is_not_that_of_the_second_time(kind):
    block, inputs = make_block(kind)
    gradients = []
    for mode in (False, True):
        block.train(False)
        loss = recomputed(block, *inputs, layers=[block]).square().sum()
        block.train(mode)
        for again in (True, False):  # a graph that is kept is gone through twice
            gradients.append(torch.autograd.grad(loss, list(block.parameters()), retain_graph=again))
        assert all(module.training == mode for module in block.modules())
    assert all(torch.equal(one, first) for g in gradients for one, first in zip(g, gradients[0], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("layer", [nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))])
def test_it_compiles(layer):
    x = torch.randn(5, 6, requires_grad=True)
    run = torch.compile(lambda x: recomputed(layer, x, layers=[layer]).square().sum())
    expected = torch.autograd.grad(layer(x).square().sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(run(x), x)[0], expected)


def test_it_keeps_its_inputs_alone():
    block, inputs = make_block("ladder's")
    with KeptForBackward(block, [x for x in inputs if x is not None]) as kept:
        output = recomputed(block, *inputs, layers=[block])
    assert kept.total_bytes() == 0
    output.sum().backward()
    with KeptForBackward(block, [x for x in inputs if x is not None]) as kept:
        block(*inputs)
    assert kept.total_bytes() > 0


def test_buffers_are_the_modules_own_after_an_error_in_backward():
    block, inputs = make_block("with dropout")
    before = dict(block.named_buffers())
    calls = []

    def fail(x):
        calls.append(x)
        if len(calls) == 2:
            raise RuntimeError("at work again")
        return block(x)

    with pytest.raises(RuntimeError, match="at work again"):
        recomputed(fail, *inputs, layers=[block]).sum().backward()
    assert all(buffer is before[name] for name, buffer in block.named_buffers())


@pytest.mark.parametrize("kind", ["ladder's", "with dropout"])
@pytest.mark.parametrize("training", [True, False])
def test_what_changes_before_backward_is_named(kind, training):
    block, inputs = make_block(kind)
    block.train(training)
    norm = next(m for m in block.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm3d)))
    linear = next(m for m in block.modules() if isinstance(m, nn.Linear))
    for changed, name in (
        (linear.bias, "Linear.bias"),
        (norm.running_mean, f"{type(norm).__name__}.running_mean"),
    ):
        loss = recomputed(block, *inputs, layers=[block]).square().sum()
        with torch.no_grad():
            changed.add_(1)
        if training and changed is norm.running_mean:  # training reads the batch's
            loss.backward()
        else:
            with pytest.raises(RuntimeError, match=f"^{name} has changed since the forward pass"):
                loss.backward()


def test_weights_that_a_call_put_in_for_others_are_not_taken_for_them():
    block, inputs = make_block("with dropout")
    block.eval()
    given = {name: weight.detach() + 0.1 for name, weight in block.named_parameters()}
    run = torch.nn.Module()
    run.block, run.forward = block, lambda x: recomputed(block, x, layers=[block])
    other = torch.func.functional_call(run, {f"block.{name}": w for name, w in given.items()}, tuple(inputs))
    with pytest.raises(RuntimeError, match="has changed since the forward pass"):
        other.sum().backward()


@pytest.mark.parametrize("training", [True, False])
def test_a_block_inside_one_that_is_computed_again_too(training):
    block, inputs = make_block("with dropout")
    block.train(training)
    other = copy.deepcopy(block)
    plain = step(lambda block, inputs: block(*inputs), block, inputs)

    def inner(x):
        return recomputed(other, x, layers=[other])

    again = step(lambda block, inputs: recomputed(inner, *inputs, layers=[other]), other, inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
