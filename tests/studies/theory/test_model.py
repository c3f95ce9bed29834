"""The two-layer model: loss, gradient and Hessian against data, automatic differentiation and dense eigenvalues."""

import math
import warnings

import numpy as np
import pytest
import torch
from dense import gradient, hessian, torch_loss
from hypothesis import given, settings
from hypothesis import strategies as st

from opposing_signals.errors import InputError
from opposing_signals.studies.theory import model as m
from opposing_signals.studies.theory.model import ReducedState, TheoremConditionWarning, TwoLayerModel

pytestmark = pytest.mark.filterwarnings("ignore::opposing_signals.studies.theory.model.TheoremConditionWarning")

SIGNALS = ("isotropic", "ones")


@pytest.mark.parametrize("signal", SIGNALS)
def test_loss_and_gradient_equal_automatic_differentiation(signal):
    rng = np.random.default_rng(0)
    model = TwoLayerModel(3, 5, alpha=7.0, beta_norm=6.0, signal=signal)
    for _ in range(5):
        theta = rng.standard_normal(9)
        expected = torch_loss(torch.from_numpy(theta), model).item()
        assert m.population_loss(theta, model) == pytest.approx(expected, rel=1e-12)
        np.testing.assert_allclose(m.gradient(theta, model), gradient(theta, model), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("p", [0.2, 1.0])
def test_population_loss_is_the_mean_over_sampled_data(signal, p):
    rng = np.random.default_rng(1)
    model = TwoLayerModel(3, 4, alpha=5.0, beta_norm=5.0, p=p, signal=signal)
    sample = m.sample_data(model, 200_000, rng)
    for _ in range(3):
        theta = rng.standard_normal(8)
        losses = m.sample_losses(theta, sample)
        error = losses.std() / math.sqrt(losses.size)
        assert error < 0.05 * losses.mean()
        assert abs(losses.mean() - m.population_loss(theta, model)) < 5 * error


def test_equation_4_does_not_hold_for_the_signal_along_ones():
    """Off the line of 1 the text's distribution is blind to b_o, while ‖b_o‖² is not."""
    model = TwoLayerModel(2, 4, alpha=5.0, beta_norm=5.0, p=1.0, signal="ones")
    theta = m.embed(ReducedState(1.0, 0.5, 0.0, 2.0), model)
    theta[2:6] = [1.0, -1.0, 1.0, -1.0]
    sample = m.sample_data(model, 100_000, np.random.default_rng(2))
    equation_4 = m.loss(m.reduce(theta, TwoLayerModel(2, 4, alpha=5.0, beta_norm=5.0)), 5.0, 5.0)
    losses = m.sample_losses(theta, sample)
    assert abs(losses.mean() - m.population_loss(theta, model)) < 5 * losses.std() / math.sqrt(losses.size)
    assert equation_4 == pytest.approx(m.population_loss(theta, model) + 0.5 * 5.0 * 4.0 * 4.0)


def test_groups_of_the_data_have_the_stated_losses():
    model = TwoLayerModel(2, 3, alpha=4.0, beta_norm=5.0, p=0.5, signal="ones")
    state = ReducedState(0.7, 0.3, -0.4, 1.5)
    sample = m.sample_data(model, 200_000, np.random.default_rng(3))
    losses = m.sample_losses(m.embed(state, model), sample)
    sign = np.sign(sample.x_o[:, 0])
    expected = m.group_losses(state, model)
    for group, value in zip((1, -1, 0), expected, strict=True):
        part = losses[sign == group]
        assert abs(part.mean() - value) < 5 * part.std() / math.sqrt(part.size)
    assert 0.25 * expected[0] + 0.25 * expected[1] + 0.5 * expected[2] == pytest.approx(m.loss(state, 4.0, 5.0))


# Rounded: of a matrix with entries near 1e-79 LAPACK's own top eigenvalue is wrong in the tenth digit.
coordinate = st.floats(-3, 3).map(lambda value: round(value, 9))


@settings(max_examples=40, deadline=None)
@given(
    d1=st.integers(1, 4),
    extra=st.integers(1, 4),
    alpha=st.floats(0.05, 50),
    beta_norm=st.floats(0.1, 20),
    signal=st.sampled_from(SIGNALS),
    state=st.builds(ReducedState, coordinate, coordinate.map(abs), coordinate, coordinate),
)
def test_the_top_eigenvalue_is_that_of_the_dense_hessian(d1, extra, alpha, beta_norm, signal, state):
    model = TwoLayerModel(d1, d1 + extra, alpha, beta_norm, signal=signal)
    if d1 == 1:
        state = ReducedState(state.epsilon, 0.0, state.b_o, state.c)
    theta = m.embed(state, model)
    dense = np.linalg.eigvalsh(hessian(theta, model))
    scale = np.abs(dense).max()
    assert m.sharpness(state, alpha, beta_norm) == pytest.approx(dense[-1], abs=1e-12 * scale)


@settings(max_examples=40, deadline=None)
@given(
    alpha=st.floats(0.05, 50),
    beta_norm=st.floats(0.1, 20),
    state=st.builds(ReducedState, coordinate, coordinate, coordinate, coordinate),
)
def test_reduced_derivatives_are_those_of_the_reduced_loss(alpha, beta_norm, state):
    def torch_reduced(y):
        return 0.5 * ((y[3] * y[0] - beta_norm) ** 2 + (y[3] * y[1]) ** 2 + alpha * (y[3] ** 2 * y[2] ** 2 + 1))

    y = torch.tensor([state.epsilon, state.delta, state.b_o, state.c], dtype=torch.float64)
    v = m.velocity(state, alpha, beta_norm)
    slope, curvature = (derivative(torch_reduced)(y).numpy() for derivative in (torch.func.grad, torch.func.hessian))
    np.testing.assert_allclose([v.epsilon, v.delta, v.b_o, v.c], -slope, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(m.reduced_hessian(state, alpha, beta_norm), curvature, rtol=1e-10, atol=1e-10)
    assert m.loss(state, alpha, beta_norm) == pytest.approx(torch_reduced(y).item())


def test_sharpness_velocity_is_the_derivative_along_the_flow():
    state, alpha, beta_norm, h = ReducedState(0.4, 0.3, 0.2, 0.9), 20.0, 6.0, 1e-6
    v = m.velocity(state, alpha, beta_norm)

    def moved(t):
        return ReducedState(
            state.epsilon + t * v.epsilon, state.delta + t * v.delta, state.b_o + t * v.b_o, state.c + t * v.c
        )

    difference = (m.sharpness(moved(h), alpha, beta_norm) - m.sharpness(moved(-h), alpha, beta_norm)) / (2 * h)
    assert m.sharpness_velocity(state, alpha, beta_norm) == pytest.approx(float(difference), rel=1e-6)


@pytest.mark.parametrize("signal", SIGNALS)
def test_reduce_undoes_embed_and_the_initialization_has_the_stated_norms(signal):
    model = TwoLayerModel(4, 9, alpha=3.0, beta_norm=6.0, signal=signal)
    start = m.initial_state(model)
    theta = m.embed(start, model)
    back = m.reduce(theta, model)
    assert [back.epsilon, back.delta, back.b_o, back.c] == pytest.approx([start.epsilon, start.delta, start.b_o, 1.0])
    assert theta[:4] @ theta[:4] == pytest.approx(model.m) == pytest.approx(start.b_squared)
    assert theta[4:-1] @ theta[4:-1] == pytest.approx(1 - model.m)
    assert theta[:4] @ m.target_vector(model) == pytest.approx(6.0 / math.sqrt(13))


def test_gaussian_initialization_has_the_idealized_norms_but_little_along_ones():
    """‖b_o‖² ≈ d2/(d1+d2) for both signals; its part that the signal of §3.3 sees is 1/(d1+d2)."""
    rng = np.random.default_rng(4)
    model = TwoLayerModel(20, 80, alpha=3.0, beta_norm=6.0, signal="ones")
    theta = np.stack([m.sample_initial_parameters(model, rng) for _ in range(4000)])
    assert np.mean(np.sum(theta[:, 20:-1] ** 2, axis=1)) == pytest.approx(0.8, rel=0.02)
    assert np.mean(m.reduce(theta, model).o) == pytest.approx(0.01, rel=0.1)


def test_millions_of_dimensions_cost_nothing():
    model = TwoLayerModel(10**6, 10**7, alpha=1e4, beta_norm=400.0)
    assert 2.186e4 < m.sharpness(m.initial_state(model), model.alpha, model.beta_norm) < 3e4


def test_sharpness_of_a_diverged_state_is_nan_and_spares_its_neighbours():
    state = ReducedState(np.array([1.0, np.inf]), np.zeros(2), np.zeros(2), np.ones(2))
    values = m.sharpness(state, 10.0, 1.0)
    assert values[0] == pytest.approx(10.0)
    assert np.isnan(values[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d2": 3}, "needs d2 > d1"),
        ({"d2": 2}, "needs d2 > d1"),
        ({"d1": 0}, "d1=0: expected a whole number, at least 1"),
        ({"d1": 1.5}, "d1=1.5"),
        ({"p": 0.0}, "p=0.0"),
        ({"p": 1.1}, "p=1.1: expected a finite number, above 0 and at most 1"),
        ({"p": math.nan}, "p=nan"),
        ({"alpha": 0.0}, "alpha=0.0: expected a finite number, above 0"),
        ({"alpha": math.inf}, "alpha=inf"),
        ({"beta_norm": -1.0}, "beta_norm=-1.0"),
        ({"signal": "both"}, "signal=both: expected isotropic or ones"),
    ],
)
def test_bad_parameters_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        TwoLayerModel(**{"d1": 3, "d2": 5, "alpha": 1.0, "beta_norm": 6.0, **change})


def test_small_beta_warns_and_names_the_condition():
    with pytest.warns(TheoremConditionWarning, match=r"below max\(d1/sqrt\(d1\+d2\), 24/5\) = 4\.8"):
        TwoLayerModel(3, 5, alpha=1.0, beta_norm=4.7)
    with pytest.warns(TheoremConditionWarning, match="= 70"):
        TwoLayerModel(10_000, 10_001, alpha=1.0, beta_norm=70.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TwoLayerModel(3, 5, alpha=1.0, beta_norm=4.8)


def test_an_empty_sample_is_refused():
    with pytest.raises(InputError, match="n = 0"):
        m.sample_data(TwoLayerModel(1, 2, 1.0, 5.0), 0, np.random.default_rng(0))
