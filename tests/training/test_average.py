"""Owns: the moving average follows AdaTAD's rule, and a model that shows it gets its own weights back."""

import pytest
import torch
from torch import nn

from moss_vllm.training.average import WeightAverage, tell_young


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_each_step_keeps_a_share_and_whole_numbers_are_the_last(model):
    average = WeightAverage(model.state_dict, decay=0.9)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(3):
        model(torch.randn(4, 2))  # moves BatchNorm's statistics and counter
        with torch.no_grad():
            model[0].weight += 1
        average.update()
        for name, value in model.state_dict().items():
            real = value.is_floating_point()
            expected[name] = 0.9 * expected[name] + 0.1 * value if real else value.clone()
    assert average.average.keys() == model.state_dict().keys()
    for name, value in average.average.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)
    assert int(average.average["1.num_batches_tracked"]) == 3
    assert not torch.equal(average.average["1.running_var"], model[1].running_var)


def test_the_model_shows_the_average_and_then_its_own_weights(model):
    average = WeightAverage(model.state_dict)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.randn(4, 2))
    with torch.no_grad():
        model[0].weight += 1
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), average.in_model():
        assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())
        raise KeyboardInterrupt
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, first[name]) for name, value in average.average.items())


def test_a_loaded_average_goes_on(model):
    straight, resumed = (WeightAverage(model.state_dict) for _ in range(2))
    with torch.no_grad():
        model[0].weight += 1
    straight.update()
    resumed.load({name: value.clone() for name, value in straight.average.items()})
    for average in (straight, resumed):
        average.update()
    assert all(torch.equal(value, resumed.average[name]) for name, value in straight.average.items())


def test_an_average_that_is_near_its_start_is_told_with_numbers():
    assert tell_young(0.999, 600) == (
        "warning: after 600 steps the average of the weights, which is tested, is still 55% the weights at "
        "the start (ema_decay 0.999); train longer, or lower --ema-decay: with 0.992 it would be 1%"
    )
    assert "after 1 steps" not in tell_young(0.05, 1) and "100%" in tell_young(1.0, 2)
    assert tell_young(0.999, 4200) == tell_young(0.99, 1000) == tell_young(0.0, 1) == ""
