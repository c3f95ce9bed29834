"""The reduced dynamics against gradient flow and gradient descent of the full vectors."""

import time

import numpy as np
import pytest
from dense import hessian
from hypothesis import given, settings
from hypothesis import strategies as st

from opposing_signals.errors import InputError
from opposing_signals.studies.theory import flow as f
from opposing_signals.studies.theory import model as m
from opposing_signals.studies.theory.model import ReducedState, TwoLayerModel

pytestmark = pytest.mark.filterwarnings("ignore::opposing_signals.studies.theory.model.TheoremConditionWarning")

FIELDS = ("epsilon", "delta", "b_o", "c")


@pytest.mark.parametrize("signal", ["isotropic", "ones"])
@pytest.mark.parametrize(("d1", "d2", "alpha", "beta_norm"), [(1, 3, 0.5, 1.0), (3, 7, 20.0, 6.0), (2, 30, 100.0, 5.0)])
def test_reduced_flow_is_the_flow_of_the_full_vectors(d1, d2, alpha, beta_norm, signal):
    model = TwoLayerModel(d1, d2, alpha, beta_norm, signal=signal)
    t = np.concatenate([[0.0], np.geomspace(1e-4, 3 / beta_norm, 40)])
    full = m.reduce(f.full_gradient_flow(model, m.embed(m.initial_state(model), model), t), model)
    reduced = f.gradient_flow(model, horizon=3 / beta_norm).at(t)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(reduced, name), getattr(full, name), rtol=1e-7, atol=1e-9)


def test_any_directions_of_b_and_b_o_give_the_same_reduced_flow():
    model = TwoLayerModel(4, 9, alpha=10.0, beta_norm=5.0)
    theta = m.sample_initial_parameters(model, np.random.default_rng(0))
    t = np.linspace(0, 1, 30)
    full = m.reduce(f.full_gradient_flow(model, theta, t), model)
    reduced = f.gradient_flow(model, initial=m.reduce(theta, model), horizon=1.0).at(t)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(reduced, name), getattr(full, name), rtol=1e-7, atol=1e-9)


def test_events_are_where_their_names_say():
    model = TwoLayerModel(100, 1000, alpha=100.0, beta_norm=10.0)
    path = f.gradient_flow(model)

    def rate(t):
        return m.velocity(path.at(t), 100.0, 10.0).c

    def sharpness(t):
        return m.sharpness(path.at(t), 100.0, 10.0)

    assert rate(path.turn_time * (1 - 1e-6)) < 0 < rate(path.turn_time * (1 + 1e-6))
    fine = np.geomspace(1e-4, path.t[-1], 20_000)
    assert path.minimum_sharpness_time == pytest.approx(fine[sharpness(fine).argmin()], rel=1e-3)
    assert sharpness(path.minimum_sharpness_time) <= sharpness(fine).min()
    last = path.at(path.t[-1])  # where it has converged
    assert np.hypot(10.0 - last.c * last.epsilon, last.c * last.delta) == pytest.approx(1e-7, rel=1e-3)


def test_events_that_happen_at_the_start_or_never():
    assert f.gradient_flow(TwoLayerModel(2, 3, alpha=0.1, beta_norm=6.0)).turn_time == 0.0
    minimum = ReducedState(2.0, 0.0, 0.0, 2.0)
    assert f.gradient_flow(TwoLayerModel(2, 3, 1.0, 4.0), initial=minimum).t[-1] == 0.25  # 1/‖β‖
    backwards = ReducedState(0.0, 1.0, 0.0, 1.0)
    assert f.gradient_flow(TwoLayerModel(2, 3, 1.0, 5.0), initial=backwards, horizon=1e-3).turn_time is None


def test_grid_agrees_with_single_integrations():
    alpha, beta_norm = np.array([[0.5], [30.0], [1e5]]), np.array([5.0, 40.0])
    start = m.initial_state(TwoLayerModel(50, 500, 1.0, 5.0))
    grid = f.gradient_flow_grid(alpha, beta_norm, start, samples=50)
    assert grid.t.shape == grid.states.c.shape == (3, 2, 50)
    for i in range(3):
        for j in range(2):
            model = TwoLayerModel(50, 500, float(alpha[i, 0]), float(beta_norm[j]))
            t = grid.t[i, j]
            single = f.gradient_flow(model, horizon=float(t[-1])).at(t)
            for name in FIELDS:
                np.testing.assert_allclose(
                    getattr(grid.states, name)[i, j], getattr(single, name), rtol=1e-6, atol=1e-9, err_msg=name
                )


def test_more_points_than_one_chunk_keep_their_order():
    alpha = np.geomspace(1, 100, f._CHUNK + 3)
    start = ReducedState(0.1, 0.3, 0.9, 1.0)
    grid = f.gradient_flow_grid(alpha, 5.0, start, samples=3)
    alone = f.gradient_flow_grid(alpha[-1], 5.0, start, samples=3)
    np.testing.assert_allclose(grid.t[-1], alone.t)
    np.testing.assert_allclose(grid.states.c[-1], alone.states.c, rtol=1e-8)


def test_a_grid_of_a_thousand_models_takes_seconds():
    start = time.perf_counter()
    f.gradient_flow_grid(np.geomspace(1, 1e6, 1000), 8.0, m.initial_state(TwoLayerModel(10**5, 10**6, 1.0, 400.0)), 200)
    assert time.perf_counter() - start < 10


