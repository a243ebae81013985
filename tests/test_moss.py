"""Owns: MOSS equals the authors' module (eval, train, gradients), starts at zero if asked, takes any clip."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from moss_vllm.core import MOSS

GOLDEN = Path(__file__).parent / "golden"


def assert_close(actual: torch.Tensor, expected: torch.Tensor, relative: float = 1e-4) -> None:
    assert (actual - expected).abs().max() <= relative * expected.abs().max()


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


def test_no_order_is_an_error():
    with pytest.raises(ValueError, match="not a set of orders"):
        MOSS(8, 6, orders=())
