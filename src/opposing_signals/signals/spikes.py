"""The steps at which the loss rises most, and the examples that carry the rise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opposing_signals.record import Series
from opposing_signals.signals.alignment import correlation
from opposing_signals.signals.selection import fallers, risers
from opposing_signals.signals.steps import between, while_finite
from opposing_signals.signals.trajectory import Trajectory

REACH = 16
"""Of several spikes with fewer measured changes than this between them, only the largest is kept."""

LEAST = 2.0
"""A pair belongs to a spike if one group falls and the other carries more than this many times its share of points."""


@dataclass(frozen=True)
class Spike:
    """One step at which the mean loss rises, with the two groups that moved most against each other around it.

    Attributes:
        step: t; the loss rises from θ_t to θ_{t+1}.
        before: Mean loss of the recorded points at θ_t.
        after: The same at θ_{t+1}.
        typical: Median size of the mean loss's one-step change over the run, for comparison.
        rising: ``[k]`` points whose loss rises together, the strongest at this step first.
        falling: ``[k']`` those that move against them; empty if no pair is active here.
        change: Mean one-step change of the rising and of the falling group at this step.
        share: Σ Δ_i of the rising group over Σ Δ_i of all points that rise at this step.
        expected: Size of the rising group as a fraction of all points.
        correlation: Correlation of the two groups' mean one-step changes around the spike, without the spike; None if
            no pair is active here, and then the groups are the selection of §2 at this step.
    """

    step: int
    before: float
    after: float
    typical: float
    rising: np.ndarray
    falling: np.ndarray
    change: tuple[float, float]
    share: float
    expected: float
    correlation: float | None

    @property
    def rise(self) -> float:
        """L(θ_{t+1}) − L(θ_t)."""
        return self.after - self.before


def find_spikes(trajectory: Trajectory, count: int = 3) -> list[Spike]:
    """The largest rises of the mean loss, the largest first, with their groups.

    Of rises within `REACH` measured changes of each other only the largest is kept. Everything after the first
    non-finite loss is ignored.

    Args:
        trajectory: A run with per-sample losses.
        count: Maximum number of spikes.
    """
    changes = while_finite(trajectory.changes)
    if not len(changes):
        return []
    rises = changes.values.mean(1, dtype=np.float64)
    rows: list[int] = []
    for row in np.argsort(-rises, kind="stable"):
        if len(rows) == count or not rises[row] > 0:
            break
        if all(abs(row - other) > REACH for other in rows):
            rows.append(int(row))
    return [_spike(trajectory, changes, row, float(np.median(np.abs(rises)))) for row in rows]


def _spike(trajectory: Trajectory, changes: Series, row: int, typical: float) -> Spike:
    values = changes.values[row].astype(np.float64)
    step = int(changes.steps[row])
    before = float(trajectory.losses.at(step).mean(dtype=np.float64))
    positive = np.maximum(values, 0)

    def share(group: np.ndarray) -> float:
        return float(positive[group].sum() / positive.sum())

    found = [  # which of a pair's groups rises at this step alternates
        groups
        for pair in trajectory.all_pairs
        if pair.window[0] <= step <= pair.window[1]
        for groups in (pair.groups, pair.groups[::-1])
        if share(groups[0]) > LEAST * len(groups[0]) / len(values) and values[groups[1]].mean() < 0
    ]
    opposed: float | None = None
    if found:
        rising, falling = max(found, key=lambda groups: share(groups[0]))
        rising, falling = rising[np.argsort(-values[rising])], falling[np.argsort(values[falling])]
        around = between(changes, changes.steps[max(0, row - REACH)], changes.steps[min(row + REACH, len(changes) - 1)])
        others = around.values[around.steps != step]
        opposed = correlation(*(others[:, group].mean(1, dtype=np.float64) for group in (rising, falling)))
    else:
        rising, falling = risers(values), fallers(values)[:0]
    return Spike(
        step=step,
        before=before,
        after=float(trajectory.losses.at(step + 1).mean(dtype=np.float64)),
        typical=typical,
        rising=rising,
        falling=falling,
        change=(float(values[rising].mean()), float(values[falling].mean()) if len(falling) else 0.0),
        share=share(rising),
        expected=len(rising) / len(values),
        correlation=opposed,
    )
