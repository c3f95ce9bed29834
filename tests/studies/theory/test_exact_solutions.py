"""The closed forms against integration: balance, final c, both phases, step sizes, growth and return."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opposing_signals.errors import InputError
from opposing_signals.studies.theory import exact
from opposing_signals.studies.theory import flow as f
from opposing_signals.studies.theory import model as m
from opposing_signals.studies.theory.model import ReducedState, TwoLayerModel

pytestmark = pytest.mark.filterwarnings("ignore::opposing_signals.studies.theory.model.TheoremConditionWarning")

models = st.builds(
    lambda d1, factor, alpha, beta_norm: TwoLayerModel(d1, int(d1 * factor) + 1, alpha, beta_norm),
    d1=st.integers(1, 10**4),
    factor=st.floats(1.0001, 1e3),
    alpha=st.floats(0.2, 1e5),
    beta_norm=st.floats(0.5, 300),
)


@settings(max_examples=15, deadline=None)
@given(model=models)
def test_balance_is_conserved_and_forces_the_final_c(model):
    path = f.gradient_flow(model)
    scale = np.maximum(1, model.beta_norm)
    assert np.abs(exact.balance(path.states)).max() < 1e-8 * scale
    assert path.states.c[-1] ** 2 == pytest.approx(exact.final_c_squared(model.beta_norm), rel=1e-6)
    assert path.sharpness[-1] == pytest.approx(max(model.alpha, 2) * model.beta_norm, rel=1e-6)


share = st.floats(-0.7, 0.7)


@settings(max_examples=15, deadline=None)
@given(
    alpha=st.floats(0.5, 100),
    beta_norm=st.floats(1, 20),
    start=st.builds(
        lambda epsilon, delta, b_o, c: ReducedState(epsilon, delta * c, b_o * c, c),
        epsilon=st.floats(0.1, 2),
        delta=share,
        b_o=share,
        c=st.floats(0.1, 2),
    ),
)
def test_from_other_starts_the_balance_gives_the_final_c_and_sharpness(alpha, beta_norm, start):
    path = f.gradient_flow(TwoLayerModel(2, 3, alpha, beta_norm), initial=start)
    Q = exact.balance(start)
    assert path.states.c[-1] ** 2 == pytest.approx(exact.final_c_squared(beta_norm, Q), rel=1e-5)
    assert path.sharpness[-1] == pytest.approx(exact.final_sharpness(alpha, beta_norm, Q), rel=1e-5)


def test_balance_in_the_full_vectors_and_its_change_under_gradient_descent():
    model = TwoLayerModel(3, 5, alpha=10.0, beta_norm=5.0, signal="ones")
    theta = m.sample_initial_parameters(model, np.random.default_rng(0))

    def balance(theta):
        return theta[..., -1] ** 2 - np.sum(theta[..., :-1] ** 2, axis=-1)

    flow = f.full_gradient_flow(model, theta, np.linspace(0, 2, 9))
    np.testing.assert_allclose(balance(flow), balance(theta), atol=1e-7)
    step_size, gradient = 0.01, m.gradient(theta, model)
    change = balance(theta - step_size * gradient) - balance(theta)
    assert change == pytest.approx(step_size**2 * balance(gradient))


@settings(max_examples=40, deadline=None)
@given(alpha=st.floats(0.1, 1e4), beta_norm=st.floats(0.1, 100), c_squared=st.floats(0.01, 100))
def test_sharpness_of_every_minimum_and_the_flattest_of_them(alpha, beta_norm, c_squared):
    c = np.sqrt(c_squared)
    minimum = ReducedState(beta_norm / c, 0.0, 0.0, c)
    value = exact.sharpness_at_minimum(c_squared, alpha, beta_norm)
    assert m.sharpness(minimum, alpha, beta_norm) == pytest.approx(float(value), rel=1e-9)
    at, flattest = exact.flattest_minimum(alpha, beta_norm)
    assert flattest <= value * (1 + 1e-12)
    assert exact.sharpness_at_minimum(at, alpha, beta_norm) == pytest.approx(float(flattest))


@settings(max_examples=15, deadline=None)
@given(d1=st.integers(1, 10**4), factor=st.floats(1.0001, 1e3), alpha=st.floats(0.2, 1e5), excess=st.floats(1.0, 10.0))
def test_fast_phase_bounds_hold_at_all_times_for_every_alpha(d1, factor, alpha, excess):
    d2 = int(d1 * factor) + 1
    model = TwoLayerModel(d1, d2, alpha, beta_norm=max(0.5, excess * d1 / np.sqrt(d1 + d2)))
    path = f.gradient_flow(model)
    c_squared, o = exact.fast_phase(path.t, alpha, model.k)
    assert np.all(path.states.c**2 >= c_squared * (1 - 1e-8))
    assert np.all(path.states.o <= o * (1 + 1e-6) + 1e-300)
    # ‖b‖² only grows, from m to ‖β‖; so λ ≥ αc² > α‖b‖² never falls below αm.
    b_squared = path.states.b_squared
    assert b_squared[0] == pytest.approx(model.m)
    assert np.all(np.diff(b_squared) >= -1e-9 * b_squared[1:])
    assert np.all(path.sharpness >= alpha * b_squared * (1 - 1e-8))


def test_fast_phase_is_the_limit_of_large_alpha():
    model = TwoLayerModel(1000, 3000, alpha=1e7, beta_norm=16.0)
    path = f.gradient_flow(model, horizon=8 / (1e7 * model.m))
    c_squared, o = exact.fast_phase(path.t, model.alpha, model.k)
    np.testing.assert_allclose(path.states.c**2, c_squared, rtol=1e-4)
    np.testing.assert_allclose(path.states.o[o > 1e-3], o[o > 1e-3], rtol=1e-2)


@pytest.mark.parametrize(("epsilon", "delta", "beta_norm"), [(0.05, 0.4, 6.0), (0.3, 0.0, 2.0), (1.0, 2.0, 0.5)])
def test_slow_phase_is_the_flow_without_b_o(epsilon, delta, beta_norm):
    start = ReducedState(epsilon, delta, 0.0, np.hypot(epsilon, delta))
    t = np.linspace(0, 6 / beta_norm, 50)
    path = f.gradient_flow(TwoLayerModel(2, 3, 10.0, beta_norm), initial=start, horizon=float(t[-1]))
    solution, integrated = exact.slow_phase(t, epsilon, delta, beta_norm), path.at(t)
    for name in ("epsilon", "delta", "c"):
        np.testing.assert_allclose(getattr(solution, name), getattr(integrated, name), rtol=1e-8, atol=1e-12)


def test_sharpening_after_b_o_is_gone_follows_the_slow_phase():
    """λ(t) = αc²(t) once b_o is negligible, to 1e-6, over the whole growth."""
    model = TwoLayerModel(100, 300, alpha=1e5, beta_norm=8.0)
    path = f.gradient_flow(model)
    begin = 4 * path.minimum_sharpness_time
    state = path.at(begin)
    t = np.linspace(0, path.t[-1] - begin, 100)
    predicted = model.alpha * exact.slow_phase(t, state.epsilon, state.delta, 8.0).c ** 2
    np.testing.assert_allclose(m.sharpness(path.at(begin + t), model.alpha, 8.0), predicted, rtol=1e-6)


def test_slow_phase_refuses_times_it_cannot_represent():
    with pytest.raises(InputError, match="‖β‖t"):
        exact.slow_phase(1000.0, 0.1, 0.1, 5.0)
    with pytest.raises(InputError):
        exact.slow_phase(-1.0, 0.1, 0.1, 5.0)


STABLE = [(100, 200, 100.0, 10.0), (50, 500, 30.0, 5.0), (10, 11, 10.0, 8.0)]


@pytest.mark.parametrize(("d1", "d2", "alpha", "beta_norm"), STABLE)
def test_gradient_descent_below_the_edge_never_oscillates_again(d1, d2, alpha, beta_norm):
    step_size = 0.97 * exact.step_sizes(alpha, beta_norm).edge
    path = f.gradient_descent(
        alpha, beta_norm, m.initial_state(TwoLayerModel(d1, d2, alpha, beta_norm)), step_size, 6000
    )
    assert step_size * path.sharpness[-1] == pytest.approx(2 * 0.97, rel=0.03)
    assert path.sharpness[-1] < 2 / step_size
    assert np.all(np.diff(path.log_b_o) < 0)


@pytest.mark.parametrize(("d1", "d2", "alpha", "beta_norm"), STABLE)
def test_gradient_descent_above_the_edge_alternates_grows_and_returns(d1, d2, alpha, beta_norm):
    sizes = exact.step_sizes(alpha, beta_norm)
    factors = np.array([1.1, 1.3, 1.5])
    start = m.initial_state(TwoLayerModel(d1, d2, alpha, beta_norm))
    path = f.gradient_descent(alpha, beta_norm, start, factors * sizes.edge, 20_000)
    edge = 2 / (factors * sizes.edge)
    assert np.all(path.sharpness.max(axis=0) > edge)  # past 2/η
    for run in range(3):
        log_b_o, c = path.log_b_o[:, run], path.states.c[:, run]
        above = alpha * c**2 > edge[run]
        assert np.all(np.diff(log_b_o)[above[:-1]] > 0)  # growth while αc² > 2/η
        sign = np.sign(path.states.b_o[:-1, run][above[:-1]] * path.states.b_o[1:, run][above[:-1]])
        assert np.all(sign <= 0)  # alternation; 0 where b_o has underflowed
        assert log_b_o[-1] < log_b_o[above].max() - 5  # and it is gone again
    final = path.sharpness[-1] / edge
    assert np.all((final > 0.8) & (final < 1))  # the return ends in a minimum below 2/η
    assert path.loss[-1] == pytest.approx(alpha / 2, rel=1e-9)


@pytest.mark.parametrize(("d1", "d2", "alpha", "beta_norm"), STABLE)
def test_gradient_descent_diverges_beyond_the_catapult(d1, d2, alpha, beta_norm):
    sizes = exact.step_sizes(alpha, beta_norm)
    start = m.initial_state(TwoLayerModel(d1, d2, alpha, beta_norm))
    path = f.gradient_descent(alpha, beta_norm, start, np.array([0.9, 1.15]) * sizes.catapult, 20_000)
    assert path.diverged.tolist() == [False, True]
    assert path.loss[-1, 0] == pytest.approx(alpha / 2, rel=1e-6)


def test_in_the_pair_alone_the_catapult_threshold_is_exact():
    """ε = δ = β = 0 leaves ½α(c b_o)², where gradient descent converges iff ηα(c² + b_o²) < 4."""
    for factor, diverges in ((0.99, False), (1.01, True)):
        start = ReducedState(0.0, 0.0, 0.01, 1.0)
        step_size = factor * 4 / (10 * 1.0001)
        assert f.gradient_descent(10.0, 1e-300, start, step_size, 3000).diverged == diverges


def test_no_minimum_is_stable_beyond_the_flattest():
    sizes = exact.step_sizes(50.0, 6.0)
    c_squared = np.geomspace(0.01, 100, 2001)
    values = exact.sharpness_at_minimum(c_squared, 50.0, 6.0)
    assert np.all(2 / values <= sizes.no_minimum * (1 + 1e-12))
    assert (2 / values).max() == pytest.approx(sizes.no_minimum, rel=1e-2)
    assert sizes.edge < sizes.catapult < sizes.no_minimum


def test_growth_and_return_approach_their_leading_order():
    alpha, beta_norm = 3.0, 5.0
    c = np.sqrt(beta_norm)
    errors = []
    for excess, steps in ((0.02, 4000), (0.005, 16_000)):
        step_size = (2 + excess) / (alpha * beta_norm)
        predicted = exact.oscillation(beta_norm, alpha, beta_norm, step_size)
        assert predicted.excess == pytest.approx(excess)
        path = f.gradient_descent(alpha, beta_norm, ReducedState(c, 0.0, 1e-6, c), step_size, steps)
        final = step_size * alpha * path.states.c[-1] ** 2 - 2
        errors.append((path.states.o.max() / predicted.largest_o - 1, final / predicted.final_excess - 1))
    coarse, fine = np.abs(errors)
    assert np.all(coarse < 0.05)
    assert np.all(fine < 0.4 * coarse)  # first order in the excess


def test_growth_far_above_the_valleys_rate_has_half_the_peak():
    alpha, beta_norm, excess = 1e4, 5.0, 0.02
    step_size = (2 + excess) / (alpha * beta_norm)
    predicted = exact.oscillation(beta_norm, alpha, beta_norm, step_size)
    c = np.sqrt(beta_norm)
    path = f.gradient_descent(alpha, beta_norm, ReducedState(c, 0.0, 1e-6, c), step_size, 3000)
    assert path.states.o.max() == pytest.approx(predicted.largest_o / 2, rel=0.05)


@settings(max_examples=40, deadline=None)
@given(
    d1=st.integers(1, 10**6), factor=st.floats(1.0001, 1e3), alpha=st.floats(0.01, 1e6), beta_norm=st.floats(0.1, 1e3)
)
def test_initial_sharpness_lies_above_its_floor_and_below_three_alpha_beyond_the_threshold(
    d1, factor, alpha, beta_norm
):
    model = TwoLayerModel(d1, int(d1 * factor) + 1, alpha, beta_norm)
    value = float(m.sharpness(m.initial_state(model), alpha, beta_norm))
    assert value > exact.initial_sharpness_floor(model.k) * alpha * (1 - 1e-12) > 2.186 * alpha
    threshold = exact.alpha_for_three_alpha(model.d1, model.d2, beta_norm)
    if abs(alpha / threshold - 1) > 1e-6 and abs(value / alpha - 3) > 1e-9:
        assert (value < 3 * alpha) == (alpha > threshold)
