"""λ along gradient descent into the edge of stability, against a converged solver at the same weights."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from opposing_signals.curvature import EigenTracker
from opposing_signals.curvature.risk import EmpiricalRisk, flatten
from opposing_signals.losses import square_loss

STEP_SIZE = 0.4


@pytest.fixture(scope="module")
def trajectory() -> list[tuple[torch.Tensor, float]]:
    """θ_t and λ(θ_t), from the whole Hessian, for the steps around and after break-even."""
    risk = problem()
    names = [name for name, _ in risk.model.named_parameters()]

    def loss(theta: torch.Tensor) -> torch.Tensor:
        outputs = functional_call(risk.model, dict(zip(names, risk.unflatten(theta), strict=True)), risk.inputs)
        return square_loss(outputs, risk.targets).mean()

    hessian = torch.func.hessian(loss)
    seen = []
    for step in range(260):
        if step >= 110:
            theta = nn.utils.parameters_to_vector(risk.parameters).detach().clone()
            seen.append((theta, float(torch.linalg.eigvalsh(hessian(theta))[-1])))
        risk.model.zero_grad()
        risk.backward()
        with torch.no_grad():
            for parameter in risk.parameters:
                parameter -= STEP_SIZE * parameter.grad
    return seen


def problem() -> EmpiricalRisk:
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 20)[:, None]
    targets = torch.cos(4 * torch.arccos(x))
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    return EmpiricalRisk(model, square_loss, x, targets, chunk=7, precision="float64")


def tracked(trajectory: list[tuple[torch.Tensor, float]], tracker: EigenTracker) -> np.ndarray:
    """``[steps, 2]``: relative errors of λ tracked with the gradient as a hint, and its bound over λ."""
    risk = problem()
    found = []
    for theta, value in trajectory:
        nn.utils.vector_to_parameters(theta, risk.parameters)
        directions = tracker.directions(flatten([p.detach() for p in risk.parameters]))
        seen = risk.hessian_products(directions)
        pairs = tracker.update(seen.products, lambda v: risk.hessian_products(v).products, seen.gradient)
        found.append((abs(pairs.value / value - 1), pairs.bound / value))
    return np.array(found)


def errors(trajectory: list[tuple[torch.Tensor, float]], tracker: EigenTracker) -> np.ndarray:
    return tracked(trajectory, tracker)[:, 0]


def test_the_trajectory_is_one_at_the_edge_of_stability(trajectory):
    values = np.array([value for _, value in trajectory]) * STEP_SIZE / 2
    assert values[0] < 1 < np.median(values)
    assert np.abs(np.diff(values)).max() > 0.1  # the iterate is thrown out of the valley once


def test_two_products_in_the_training_pass_follow_the_sharpness(trajectory):
    found = errors(trajectory, EigenTracker(max_products=2, tolerance=0))
    assert np.median(found) < 1e-3
    assert np.quantile(found, 0.95) < 0.025


def test_a_tolerance_keeps_the_error_below_a_thousandth(trajectory):
    found = errors(trajectory, EigenTracker(tolerance=0.01))
    assert np.quantile(found, 0.95) < 1e-3


@pytest.mark.parametrize("stride", [1, 5, 15])
def test_nothing_far_above_the_value_is_left_uncovered(trajectory, stride):
    """With the settings of the runs, against dense eigenvalues in float64."""
    tracker = EigenTracker(tolerance=0.05, look=max(1, 24 // stride))
    found = tracked(trajectory[::stride], tracker)[1:]
    assert np.median(found[:, 0]) < 1e-3
    assert np.quantile(found[:, 0], 0.95) < 0.02
    assert not ((found[:, 0] > 0.05) & (found[:, 1] < 1)).any()
    assert np.median(found[:, 1]) < 1.2
