"""The model on sampled points with more layers and other losses: derivatives, balance, end of the flow."""

import numpy as np
import pytest
import torch

from opposing_signals.errors import InputError
from opposing_signals.studies.theory import deep
from opposing_signals.studies.theory import model as m
from opposing_signals.studies.theory.model import TwoLayerModel


def problem(loss="square", layers=2, points=50, **changes):
    fields = {"d1": 3, "d2": 4, "alpha": 5.0, "beta_norm": 6.0, "p": 0.4, "signal": "ones"} | changes
    model = TwoLayerModel(**fields)
    return model, deep.sample_problem(model, points, np.random.default_rng(0), loss, layers)


def torch_loss(theta, given):
    z, y = torch.from_numpy(given.z), torch.from_numpy(given.y)
    output = theta[z.shape[1] :].prod() * (z @ theta[: z.shape[1]])
    if given.loss == "square":
        return 0.5 * ((output - y) ** 2).mean()
    return torch.nn.functional.binary_cross_entropy_with_logits(output, y)


@pytest.mark.parametrize("loss", ["square", "logistic"])
@pytest.mark.parametrize("layers", [2, 4])
def test_derivatives_equal_automatic_differentiation(loss, layers):
    _, given = problem(loss, layers)
    theta = np.random.default_rng(1).standard_normal(7 + layers - 1)
    at, point = deep.evaluate(theta, given), torch.from_numpy(theta)
    assert at.losses.mean() == pytest.approx(torch_loss(point, given).item(), rel=1e-12)
    gradient = torch.func.grad(torch_loss)(point, given).numpy()
    np.testing.assert_allclose(at.gradient, gradient, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(deep.gradient(theta, given), gradient, rtol=1e-10, atol=1e-12)
    hessian = torch.func.hessian(torch_loss)(point, given).numpy()
    np.testing.assert_allclose(at.hessian, hessian, rtol=1e-10, atol=1e-11)


def test_two_layers_are_the_model_of_the_paper():
    model, given = problem(points=2000)
    theta = np.random.default_rng(2).standard_normal(8)
    sample = m.sample_data(model, 2000, np.random.default_rng(0))
    np.testing.assert_allclose(deep.evaluate(theta, given).losses, m.sample_losses(theta, sample))


@pytest.mark.parametrize("loss", ["square", "logistic"])
def test_layers_stay_balanced_along_the_flow(loss):
    model, given = problem(loss, layers=3)
    start = deep.initial_parameters(model, 3)
    assert start[:7] @ start[:7] == pytest.approx(1)
    end = deep.flow_end(start, given, 0.5)
    assert np.abs(end - start).max() > 0.1
    np.testing.assert_allclose(end[7:] ** 2, end[:7] @ end[:7], rtol=1e-5)


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_final_sharpness_is_that_of_the_balanced_minimum(layers):
    """At Cw = β with balanced layers, under moments as of a whole population."""
    alpha, beta_norm, scale = 20.0, 6.0, np.sqrt(2.0)
    rows = np.vstack(
        [np.diag([scale, np.sqrt(2 * alpha)]), -np.diag([scale, np.sqrt(2 * alpha)])]
    )  # E[zzᵀ] = diag(1, α)
    given = deep.DeepProblem(rows, beta_norm * rows[:, 0], np.sign(rows[:, 1]), np.array([0.0, 1.0]), "square", layers)
    size = beta_norm ** (1 / layers)
    at = deep.evaluate(np.array([size, 0.0, *[size] * (layers - 1)]), given)
    assert at.losses.max() < 1e-20
    expected = deep.final_sharpness(alpha, beta_norm, layers)
    assert np.linalg.eigvalsh(at.hessian)[-1] == pytest.approx(float(expected))


def test_a_diverging_descent_ends_early():
    model, given = problem()
    iterates = list(deep.descend(deep.initial_parameters(model, 2), given, 10.0, 100))
    assert 0 < len(iterates) < 101
    assert all(np.isfinite(theta).all() for theta, _ in iterates)


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match="loss = 'hinge'"):
        problem("hinge")
    with pytest.raises(InputError, match="layers = 1"):
        problem(layers=1)
    with pytest.raises(InputError, match="signal = 'isotropic'"):
        problem(signal="isotropic")
    with pytest.raises(InputError, match="8 entries: expected 7 weights and 2"):
        deep.evaluate(np.ones(8), problem(layers=3)[1])
