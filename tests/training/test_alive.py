"""Owns: what counts as alive is every storage once, from its making until nobody holds it."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from moss_vllm.training.alive import AliveBytes


def test_views_count_once_and_what_is_freed_no_more():
    given = torch.ones(10)
    with AliveBytes(given) as alive:
        made = given * 2  # 40 bytes
        view = made.view(2, 5)[0]
        assert alive.now == 40
        given.add_(1)
        assert alive.now == 40
        square = made.outer(made)  # 400
        assert alive.now == 440
        del square
        assert (alive.now, alive.peak) == (40, 440)
        del made
        assert alive.now == 40  # the view holds it
        del view
        assert (alive.now, alive.peak) == (0, 440)


def test_what_backward_needs_is_alive_until_then():
    weight, x = torch.ones(4, 4, requires_grad=True), torch.ones(8, 4)
    with AliveBytes(weight, x) as alive:
        y = (x @ weight).exp()  # exp keeps its output, the product its input, which was given
        loss = y.sum()
        del y
        assert alive.now == 8 * 4 * 4 + 4
        loss.backward()
        del loss
        assert alive.now == 4 * 4 * 4  # the gradient


def test_tensors_without_data_count_as_if_they_had_them():
    with FakeTensorMode(), AliveBytes() as alive:
        large = torch.empty(10**6, 10**6, dtype=torch.bfloat16)
        assert alive.now == 2 * 10**12
        del large
        assert alive.now == 0
