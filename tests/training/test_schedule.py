import math

import pytest
import torch

from opposing_signals.errors import InputError
from opposing_signals.optim import SplitSGD
from opposing_signals.training.schedule import GradientClipping, WarmUpAndDecay


def nanogpt(step: int, learning_rate=6e-4, warmup=2000, decay=600_000, least=6e-5) -> float:
    """`get_lr` as in nanoGPT's train.py."""
    if step < warmup:
        return learning_rate * (step + 1) / (warmup + 1)
    if step > decay:
        return least
    ratio = (step - warmup) / (decay - warmup)
    return least + 0.5 * (1 + math.cos(math.pi * ratio)) * (learning_rate - least)


@pytest.mark.parametrize("step", [0, 1, 1999, 2000, 2001, 300_000, 599_999, 600_000, 700_000])
def test_step_sizes_are_those_of_nanogpt(step):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))], lr=6e-4)
    schedule = WarmUpAndDecay(2000, 600_000, 0.1)
    schedule(optimizer, 5)  # an earlier step leaves no state
    schedule(optimizer, step)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(nanogpt(step), rel=1e-12)


def test_both_step_sizes_of_splitsgd_follow():
    optimizer = SplitSGD([torch.nn.Parameter(torch.zeros(2))], lr=0.02, sgd_lr=0.3)
    WarmUpAndDecay(3, 10, 0.0)(optimizer, 1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    assert optimizer.param_groups[0]["sgd_lr"] == pytest.approx(0.15)


def test_a_long_gradient_is_scaled_as_one_vector():
    parameters = [torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(2))]
    for parameter, gradient in zip(parameters, ([3.0], [0.0, 4.0]), strict=True):
        parameter.grad = torch.tensor(gradient)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    GradientClipping(10.0)(optimizer, 0)
    assert parameters[1].grad.tolist() == [0.0, 4.0]
    GradientClipping(1.0)(optimizer, 0)
    torch.testing.assert_close(parameters[0].grad, torch.tensor([0.6]), rtol=1e-5, atol=0)
    torch.testing.assert_close(parameters[1].grad, torch.tensor([0.0, 0.8]), rtol=1e-5, atol=0)


def test_a_decay_that_ends_with_the_warm_up_is_refused():
    with pytest.raises(InputError, match="warm_up=5, decay_until=5"):
        WarmUpAndDecay(5, 5, 0.1)
