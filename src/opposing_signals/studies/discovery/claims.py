"""Statistics of the opposing pairs found automatically: are they the true ones, and found again otherwise?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opposing_signals.signals import Trajectory, agreement, match_pair, nearest_planted, stability
from opposing_signals.signals.steps import between
from opposing_signals.studies.claim import CannotTellError, Estimate
from opposing_signals.studies.estimates import correlation_over_steps
from opposing_signals.studies.runs import Trajectories, need, only_run


def planted_match(trajectories: Trajectories, features: Sequence[str]) -> Estimate:
    """Smallest F1, over the runs, of the dominant pair with the planted pair that is most like it."""

    def f1(trajectory: Trajectory) -> float:
        dominant = trajectory.all_pairs[0] if trajectory.all_pairs else None
        planted = dominant and nearest_planted(dominant, trajectory.dataset, features)
        return match_pair(dominant.groups, planted[1]).f1 if dominant and planted else 0.0

    return Estimate(min(map(f1, trajectories.values())))


def planted_correlation(trajectories: Trajectories, features: Sequence[str]) -> Estimate:
    """Correlation of the one-step changes of the two planted groups that the dominant pair is most like, while active.

    The groups are the true ones, so the value involves no selection by loss.
    """
    trajectory = only_run(trajectories)
    if not trajectory.all_pairs:
        raise CannotTellError("no opposing pair was found")
    pair = trajectory.all_pairs[0]
    planted = nearest_planted(pair, trajectory.dataset, features)
    if planted is None:
        raise CannotTellError(f"no images of two classes bear {' or '.join(features)}")
    changes = between(trajectory.changes, *pair.window).values
    one, other = (changes[:, group].mean(1, dtype=np.float64) for group in planted[1])
    return correlation_over_steps(one, other)


def ways_agree(trajectories: Trajectories) -> Estimate:
    """Smallest F1, over the runs, of the dominant pair by loss series with that by gradients most like it."""
    if not any(trajectory.all_pairs for trajectory in trajectories.values()):
        raise CannotTellError("no opposing pair was found")
    agreed = [agreement(one.all_pairs[:1], one.gradient_pairs) or [0.0] for one in trajectories.values()]
    return Estimate(min(f1 for (f1,) in agreed))


def found_again(trajectories: Trajectories) -> Estimate:
    """Mean over the runs of the F1 of the dominant pair with the pair of each other run that is most like it."""
    need(len(trajectories), "runs", least=2)
    return Estimate(float(np.mean(stability([trajectory.all_pairs for trajectory in trajectories.values()]))))
