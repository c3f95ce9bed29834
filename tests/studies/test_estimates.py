"""Intervals over dependent steps cover the true value as often as they claim."""

import numpy as np
import pytest
import scipy

from opposing_signals.studies.estimates import (
    CORRELATION,
    RATIO,
    dependence,
    interval,
    mean_of_few,
    mean_over_steps,
    median_over_steps,
    over_steps,
)

STEPS, RUNS = 200, 400


def autoregressive(rho: float, seed: int, runs: int = RUNS, steps: int = STEPS) -> np.ndarray:
    """``[runs, steps]`` x(t) = ρ x(t − 1) + noise, with mean 0, started from its stationary distribution."""
    noise = np.random.default_rng(seed).standard_normal((runs, steps))
    noise[:, 0] /= np.sqrt(1 - rho**2)
    return scipy.signal.lfilter([1], [1, -rho], noise)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8, -0.5])
def test_the_interval_of_a_mean_covers_the_truth(rho):
    """The bootstrap of a mean is replaced by a normal interval, its limit: 400 bootstraps would take a minute."""
    covered, widths = 0, []
    for series in autoregressive(rho, seed=0):
        factor, freedom = dependence(series)
        half = scipy.stats.t.ppf(0.975, freedom) * np.sqrt(factor * series.var() / (STEPS - 1))
        covered += abs(series.mean()) <= half
        widths.append(half)
    assert 0.93 <= covered / RUNS <= 0.98
    right = 1.96 / (1 - rho) / np.sqrt(STEPS)  # from the true variance of the mean
    assert np.mean(widths) < 1.25 * right


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
def test_the_interval_itself_covers_the_truth(rho):
    series = autoregressive(rho, seed=1, runs=120)
    covered = sum(low <= 0 <= high for low, high in (mean_over_steps(one).interval for one in series))
    assert covered / len(series) >= 0.93


def test_what_is_no_mean_is_covered_too():
    medians = correlations = 0
    pairs = list(zip(autoregressive(0.5, seed=2, runs=120), autoregressive(0.5, seed=3, runs=120), strict=True))
    for one, noise in pairs:
        low, high = median_over_steps(one).interval
        medians += low <= 0 <= high
        other = -0.7 * one + np.sqrt(1 - 0.49) * noise
        low, high = interval(lambda rows, a=one, b=other: float(np.corrcoef(a[rows], b[rows])[0, 1]), STEPS)
        correlations += low <= -0.7 <= high
    assert medians / len(pairs) >= 0.92
    assert correlations / len(pairs) >= 0.92


@pytest.mark.parametrize("steps", [8, 12, 40])
def test_few_independent_values_are_covered(steps):
    series = autoregressive(0.0, seed=4, runs=150, steps=steps)
    assert sum(low <= 0 <= high for low, high in (mean_over_steps(one).interval for one in series)) / 150 >= 0.9


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_mean_of_a_few_spikes_is_covered(count):
    values = np.random.default_rng(6).standard_normal((2000, count))
    intervals = (mean_of_few(few, "spikes").interval for few in values)
    assert 0.93 <= sum(low <= 0 <= high for low, high in intervals) / 2000 <= 0.97


def test_the_factor_of_dependence_is_that_of_an_autoregression():
    factors = [dependence(series)[0] for series in autoregressive(0.8, seed=5, runs=50, steps=2000)]
    assert np.mean(factors) == pytest.approx((1 + 0.8) / (1 - 0.8), rel=0.1)


def test_a_constant_has_no_width_and_too_few_values_have_no_interval():
    assert mean_over_steps(np.full(30, 2.5)).interval == (2.5, 2.5)
    few = over_steps(lambda rows: float(len(rows)), 4)
    assert (few.value, few.interval, few.decides) == (4, None, False)
    assert few.reason == "4 values over steps; a verdict needs 8"
    assert np.isnan(mean_over_steps(np.empty(0)).value)


def test_an_interval_keeps_to_what_the_statistic_can_be_and_what_is_not_finite_has_none():
    steps = np.arange(12)
    one, other = np.sin(steps), -np.sin(steps) + 1e-3 * np.cos(7 * steps)
    correlation = over_steps(lambda rows: float(np.corrcoef(one[rows], other[rows])[0, 1]), 12, CORRELATION)
    assert -1 <= correlation.interval[0] <= correlation.value <= correlation.interval[1]
    assert over_steps(lambda _: float("nan"), 12).interval is None


def test_a_ratio_has_no_interval_below_zero():
    few = np.array([0.1, 0.2, 0.1, 9.0, 8.0, 0.1, 7.0, 9.0, 0.2, 8.0])
    free, bounded = median_over_steps(few), median_over_steps(few, RATIO)
    assert free.interval[0] < 0, "otherwise this shows nothing"
    assert bounded.interval == (0, free.interval[1])
    assert bounded.value == free.value
