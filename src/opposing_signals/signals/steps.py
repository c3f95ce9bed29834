"""Series cut and differenced by step; a run may have been measured at only some of its steps."""

from __future__ import annotations

import numpy as np

from opposing_signals.record import Series

NOT_SUCCESSIVE = "it was not measured at enough successive steps"
"""Reason given where a statistic of successive steps is missing."""


def between(series: Series, first: float, last: float) -> Series:
    """The part of ``series`` from step ``first`` to step ``last``, both included."""
    steps = np.asarray(series.steps)
    start, stop = np.searchsorted(steps, first), np.searchsorted(steps, last, "right")
    return Series(steps[start:stop], np.asarray(series.values[start:stop]))


def one_step_changes(series: Series) -> Series:
    """``values`` ``[T', ...]``: x(t+1) − x(t) for each t where both were measured."""
    steps, values = np.asarray(series.steps), series.values
    rows = np.flatnonzero(np.diff(steps) == 1)
    changes = np.empty((len(rows), *values.shape[1:]), values.dtype)
    for i, row in enumerate(rows):  # row by row: a run's losses may not fit into memory twice
        np.subtract(values[row + 1], values[row], out=changes[i, ...])
    return Series(steps[rows], changes)


def while_finite(series: Series) -> Series:
    """``series`` up to the first row that is not finite."""
    are_finite = np.array([np.isfinite(row.sum(dtype=np.float64)) for row in series.values], bool)
    count = len(are_finite) if are_finite.all() else int(np.argmin(are_finite))
    return Series(np.asarray(series.steps)[:count], np.asarray(series.values[:count]))


def rising_share(changes: Series) -> Series:
    """``values`` ``[T']``: fraction of the points with Δ_i > 0 among those whose change is known.

    A NaN, such as the change from or to a loss that is NaN, is neither a rise nor a fall; a step at which every change
    is NaN is left out.

    Args:
        changes: ``values`` ``[T, N]`` one-step changes.
    """
    values = np.asarray(changes.values)
    known = (~np.isnan(values)).sum(1)
    rows = np.flatnonzero(known)
    return Series(np.asarray(changes.steps)[rows], (values > 0).sum(1)[rows] / known[rows])


def reversals(changes: Series) -> Series:
    """``values`` ``[T']`` bool: whether a change has the opposite sign of the previous one, where both are known.

    A change of zero reverses nothing; a NaN counts as unknown.

    Args:
        changes: ``values`` ``[T]`` one-step changes.
    """
    steps, signs = np.asarray(changes.steps), np.sign(np.asarray(changes.values))
    rows = np.flatnonzero(np.diff(steps) == 1) + 1
    products = signs[rows] * signs[rows - 1]
    known = ~np.isnan(products)
    return Series(steps[rows][known], products[known] < 0)


def stretches(series: Series, least: int) -> list[Series]:
    """The parts of ``series`` measured at every step, each at least ``least`` steps long."""
    steps = np.asarray(series.steps)
    parts = np.split(np.arange(len(steps)), np.flatnonzero(np.diff(steps) != 1) + 1)
    return [
        Series(steps[rows], np.asarray(series.values[rows[0] : rows[-1] + 1])) for rows in parts if len(rows) >= least
    ]
