"""What the network says about outliers on both sides of a step: the panels of Appendix H."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opposing_signals.signals.selection import fallers, risers
from opposing_signals.signals.trajectory import Trajectory


@dataclass(frozen=True)
class Panel:
    """Two groups of training points at one step.

    Attributes:
        title: What singles the groups out.
        step: Iteration t of the step θ_t ↦ θ_{t+1}.
        rising: ``[k]`` indices of the points whose loss rises, the largest rise first.
        falling: ``[k']`` indices of those whose loss falls.
        before: ``[N]`` class predicted at θ_t for every training point.
        after: ``[N]`` the same at θ_{t+1}.
    """

    title: str
    step: int
    rising: np.ndarray
    falling: np.ndarray
    before: np.ndarray
    after: np.ndarray


def outlier_panels(trajectory: Trajectory, moments: Sequence[float], count: int = 24) -> list[Panel]:
    """The points of most positive and most negative Δ_i at some steps (Appendix H).

    Args:
        trajectory: A run with the instrument `Predictions`.
        moments: When to look, as parts of the run: 0.25 is step 250 of 1,000. What was recorded nearest to it counts.
        count: Points in a group.
    """
    steps = np.asarray(trajectory.changes.steps)
    wanted = np.asarray(moments) * trajectory.configuration["steps"]
    rows = np.abs(steps - wanted[:, None]).argmin(1)
    changes = trajectory.changes.values
    return [
        _panel(trajectory, f"step {steps[row]}", row, risers(changes[row], count), fallers(changes[row], count))
        for row in rows
    ]


def pair_panels(trajectory: Trajectory) -> list[Panel]:
    """The same for the pairs that were found by machine, each at its selecting step."""
    return [
        _panel(
            trajectory,
            f"pair {number + 1} at step {trajectory.changes.steps[pair.change]}",
            pair.change,
            pair.rising,
            pair.falling,
        )
        for number, pair in enumerate(trajectory.pairs)
    ]


def _panel(trajectory: Trajectory, title: str, row: int, rising: np.ndarray, falling: np.ndarray) -> Panel:
    step = int(trajectory.changes.steps[row])
    predicted = trajectory.record["prediction"]
    return Panel(title, step, rising, falling, np.asarray(predicted.at(step)), np.asarray(predicted.at(step + 1)))