def test_reduced_descent_is_the_descent_of_the_full_vectors():
    model = TwoLayerModel(3, 7, alpha=20.0, beta_norm=5.0)
    # Above the edge 2/(α‖β‖): b_o crosses 0, so signs matter.
    step_size, steps = 1.2 * 2 / 100, 120
    full = [m.embed(m.initial_state(model), model)]
    for _ in range(steps):
        full.append(full[-1] - step_size * m.gradient(full[-1], model))
    full = np.stack(full)
    path = f.gradient_descent(20.0, 5.0, m.initial_state(model), step_size, steps)
    np.testing.assert_allclose(path.states.b_o, full[:, 3:-1].sum(axis=1) / np.sqrt(7), rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(path.states.epsilon, full[:, 0], rtol=1e-8)
    np.testing.assert_allclose(path.states.delta, full[:, 1], rtol=1e-8)
    np.testing.assert_allclose(path.states.c, full[:, -1], rtol=1e-8)
    assert np.any(path.states.b_o < 0)
    assert path.loss[-1] == pytest.approx(m.population_loss(full[-1], model), rel=1e-8)
    assert path.sharpness[-1] == pytest.approx(np.linalg.eigvalsh(hessian(full[-1], model))[-1], rel=1e-8)


def test_descent_with_small_steps_follows_the_flow():
    model = TwoLayerModel(10, 20, alpha=30.0, beta_norm=6.0)
    errors = []
    for steps in (2000, 4000):
        path = f.gradient_descent(30.0, 6.0, m.initial_state(model), 0.5 / steps, steps)
        errors.append(abs(path.states.c[-1] - f.gradient_flow(model, horizon=0.5).at(0.5).c))
    assert errors[0] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.05)  # first order


def test_descent_broadcasts_over_step_sizes_and_reports_divergence():
    model = TwoLayerModel(10, 20, alpha=30.0, beta_norm=6.0)
    start = m.initial_state(model)
    steps = np.array([0.5, 2.5]) * 2 / 180
    path = f.gradient_descent(30.0, 6.0, start, steps, 300)
    assert path.diverged.tolist() == [False, True]
    alone = f.gradient_descent(30.0, 6.0, start, steps[0], 300)
    np.testing.assert_array_equal(path.states.c[:, 0], alone.states.c)
    assert np.isnan(path.sharpness[-1, 1])


def test_a_b_o_below_float64_still_grows_back_at_the_edge():
    model = TwoLayerModel(100, 200, alpha=1000.0, beta_norm=10.0)
    path = f.gradient_descent(1000.0, 10.0, m.initial_state(model), 1.1 * 2 / 10_000, 30_000)
    assert path.log_b_o.min() < -745  # e^-745 is the smallest float64
    assert path.log_b_o[5000:].max() > -3
    assert 1.1 * 2 / 10_000 * path.sharpness[-1] < 2


@settings(max_examples=15, deadline=None)
@given(
    d1=st.integers(1, 10**6),
    factor=st.floats(1.0001, 1e3),
    alpha=st.floats(0.2, 1e6),
    beta_norm=st.floats(0.5, 1e3),
)
def test_loss_falls_along_the_flow_to_its_minimum(d1, factor, alpha, beta_norm):
    path = f.gradient_flow(TwoLayerModel(d1, int(d1 * factor) + 1, alpha, beta_norm))
    losses = np.asarray(m.loss(path.states, alpha, beta_norm))
    assert np.all(np.diff(losses) <= 1e-9 * losses[0])
    assert losses[-1] == pytest.approx(alpha / 2, abs=1e-9 * losses[0])


def test_a_failing_integration_tells_time_and_state():
    model = TwoLayerModel(2, 3, alpha=10.0, beta_norm=5.0)
    with pytest.raises(f.IntegrationError, match=r"stopped at t = 0 with epsilon = 1, c = 1e\+200.*not finite"):
        f.gradient_flow(model, initial=ReducedState(1.0, 1.0, 1.0, 1e200))
    with pytest.raises(f.IntegrationError, match="t = 0"):
        f.gradient_flow_grid(10.0, 5.0, ReducedState(1.0, 1.0, 1.0, np.array([1.0, 1e200])))
    saddle = ReducedState(0.0, 0.0, 0.0, 0.0)
    with pytest.raises(f.IntegrationError, match=r"has not converged at t = .* c=.*give a horizon"):
        f.gradient_flow(model, initial=saddle)


def test_bad_arguments_are_refused():
    model = TwoLayerModel(2, 3, alpha=1.0, beta_norm=5.0)
    start = m.initial_state(model)
    with pytest.raises(InputError, match="horizon = 0"):
        f.gradient_flow(model, horizon=0.0)
    with pytest.raises(InputError, match="samples = 1"):
        f.gradient_flow_grid(1.0, 5.0, start, samples=1)
    with pytest.raises(InputError, match="step_size = 0"):
        f.gradient_descent(1.0, 5.0, start, 0.0, 3)
    with pytest.raises(InputError, match="steps = -1"):
        f.gradient_descent(1.0, 5.0, start, 0.1, -1)
