"""Statistics over steps, with intervals that account for the dependence between successive steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import scipy

from opposing_signals.signals.alignment import correlation
from opposing_signals.studies.claim import Estimate

FEWEST = 8
"""Minimum number of values for an interval; fewer than for steps, since spikes are rarer."""

DRAWS = 500

Range = tuple[float, float]
"""The least and the greatest value that a statistic can have."""

ANY: Range = (-math.inf, math.inf)
CORRELATION: Range = (-1.0, 1.0)
FRACTION: Range = (0.0, 1.0)
RATIO: Range = (0.0, math.inf)
"""Of two positive quantities."""

_NORMAL = float(scipy.stats.norm.ppf(0.975))

Statistic = Callable[[np.ndarray], float]
"""Rows ``[n]``, possibly with repetitions ↦ value."""


def over_steps(statistic: Statistic, steps: int, within: Range = ANY) -> Estimate:
    """``statistic`` of all rows from 0 to ``steps`` − 1 with its 95% `interval`; too few rows decide nothing.

    ``within`` is the range of the statistic.
    """
    if steps < FEWEST:
        reason = f"{steps} values over steps; a verdict needs {FEWEST}"
        return Estimate(statistic(np.arange(steps)) if steps else math.nan, None, reason, decides=False)
    value = statistic(np.arange(steps))
    if not math.isfinite(value):
        return Estimate(value)
    low, high = interval(statistic, steps)
    return Estimate(value, (max(low, within[0]), min(high, within[1])))


def correlation_over_steps(one: np.ndarray, other: np.ndarray) -> Estimate:
    """The correlation of ``one`` and ``other``, both ``[T]``, with its interval."""
    return over_steps(lambda rows: correlation(one[rows], other[rows]), len(one), CORRELATION)


def median_over_steps(values: np.ndarray, within: Range = ANY) -> Estimate:
    """The median of ``values`` ``[T]``, which lie ``within``, with its interval."""
    return over_steps(lambda rows: float(np.median(values[rows])), len(values), within)


def mean_over_steps(values: np.ndarray, within: Range = ANY) -> Estimate:
    """The mean of ``values`` ``[T]``, which lie ``within``, with its interval."""
    return over_steps(lambda rows: float(values[rows].mean()), len(values), within)


def mean_of_few(values: np.ndarray, what: str) -> Estimate:
    """The mean of independent ``values`` ``[n]`` with the interval of Student's t; one value decides nothing.

    A bootstrap of three normal values covers 74% of nominal 95%.
    """
    value, n = float(values.mean()), len(values)
    if n < 2:
        return Estimate(value, None, f"1 of the 2 needed {what}", decides=False)
    half = float(scipy.stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return Estimate(value, (value - half, value + half))


def random_groups(examples: int, size: int) -> list[np.ndarray]:
    """200 random groups of ``size`` examples, the same at each call."""
    generator = np.random.default_rng(0)
    return [generator.choice(examples, size, replace=False) for _ in range(200)]


def interval(statistic: Statistic, steps: int) -> tuple[float, float]:
    """95% interval of a statistic of ``steps`` dependent rows.

    The bootstrap of single rows gives the interval's shape as if the rows were independent (Efron 1979). It is
    stretched around the value by the square root of the `dependence` of the rows' influences, and by the quantile of
    Student's t for the uncertainty of that factor. Block bootstraps are too narrow without this quantile: of nominal
    95%, a moving-block bootstrap covers 76% for AR(1) with ρ = 0.8 and 200 steps, and one with the block length of
    Politis and White (2004) and critical values of fixed-b asymptotics 92%.
    """
    rows = np.arange(steps)
    value = statistic(rows)
    influences = np.array([statistic(np.delete(rows, row)) for row in rows])
    factor, freedom = dependence(influences[np.isfinite(influences)])
    draws = np.random.default_rng(0).integers(steps, size=(DRAWS, steps))
    low, high = np.nanpercentile([statistic(draw) for draw in draws], [2.5, 97.5])
    t = float(scipy.stats.t.ppf(0.975, freedom))
    stretch = np.sqrt(factor * steps / (steps - 1)) * t / _NORMAL
    return float(min(value, value + (low - value) * stretch)), float(max(value, value + (high - value) * stretch))


def dependence(values: np.ndarray) -> tuple[float, int]:
    """Ratio of the variance of the mean of ``values`` ``[n]`` to its variance if they were independent.

    This is the long-run variance over the variance, estimated by the first B cosine transforms (Lazarus, Lewis, Stock
    and Watson 2018) after an AR(1) fit has been removed (Andrews and Monahan 1992), whose coefficient is corrected for
    bias (Kendall 1954).

    Returns:
        The factor, at least 0.1, and the degrees of freedom B of its estimate.
    """
    n = len(values)
    centred = values - values.mean() if n else values
    square = float(centred @ centred)
    if n < FEWEST or not square > 0:
        return 1.0, max(1, n - 1)
    slope = float(centred[1:] @ centred[:-1]) / square
    slope = float(np.clip(slope + (1 + 3 * slope) / n, -0.97, 0.97))
    rest = centred[1:] - slope * centred[:-1]
    m = len(rest)
    count = min(max(4, int(0.41 * m ** (2 / 3))), m - 1)
    times = (np.arange(m) + 0.5) / m
    cosines = np.sqrt(2 / m) * np.cos(np.pi * np.outer(np.arange(1, count + 1), times))
    long_run = float(np.mean(np.square(cosines @ (rest - rest.mean())))) / (1 - slope) ** 2
    return max(0.1, long_run * n / square), count
