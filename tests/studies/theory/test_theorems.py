"""Theorems 3.1 and 3.2 as stated, the sharper statements, and Lemma G.1."""

import math

import numpy as np
import pytest
from dense import hessian
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from opposing_signals.errors import InputError
from opposing_signals.studies.theory import flow as f
from opposing_signals.studies.theory import model as m
from opposing_signals.studies.theory import theorems as th
from opposing_signals.studies.theory.model import TwoLayerModel

pytestmark = pytest.mark.filterwarnings("ignore::opposing_signals.studies.theory.model.TheoremConditionWarning")

ALWAYS = (
    "initial_lower",
    "final_sharpness",
    "balance",
    "sharpness_floor",
    "final_exact",
    "initial_floor",
    "initial_threshold",
)
UNDER_THE_FIRST_BETA_CONDITION = ("outlier_bound", "signal_grows")
UNDER_BOTH_BETA_CONDITIONS = ("sharpness_falls", "sharpness_grows")
UNDER_THE_MEASURED_CONDITION = ("initial_upper", "turn_in_time", "minimum_in_time")


def holds(check, name):
    return bool(check.statements[name].holds)


def failing(check, names, where=True):
    return [name for name in names if np.any(~check.statements[name].holds & where)]


def several(low, high):
    """Six numbers, integrated together at about the cost of one."""
    return st.lists(st.floats(low, high), min_size=6, max_size=6).map(np.array)


@settings(max_examples=8, deadline=None)
@given(d1=st.integers(1, 10**4), k=several(1.0001, 1e3), alpha=several(0.2, 1e6), beta_norm=several(0.5, 500))
def test_what_holds_for_every_alpha(d1, k, alpha, beta_norm):
    check = th.check_grid(alpha, k, beta_norm, d1, samples=300)
    assert failing(check, ALWAYS) == []
    assert failing(check, UNDER_THE_FIRST_BETA_CONDITION, beta_norm >= np.sqrt(d1 / (1 + check.k))) == []
    assert failing(check, UNDER_BOTH_BETA_CONDITIONS, check.conditions["beta"]) == []


@settings(max_examples=8, deadline=None)
@given(d1=st.integers(1, 10**4), k=several(1.0001, 1e3), alpha_factor=several(1, 1e3), beta_factor=several(1, 100))
def test_the_measured_condition_is_enough(d1, k, alpha_factor, beta_factor):
    k = np.maximum(np.rint(k * d1), d1 + 1) / d1
    beta_norm = 1.001 * beta_factor * np.maximum(4.8, np.sqrt(d1 / (1 + k)))
    check = th.check_grid(4.001 * alpha_factor * beta_norm * (1 + k), k, beta_norm, d1, samples=300)
    assert check.conditions["beta"].all()
    assert check.conditions["measured"].all()
    assert failing(check, UNDER_THE_MEASURED_CONDITION) == []


def test_theorem_conclusions_hold_where_the_proofs_conditions_do_and_k_is_not_near_1():
    check = th.check_grid(np.geomspace(1, 1e7, 15)[:, None], np.array([1.6, 3.0, 10.0]), 8.0)
    for condition in ("theorem_3_1", "theorem_3_2"):
        where = check.conditions["beta"] & check.conditions[condition]
        assert where.any()
        for name in ("initial_upper", "turn_in_time", "minimum_in_time", "final_sharpness", "sharpness_grows"):
            assert check.statements[name].holds[where].all()


def test_the_condition_of_theorem_3_1_is_not_enough_near_k_1():
    """ln k vanishes, and with it the condition on α; but λ(0) < 3α and the time bound need α of the order of ‖β‖."""
    check = th.check_grid(1.0, 1.01, 8.0)
    assert bool(check.conditions["beta"])
    assert bool(check.conditions["theorem_3_1"])
    assert float(check.statements["initial_upper"].measured) == pytest.approx(9.11, abs=0.01)
    assert not holds(check, "initial_upper")
    late = check.statements["minimum_in_time"]
    assert float(late.measured) > 2 * float(late.bound)


def test_the_condition_of_theorem_3_1_is_far_from_necessary():
    """k = 10, ‖β‖ = 8: the proof requires α ≥ 21,364; from α = 72 on everything but the rate holds."""
    alpha = np.array([74.0, 200.0, 1000.0, 20_000.0])
    check = th.check_grid(alpha, 10.0, 8.0)
    assert not check.conditions["theorem_3_1"].any()
    for name in UNDER_THE_MEASURED_CONDITION:
        assert check.statements[name].holds.all()
    assert not th.check_grid(70.0, 10.0, 8.0).statements["minimum_in_time"].holds


@pytest.mark.parametrize("k", [2.0, 10.0])
def test_the_rate_is_not_alpha(k):
    """The constant K in ‖b_o‖ ≤ K e^{−αt} grows as α^{k/2}: c² falls to m, and from then on the rate is αm."""
    check = th.check_grid(np.array([1e5, 1e6, 1e7]), k, 8.0)
    slopes = np.diff(check.statements["outlier_decay"].measured) / math.log(10)
    np.testing.assert_allclose(slopes, k / 2, rtol=0.07)
    assert check.conditions["theorem_3_1"].all()
    assert not check.statements["outlier_decay"].holds.any()
    # λ(t) ≥ αm at all times, so no constant makes it O(e^{−αt}) either.
    assert not check.statements["sharpness_decay"].holds.any()


