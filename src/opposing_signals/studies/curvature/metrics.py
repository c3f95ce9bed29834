"""Quantities of a run that figures and claims share."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import scipy

from opposing_signals.record import Series
from opposing_signals.record.quantities import FLOOR_DISTANCE, MEAN_FEATURE_NORM, PROBE_FEATURE_NORM, PROJECTION
from opposing_signals.signals.pairs import OpposingPair
from opposing_signals.signals.steps import between, one_step_changes
from opposing_signals.signals.trajectory import Trajectory

LOSS_CHANGE, STEP_ALONG_V = "loss_change", "step_along_v"
Metric: TypeAlias = str
"""`LOSS_CHANGE`, or a per-point quantity: `GRADIENT_NORM` or `SAMPLE_CURVATURE`."""
SizeAlongV: TypeAlias = str
"""`STEP_ALONG_V`, or the quantity `EFFECTIVE_STEP_SIZE`."""

SMOOTH = 9
"""Window in measured steps of the running median of feature norms under minibatches, for figures and claims."""


def metric_of_points(trajectory: Trajectory, metric: Metric) -> Series:
    """``values`` ``[T, N]``: abs Δ_i, ‖∇ℓ_i‖ or vᵀ∇²ℓ_i v of every training point (figure 2)."""
    if metric == LOSS_CHANGE:
        changes = trajectory.changes
        return Series(changes.steps, np.abs(changes.values))
    return trajectory.record[metric]


def relative_feature_norms(trajectory: Trajectory, window: int = 1) -> Series:
    """``values`` ``[T, P]``: norm of each probe's penultimate feature over the mean norm of the step's batch.

    Args:
        trajectory: A run with the instrument `BlockProbe`.
        window: Window of the running median in measured steps; 1 leaves the values unchanged.
    """
    probes, batch = trajectory.record[PROBE_FEATURE_NORM], trajectory.record[MEAN_FEATURE_NORM]
    norms = np.asarray(probes.values) / np.asarray(batch.values)[:, None]
    return Series(np.asarray(probes.steps), scipy.ndimage.median_filter(norms, (window, 1), mode="nearest"))


def sizes_by_floor_distance(
    trajectory: Trajectory, quantity: SizeAlongV, first_step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Distances to the valley's floor, and Adam's effective step size or its actual step along v (figure 6b).

    Args:
        trajectory: A run with the instruments `Projection`, `FloorDistance` and `EffectiveStepSize`.
        quantity: Which size; ``"step_along_v"`` is abs((θ_{t+1} − θ_t)·v).
        first_step: Steps before it are left out.

    Returns:
        ``[T]`` each, for the steps at which both were measured and the valley has a floor.
    """
    distance = trajectory.record[FLOOR_DISTANCE]
    if quantity == STEP_ALONG_V:
        moves = one_step_changes(trajectory.record[PROJECTION])
        size = Series(moves.steps, np.abs(moves.values))
    else:
        size = trajectory.record[quantity]
    steps = np.intersect1d(distance.steps, size.steps)
    distances, sizes = (np.asarray(one.values)[np.isin(one.steps, steps)] for one in (distance, size))
    chosen = (steps >= first_step) & np.isfinite(distances)
    return np.abs(distances[chosen]), sizes[chosen]


def moving_average(values: np.ndarray, span: int) -> np.ndarray:
    """``[T]`` mean of each value and the ``span`` // 2 on either side of it; at both ends over fewer values.

    Args:
        values: ``[T]`` at successive steps.
        span: Number of values to average; an even number counts as the next odd one.
    """
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    rows = np.arange(len(values))
    first, stop = np.maximum(rows - span // 2, 0), np.minimum(rows + span // 2 + 1, len(values))
    return (sums[stop] - sums[first]) / (stop - first)


def detrended(values: np.ndarray, span: int) -> np.ndarray:
    """``[T]`` values minus their `moving_average`."""
    return values - moving_average(values, span)


def gap_changes(trajectory: Trajectory, pair: OpposingPair) -> Series:
    """``values`` ``[T]``: one-step changes of the gap between a pair's mean losses, while it is active."""
    changes = between(trajectory.changes, *pair.window)
    rising, falling = (changes.values[:, group].mean(1, dtype=np.float64) for group in pair.groups)
    return Series(changes.steps, rising - falling)
