"""Branches that leave one run just before its spikes, compared with each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from opposing_signals.record import Series
from opposing_signals.signals.steps import between, one_step_changes
from opposing_signals.signals.trajectory import Trajectory


@dataclass(frozen=True)
class Branches:
    """The branches of one spike.

    Attributes:
        step: Step of the reference at which they begin.
        spike_step: Step at which the reference spikes.
        runs: Kind of intervention ↦ run; several random draws are ``"remove_random 1"`` and so on.
        untouched: ``[N]`` bool, the points that no branch changes.
    """

    step: int
    spike_step: int
    runs: Mapping[str, Trajectory]
    untouched: np.ndarray

    def names(self, kind: str) -> list[str]:
        return [name for name in self.runs if name.split()[0] == kind]

    def loss(self, name: str) -> Series:
        """Mean loss of the untouched points at each step, counted as in the reference."""
        losses = self.runs[name].losses
        return Series(
            np.asarray(losses.steps) + self.step, np.asarray(losses.values)[:, self.untouched].mean(1, dtype=np.float64)
        )

    def spike_size(self, name: str, behind: int | None = None) -> float:
        """Largest one-step rise of that loss; 0 if it never rises.

        Args:
            name: Name of the branch.
            behind: Rises more than this many steps after the reference's spike are ignored; None counts all.
        """
        rises = one_step_changes(self.loss(name))
        if behind is not None:
            rises = between(rises, 0, self.spike_step + behind)
        return max(0.0, float(rises.values.max(initial=0.0)))

    def sharpness(self, name: str) -> float:
        """Median over the branch of the sharpness λ of its own training loss."""
        return float(np.median(self.runs[name].sharpness.values))


def branches_by_spike(trajectories: Mapping[str, Trajectory]) -> dict[int, Branches]:
    """Rank of the spike ↦ its branches, from runs whose record says where they branched off."""
    groups: dict[int, dict[str, Trajectory]] = {}
    for trajectory in trajectories.values():
        origin = trajectory.record.provenance["branch"]
        draw = trajectory.configuration["intervention"].get("draw")
        name = origin["kind"] if draw is None else f"{origin['kind']} {draw}"
        groups.setdefault(origin["spike"], {})[name] = trajectory
    found = {}
    for rank, runs in sorted(groups.items()):
        origins = [run.record.provenance["branch"] for run in runs.values()]
        untouched = np.ones(next(iter(runs.values())).losses.values.shape[1], bool)
        for origin in origins:
            untouched[origin["touched"]] = False
        found[rank] = Branches(origins[0]["step"], origins[0]["spike_step"], runs, untouched)
    return found