def test_only_one_direction_of_b_o_is_sharp_for_the_signal_of_the_text():
    model = TwoLayerModel(4, 12, alpha=20.0, beta_norm=6.0, signal="ones")
    end = f.full_gradient_flow(model, m.embed(m.initial_state(model), model), np.array([0.0, 4.0]))[-1]
    block = hessian(end, model)[4:-1, 4:-1]
    np.testing.assert_allclose(np.linalg.eigvalsh(block), [0.0] * 11 + [120.0], atol=1e-6)


def test_no_initial_decrease_for_the_signal_of_the_text_under_the_gaussian_initialization():
    """Only the part of b_o along 1 counts, and at d2 = 1,000 it holds 1/1,100 of the norm instead of 10/11."""
    rng = np.random.default_rng(0)
    text = TwoLayerModel(100, 1000, 1000.0, 8.0, signal="ones")
    falls = []
    for _ in range(20):
        path = f.gradient_flow(text, initial=m.reduce(m.sample_initial_parameters(text, rng), text))
        falls.append(path.sharpness.min() / path.sharpness[0])
    assert np.median(falls) > 0.98
    idealized = f.gradient_flow(text)
    assert idealized.sharpness.min() / idealized.sharpness[0] < 0.04


def test_times_agree_with_the_located_events():
    model = TwoLayerModel(100, 1000, alpha=300.0, beta_norm=8.0)
    path, check = f.gradient_flow(model), th.check_model(model)
    assert float(check.statements["turn_in_time"].measured) == pytest.approx(path.turn_time, rel=1e-4)
    assert float(check.statements["minimum_in_time"].measured) == pytest.approx(path.minimum_sharpness_time, rel=1e-4)
    assert float(check.statements["minimum_in_time"].bound) == pytest.approx(math.log(4) / 16)


def test_a_grid_keeps_its_shape_and_its_points():
    alpha, k, beta_norm = (
        np.array([1.0, 100.0])[:, None, None],
        np.array([2.0, 5.0, 50.0])[:, None],
        np.array([5.0, 9.0]),
    )
    check = th.check_grid(alpha, k, beta_norm, d1=10)
    alone = th.check_grid(100.0, 50.0, 5.0, d1=10)
    assert check.k.shape == (2, 3, 2)
    for name, statement in check.statements.items():
        assert statement.holds.shape == statement.bound.shape == (2, 3, 2)
        assert statement.holds[1, 2, 0] == alone.statements[name].holds
        if abs(alone.statements[name].measured) > 1e-6:  # else rounding
            assert statement.measured[1, 2, 0] == pytest.approx(float(alone.statements[name].measured), rel=1e-5)
    for condition in check.conditions.values():
        assert condition.shape == (2, 3, 2)


def test_bad_grids_are_refused():
    with pytest.raises(InputError, match="alpha"):
        th.check_grid(np.array([1.0, 0.0]), 2.0, 5.0)
    with pytest.raises(InputError, match="beta_norm"):
        th.check_grid(1.0, 2.0, math.nan)
    with pytest.raises(InputError, match="above 1"):
        th.check_grid(1.0, 1.0, 5.0)
    with pytest.raises(InputError, match="d1 = 0"):
        th.check_grid(1.0, 2.0, 5.0, d1=0)


def coefficients(n):
    return st.lists(st.floats(0, 2), min_size=n, max_size=n).map(np.array)


@settings(max_examples=25, deadline=None)
@given(
    start=coefficients(3),
    rates=coefficients(3),
    sources=coefficients(3),
    coupling=coefficients(9),
    slack=coefficients(6),
    direction=st.sampled_from([-1, 1]),
)
def test_lemma_g1_comparison_of_affine_equations(start, rates, sources, coupling, slack, direction):
    """v_i' = a_i(v_{−i}) v_i + b_i(v_{−i}), a < 0 ≤ b; bounds on a and b along v bound v, from below and above."""
    mixing = coupling.reshape(3, 3) * (1 - np.eye(3))

    def coefficients_at(v):
        return -(0.1 + rates + mixing @ np.square(v)), sources + mixing.T @ np.abs(v)

    def right_hand_side(t, y):
        v, bound = y[:3], y[3:]
        a, b = coefficients_at(v)
        gap_a, gap_b = slack[:3] * (1 + np.sin(5 * t)), slack[3:] * (1 + np.cos(3 * t))
        return np.concatenate([a * v + b, (a + direction * gap_a) * bound + b + direction * gap_b])

    solution = solve_ivp(right_hand_side, (0, 2), np.concatenate([start, start]), rtol=1e-9, atol=1e-11, max_step=0.1)
    difference = direction * (solution.y[3:] - solution.y[:3])
    assert solution.success
    assert difference.min() >= -1e-7 * np.abs(solution.y).max()


def test_lemma_g1_needs_a_start_that_is_not_negative():
    t = 1.0
    lower_rate, rate = -2.0, -1.0  # for v(0) = −1 the smaller coefficient gives the larger solution
    assert -math.exp(lower_rate * t) > -math.exp(rate * t)
