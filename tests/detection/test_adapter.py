"""Owns: TIA equals the authors' adapter, in values and gradients, and starts as identity."""

import pytest
import torch
from golden_adatad import ADAPTER_NAMES, assert_near, behind, read_golden, renamed

from moss_vllm.detection.adapter import TIA


def test_golden_values_and_gradients():
    golden, settings = read_golden("tia_adapter")
    sizes = [settings[name] for name in ("clips", "temporal_size", "h", "w", "width")]
    adapter = TIA(settings["width"], ratio=settings["mlp_ratio"])
    weights = behind("weights.", golden)
    adapter.load_state_dict({renamed(name, ADAPTER_NAMES): value for name, value in weights.items()})
    x = golden["input"].view(sizes).requires_grad_()
    output = adapter(x)
    output.backward(golden["grad_output"].view(sizes))
    assert_near(output.view_as(golden["output"]), golden["output"])
    assert_near(x.grad.view_as(golden["grad_input"]), golden["grad_input"])
    gradients = behind("grad_weights.", golden)
    assert len(gradients) == 9 == len(list(adapter.parameters()))
    for name, gradient in gradients.items():
        assert_near(adapter.get_parameter(renamed(name, ADAPTER_NAMES)).grad, gradient)


@pytest.mark.parametrize("shape", [(2, 24, 2, 3, 16), (1, 1, 1, 1, 16), (1, 3, 4, 1, 16)])
def test_it_starts_as_identity_with_the_authors_spread(shape):
    torch.manual_seed(0)
    adapter, x = TIA(16), torch.randn(shape)
    assert torch.equal(adapter(x), x)
    wide = TIA(1024)
    assert wide.gamma.item() == 1 and not wide.up.weight.any()
    for weight, spread in ((wide.down.weight, 0.02), (wide.time_conv.weight, (2 / 3) ** 0.5)):
        assert weight.std().item() == pytest.approx(spread, rel=0.1)
    assert wide.mix.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.1)
    biases = [parameter for name, parameter in wide.named_parameters() if name.endswith("bias")]
    assert len(biases) == 4 and not any(bias.any() for bias in biases)


def test_a_step_reaches_the_steps_beside_it_at_its_own_pixel_alone():
    torch.manual_seed(0)
    adapter, x = TIA(8), torch.randn(1, 6, 2, 2, 8)
    torch.nn.init.normal_(adapter.up.weight)
    changed = x.clone()
    changed[0, 3, 1, 0] += 1
    moved = (adapter(changed) != adapter(x)).any(dim=-1)[0]
    assert moved.nonzero().tolist() == [[2, 1, 0], [3, 1, 0], [4, 1, 0]]


@pytest.mark.parametrize("dim, thousands", [(384, 84), (768, 334), (1024, 592)])
def test_parameters(dim, thousands):
    with torch.device("meta"):
        assert round(sum(p.numel() for p in TIA(dim).parameters()) / 1000) == thousands
