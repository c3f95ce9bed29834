"""Series cut and differenced by their steps: a run may have been measured at some of its steps only."""

from __future__ import annotations

import numpy as np

from opposing_signals.record import Series

NOT_SUCCESSIVE = "it was not measured at enough successive steps"
"""Why a statistic of successive steps is not given."""


def between(series: Series, first: float, last: float) -> Series:
    """What was measured from step ``first`` to step ``last``, both included."""
    steps = np.asarray(series.steps)
    start, stop = np.searchsorted(steps, first), np.searchsorted(steps, last, "right")
    return Series(steps[start:stop], np.asarray(series.values[start:stop]))


def one_step_changes(series: Series) -> Series:
    """``values`` ``[T', ...]``: x(t+1) − x(t) for each t where both were measured."""
    steps, values = np.asarray(series.steps), series.values
    rows = np.flatnonzero(np.diff(steps) == 1)
    changes = np.empty((len(rows), *values.shape[1:]), values.dtype)
    for i, row in enumerate(rows):  # a run's losses need not fit twice into memory
        np.subtract(values[row + 1], values[row], out=changes[i, ...])
    return Series(steps[rows], changes)


def reversals(changes: Series) -> Series:
    """``values`` ``[T']`` bool: whether a change has the opposite sign of that a step before, where both are known.

    A change of zero reverses nothing.

    Args:
        changes: ``values`` ``[T]`` one-step changes.
    """
    steps, signs = np.asarray(changes.steps), np.sign(np.asarray(changes.values))
    rows = np.flatnonzero(np.diff(steps) == 1) + 1
    return Series(steps[rows], signs[rows] * signs[rows - 1] < 0)


def stretches(series: Series, least: int) -> list[Series]:
    """The parts of ``series`` that were measured at every step, ``least`` steps long or longer."""
    steps = np.asarray(series.steps)
    parts = np.split(np.arange(len(steps)), np.flatnonzero(np.diff(steps) != 1) + 1)
    return [
        Series(steps[rows], np.asarray(series.values[rows[0] : rows[-1] + 1])) for rows in parts if len(rows) >= least
    ]
