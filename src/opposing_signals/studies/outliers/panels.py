"""The network's predictions for outliers before and after a step: the panels of Appendix H."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opposing_signals.record.quantities import PREDICTION
from opposing_signals.signals.names import name_pair
from opposing_signals.signals.selection import fallers, risers
from opposing_signals.signals.trajectory import Trajectory


@dataclass(frozen=True)
class Panel:
    """Two groups of training points at one step.

    Attributes:
        title: How the groups were selected.
        step: t of the step from θ_t to θ_{t+1}.
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

    def modal_prediction(self, group: np.ndarray) -> tuple[int, int]:
        """The class predicted for most points of ``group`` after the step, of several the first; and for how many."""
        counts = np.bincount(self.after[group])
        return int(counts.argmax()), int(counts.max())


def outlier_panels(trajectory: Trajectory, moments: Sequence[float], count: int = 24) -> list[Panel]:
    """The points of most positive and most negative Δ_i at some steps (Appendix H).

    Args:
        trajectory: A run with the instrument `Predictions`.
        moments: When to look, as fractions of the run: 0.25 is step 250 of 1,000. The nearest recorded step is taken.
        count: Points in a group.
    """
    steps = np.asarray(trajectory.changes.steps)
    wanted = np.asarray(moments) * trajectory.configuration["steps"]
    shown = steps[np.abs(steps - wanted[:, None]).argmin(1)]
    panels = []
    for step in shown.tolist():
        changes = trajectory.changes.at(step)
        panels.append(_panel(trajectory, f"step {step}", step, risers(changes, count), fallers(changes, count)))
    return panels


def pair_panels(trajectory: Trajectory) -> list[Panel]:
    """The same for the pairs that were found, each at the step at which its groups' changes are furthest apart."""
    dataset = trajectory.dataset
    return [
        _panel(
            trajectory,
            f"pair {number + 1} ({name_pair(dataset, pair)}) at step {pair.step}",
            pair.step,
            pair.rising,
            pair.falling,
        )
        for number, pair in enumerate(trajectory.pairs_in_time)
    ]


def _panel(trajectory: Trajectory, title: str, step: int, rising: np.ndarray, falling: np.ndarray) -> Panel:
    predicted = trajectory.record[PREDICTION]
    return Panel(title, step, rising, falling, np.asarray(predicted.at(step)), np.asarray(predicted.at(step + 1)))
