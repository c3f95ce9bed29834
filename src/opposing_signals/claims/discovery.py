"""Statistics of the opposing pairs that are found by machine: are they the true ones, and found again otherwise?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opposing_signals.claims.claim import Estimate
from opposing_signals.claims.statistics import Trajectories
from opposing_signals.signals import Trajectory, agreement, match_pair, stability


def planted_match(trajectories: Trajectories, features: Sequence[str]) -> Estimate:
    """Smallest F1, over the runs, of the dominant pair with the planted pair that is most like it."""
    return Estimate(min(_planted_f1(trajectory, features) for trajectory in trajectories.values()))


def _planted_f1(trajectory: Trajectory, features: Sequence[str]) -> float:
    dataset = trajectory.dataset
    targets = dataset.targets.numpy()
    scores = [0.0]
    for feature in features:
        bearers = np.flatnonzero(dataset.truth[feature])
        groups = [bearers[targets[bearers] == label] for label in np.unique(targets[bearers])]
        if len(groups) == 2 and trajectory.discoveries:
            scores.append(match_pair(trajectory.discoveries[0].groups, (groups[0], groups[1])).f1)
    return max(scores)


def ways_agree(trajectories: Trajectories) -> Estimate:
    """Smallest F1, over the runs, of the dominant pair by loss series with that by gradients most like it."""
    if not any(trajectory.discoveries for trajectory in trajectories.values()):
        return Estimate.unknown("no opposing pair was found")
    return Estimate(
        min(
            (agreement(trajectory.discoveries[:1], trajectory.gradient_discoveries) or [0.0])[0]
            for trajectory in trajectories.values()
        )
    )


def found_again(trajectories: Trajectories) -> Estimate:
    """Mean over the runs of the F1 of the dominant pair with the pair of each other run that is most like it."""
    if len(trajectories) < 2:
        return Estimate.unknown("there is one run")
    return Estimate(float(np.mean(stability([trajectory.discoveries for trajectory in trajectories.values()]))))
