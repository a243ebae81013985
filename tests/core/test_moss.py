"""Owns: MOSS equals the authors' module (eval, train, gradients), starts at zero if asked, takes any clip."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from test_stss import GOLDEN, assert_close

from moss_vllm.core import MOSS, stss_plain


def golden_moss(name: str) -> tuple[MOSS, dict[str, torch.Tensor]]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        golden = {key: file.get_tensor(key) for key in file.keys()}
        settings = {key: json.loads(value) for key, value in file.metadata().items()}
    moss = MOSS(
        settings["d_in"],
        settings["d_out"],
        orders=range(1, settings["orders"] + 1),
        window=tuple(settings["window"]),
        d_hidden=settings["d_hidden"],
        d_similarity=settings["d_similarity"],
        d_fuse=settings["fuse_out"],
    )
    weights = {
        key.removeprefix("weights."): value for key, value in golden.items() if key.startswith("weights.")
    }
    moss.load_state_dict(weights)
    return moss, golden


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", ["moss_one_order", "moss_two_orders"])
def test_golden_values_and_gradients(name, mode):
    moss, golden = golden_moss(name)
    moss.train(mode == "train")
    x = golden["input"].requires_grad_()
    output = moss(x)
    output.backward(golden["grad_output"])
    assert_close(output.detach(), golden[f"{mode}.output"])
    assert_close(x.grad, golden[f"{mode}.grad_input"])
    weight_gradients = [key for key in golden if key.startswith(f"{mode}.grad.")]
    assert mode == "train" or len(weight_gradients) == 2
    for key in weight_gradients:
        assert_close(moss.get_parameter(key.removeprefix(f"{mode}.grad.")).grad, golden[key])


@pytest.mark.parametrize("shape", [(2, 5, 3, 7, 8), (1, 1, 4, 4, 8), (3, 2, 1, 5, 8)])
@pytest.mark.parametrize("training", [True, False])
def test_any_clip_shape(shape, training):
    moss = MOSS(8, 6, window=(5, 9, 9), d_hidden=4, d_similarity=3).train(training)
    output = moss(torch.randn(shape))
    assert output.shape == (*shape[:4], 6) and torch.isfinite(output).all()


def test_zero_init_is_zero_but_every_order_sees_motion():
    torch.manual_seed(0)
    moss = MOSS(
        8, 6, orders=(1, 2, 3), window=(3, 3, 3), d_hidden=4, d_similarity=3, zero_init=True, input_fc=True
    )
    x = torch.randn(2, 4, 5, 5, 8)
    output = moss(x)
    assert output.eq(0).all()
    (output * torch.randn_like(output)).sum().backward()
    # A last FC that saw a constant would have a rank-one gradient; one that saw nothing would have none.
    for linear in moss.last_linears():
        assert torch.linalg.matrix_rank(linear.weight.grad) > 1


def test_batch_norm_statistics_move_in_training_only():
    moss = MOSS(8, 6, window=(3, 3, 3), d_hidden=4, d_similarity=3)
    before = moss.order2.fuse.batch_norm.running_mean.clone()
    moss.eval()(torch.randn(1, 2, 3, 3, 8))
    assert torch.equal(moss.order2.fuse.batch_norm.running_mean, before)
    moss.train()(torch.randn(1, 2, 3, 3, 8))
    assert not torch.equal(moss.order2.fuse.batch_norm.running_mean, before)


def test_bfloat16_module_runs_and_stays_close_to_float32():
    torch.manual_seed(0)
    moss = MOSS(16, 8, window=(3, 5, 5), d_hidden=8, d_similarity=8).eval()
    x = torch.randn(1, 3, 4, 4, 16)
    expected = moss(x)
    output = moss.bfloat16()(x.bfloat16())
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_zero_features_give_finite_output():
    moss = MOSS(8, 6, window=(3, 3, 3), d_hidden=4, d_similarity=3)
    assert torch.isfinite(moss(torch.zeros(1, 3, 4, 4, 8))).all()


def small(**settings):
    torch.manual_seed(0)
    return MOSS(8, 6, **{"window": (3, 3, 3), "d_hidden": 4, "d_similarity": 4, **settings}).eval()


@pytest.mark.parametrize("orders", [(2,), (1, 3), (2, 3), (4,)])
def test_sums_the_chosen_orders_of_one_chain(orders):
    x = torch.randn(1, 3, 4, 5, 8)
    chain = small(orders=(1, 2, 3, 4))
    alone = {}
    for n in (1, 2, 3, 4):
        single = small(orders=(n,))
        single.load_state_dict({k: v for k, v in chain.state_dict().items() if int(k[5]) <= n})
        alone[n] = single(x)
    chosen = small(orders=orders)
    chosen.load_state_dict({k: v for k, v in chain.state_dict().items() if int(k[5]) <= max(orders)})
    torch.testing.assert_close(chosen(x), sum(alone[n] for n in orders))
    torch.testing.assert_close(chain(x), sum(alone.values()))


def test_an_order_on_the_way_has_no_unused_weights():
    for zero_init in (False, True):
        moss = small(orders=(3,), zero_init=zero_init).train()
        (moss(torch.randn(2, 3, 4, 4, 8)) * torch.randn(2, 3, 4, 4, 6)).sum().backward()
        assert [name for name, p in moss.named_parameters() if p.grad is None] == []


def test_a_window_for_each_order():
    moss = small(window=((3, 3, 3), (5, 3, 5)))
    first, second = moss.maps(torch.randn(1, 4, 5, 6, 8))
    assert first.similarity.shape[-3:] == (3, 3, 3) and second.similarity.shape[-3:] == (5, 3, 5)
    assert moss.order2.fuse.conv.in_channels == 5 * 4


def test_maps_are_what_the_forward_uses():
    moss, x = small(orders=(1, 2)), torch.randn(1, 3, 4, 5, 8)
    first, second = moss.maps(x)
    assert (first.order, second.order) == (1, 2)
    torch.testing.assert_close(
        first.similarity, stss_plain(moss.order1.in_proj(moss.order1.norm(x)), (3, 3, 3))
    )
    read = moss.order1.out_proj(first.motion)
    torch.testing.assert_close(
        second.similarity, stss_plain(moss.order2.in_proj(moss.order2.norm(read)), (3, 3, 3))
    )
    torch.testing.assert_close(read + moss.order2.out_proj(second.motion), moss(x))


@pytest.mark.parametrize("zero_init", [True, False])
@pytest.mark.parametrize("fusion", ["addition", "mlp", "conv"])
def test_fusions_let_order_two_read_the_features(fusion, zero_init):
    moss, x = small(fusion=fusion, zero_init=zero_init), torch.randn(1, 3, 4, 5, 8)
    seen = []
    moss.order2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    moss.order1.register_forward_hook(lambda _, __, output: torch.zeros_like(output))
    moss(x)
    moss(x + torch.randn_like(x))
    assert not torch.allclose(seen[0], seen[1])  # although it gets nothing from order 1
    if fusion == "addition":
        motion = 0 if zero_init else moss.order1.out_proj.bias
        torch.testing.assert_close(seen[0], moss.fusion2.project(x) + motion)


def test_addition_needs_no_weights_between_equal_widths():
    assert not list(MOSS(8, 8, d_similarity=4, fusion="addition").fusion2.parameters())


@pytest.mark.parametrize("zero_init", [True, False])
@pytest.mark.parametrize("second", ["r2plus1d", "factorised_attention", "difference"])
def test_another_second_encoder(second, zero_init):
    moss, x = small(second=second, zero_init=zero_init), torch.randn(1, 3, 4, 5, 8)
    motion = moss.order1(x)
    read = motion if zero_init else moss.order1.out_proj(motion)
    torch.testing.assert_close(moss(x), moss.order1.out_proj(motion) + moss.order2(read))
    assert not zero_init or moss(x).eq(0).all()
    assert len(moss.maps(x)) == 1


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"orders": ()}, r"\(\) are not different orders"),
        ({"orders": 2}, "orders=2 are not different orders"),
        ({"orders": "12"}, "not different orders"),
        ({"orders": (1.0, 2)}, "not different orders"),
        ({"orders": (1, 1)}, r"\(1, 1\) are not different"),
        ({"orders": (0, 1)}, r"\(0, 1\) are not different"),
        ({"orders": (1, 1_000_000)}, r"\(1, 1000000\) are not different orders from 1 to 16; the paper"),
        ({"window": (1001, 9999, 9999)}, "window 1001, 9999, 9999 has more than 1,048,576 cells"),
        ({"window": ((3, 3, 3),)}, "1 windows for 2 orders"),
        ({"window": (3, 4, 3)}, "positive odd"),
        ({"window": 3}, "positive odd"),
        ({"window": (3.0, 3.0, 3.0)}, "positive odd"),
        ({"window": ()}, "0 windows for 2 orders"),
        ({"window": ((3, 3, 3), (3, 3))}, "positive odd"),
        ({"fusion": "sum"}, "unknown fusion 'sum'; choose one of none, addition"),
        ({"second": "lstm"}, "unknown second 'lstm'; choose one of stss, r2plus1d"),
        ({"second": "difference", "orders": (1, 2, 3)}, "stands in for order 2"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_maps_do_not_change_the_module():
    with pytest.raises(ValueError, match="call eval"):
        small().train().maps(torch.randn(1, 3, 4, 5, 8))


def test_any_collection_of_integers_makes_orders_and_windows():
    moss = small(orders={2, np.int64(1)}, window=[np.int64(3)] * 3)
    assert moss.orders == (1, 2) and moss.order1.window == (3, 3, 3)


def test_says_how_it_computes(monkeypatch):
    assert small().path() == "self-similarity: banded path (no CUDA device)"
    monkeypatch.setattr(
        "moss_vllm.core.encoder.available", lambda device, window: (True, f"{device}, {window}")
    )
    assert small().path() == "self-similarity: fused path (cpu, (3, 3, 3))"
