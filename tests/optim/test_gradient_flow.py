import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError
from opposing_signals.losses import square_loss
from opposing_signals.optim import GradientFlow
from opposing_signals.optim.gradient_flow import _substep

CURVATURES = torch.logspace(-1, 3, 30, dtype=torch.float64)


def quadratic_flow(lr: float, steps: int, **settings) -> tuple[torch.Tensor, int]:
    """θ after the flow of ½ Σ h_j θ_j² from θ = 1, and the number of gradients it took."""
    theta = torch.ones(30, dtype=torch.float64, requires_grad=True)
    flow = GradientFlow([theta], lr, **settings)
    evaluations = 0

    def closure() -> float:
        loss = 0.5 * (CURVATURES * theta.square()).sum()
        (theta.grad,) = torch.autograd.grad(loss, theta)
        return float(loss.detach())

    for _ in range(steps):
        flow.step(closure)
        evaluations += flow.evaluations
    return theta.detach(), evaluations


def test_a_stiff_quadratic_decays_as_its_exponentials():
    theta, evaluations = quadratic_flow(1.0, 12, tolerance=0.1)
    torch.testing.assert_close(theta, torch.exp(-12 * CURVATURES), rtol=0, atol=1e-3)
    assert evaluations < 0.5 * 12 * 1000 / 2  # Euler steps of 2/λ at most would take 6,000


def test_the_error_falls_with_the_tolerance():
    loose, tight = (
        float((quadratic_flow(0.01, 2, tolerance=tolerance)[0] - torch.exp(-0.02 * CURVATURES)).norm())
        for tolerance in (0.1, 0.001)
    )
    assert tight < loose / 5


@pytest.mark.parametrize("stages", [2, 3, 5, 12])
def test_a_substep_is_stable_for_its_radius_and_of_second_order(stages):
    def stretched(eigenvalues: torch.Tensor, time: float, radius: float) -> torch.Tensor:
        ones = torch.ones_like(eigenvalues)
        taken = _substep(lambda theta: -eigenvalues * theta, ones, -eigenvalues, time, radius)
        return ones + taken.displacement

    radius = (stages**2 - 1) / 1.54 - 0.01
    assert (stretched(torch.linspace(0, radius, 500, dtype=torch.float64), 1.0, radius).abs() <= 1 + 1e-9).all()
    few = torch.tensor([1.0, 2.0], dtype=torch.float64)
    errors = [float((stretched(few, t, radius / t) - torch.exp(-t * few)).norm()) for t in (0.02, 0.01)]
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.1)


def test_errors_stay_small_against_the_movement_where_the_flow_slows_down():
    """θ' = −θ from 10: the distance from the start stays 10 when steps are as short as 0.0005."""
    theta = torch.tensor([10.0], dtype=torch.float64, requires_grad=True)
    flow = GradientFlow([theta], lr=1.0, tolerance=2e-4)

    def closure() -> float:
        theta.grad = theta.detach().clone()
        return float(theta.detach().square()) / 2

    for _ in range(10):
        flow.step(closure)
    assert theta.item() == pytest.approx(10 * np.exp(-10), rel=0.3)  # errs by 0.7 if the distance alone decides


def test_a_flow_that_no_substep_follows_is_given_up():
    theta, generator = torch.ones(1, dtype=torch.float64, requires_grad=True), torch.Generator().manual_seed(0)

    def jumping() -> float:
        theta.grad = torch.randn(1, dtype=torch.float64, generator=generator)
        return theta.item()

    with pytest.raises(InputError, match="no flow even in steps of"):
        GradientFlow([theta], lr=1.0, tolerance=1e-9).step(jumping)


def test_a_gradient_that_is_not_finite_is_named():
    theta = torch.ones(1, requires_grad=True)

    def broken() -> float:
        theta.grad = torch.full_like(theta, 1.0 if theta.item() == 1 else float("nan"))
        return theta.item()

    with pytest.raises(InputError, match="the gradient is not finite"):
        GradientFlow([theta], lr=1.0).step(broken)


def network() -> EmpiricalRisk:
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 12)[:, None]
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    return EmpiricalRisk(model, square_loss, x, torch.cos(3 * x), chunk=5, precision="float64")


def followed(risk: EmpiricalRisk, flow: GradientFlow, steps: int) -> np.ndarray:
    def closure() -> float:
        risk.model.zero_grad()
        return float(risk.backward().losses.mean())

    for _ in range(steps):
        flow.step(closure)
    return nn.utils.parameters_to_vector(risk.parameters).detach().numpy()


def test_a_network_follows_the_flow_that_scipy_integrates():
    risk = network()
    start = nn.utils.parameters_to_vector(risk.parameters).detach().clone().numpy()

    def slope(_, theta):
        nn.utils.vector_to_parameters(torch.from_numpy(theta), risk.parameters)
        risk.model.zero_grad()
        risk.backward()
        return -np.concatenate([p.grad.numpy().ravel() for p in risk.parameters])

    exact = solve_ivp(slope, (0, 5), start, method="DOP853", rtol=1e-9, atol=1e-11).y[:, -1]
    risk = network()
    ours = followed(risk, GradientFlow(risk.parameters, lr=0.5, tolerance=1e-3), 10)
    assert np.linalg.norm(ours - exact) < 2e-3 * np.linalg.norm(exact - start)


def test_a_restored_flow_goes_on_exactly():
    whole, halved = network(), network()
    expected = followed(whole, GradientFlow(whole.parameters, lr=0.3), 4)
    first = GradientFlow(halved.parameters, lr=0.3)
    followed(halved, first, 2)
    second = GradientFlow(halved.parameters, lr=0.3)
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(followed(halved, second, 2), expected)


@pytest.mark.parametrize(("settings", "message"), [({"lr": 0}, "optimizer.lr=0"), ({"tolerance": -1}, "tolerance=-1")])
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        GradientFlow([torch.zeros(1, requires_grad=True)], **{"lr": 0.1, **settings})
