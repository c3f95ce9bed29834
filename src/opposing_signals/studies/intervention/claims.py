"""Statistics of branches that leave a run just before a spike.

A FAIL means that the spike, or λ, is as large without the dominant pair as without as many random points. Then other
points carry the spike as well: the untouched points rise by themselves, and the pair is where the instability shows,
not its only cause. It does not mean that the pair was not opposed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from opposing_signals.studies.claim import CannotTellError, Estimate
from opposing_signals.studies.estimates import mean_of_few
from opposing_signals.studies.intervention.branches import Branches, branches_by_spike
from opposing_signals.studies.runs import Trajectories

RANDOM = "remove_random"


def spike_advantage(trajectories: Trajectories, kind: str, behind: int | None = None) -> Estimate:
    """Mean over spikes and draws of (spike after removing random points - spike after the intervention) / spike.

    A spike is the largest one-step rise of the mean loss of the points that no branch touches; one that never rises
    counts as 0. Rises more than ``behind`` steps after the reference's spike belong to another spike; None counts
    all of the branch.
    """
    return _advantage(trajectories, kind, partial(Branches.spike_size, behind=behind))


def sharpness_advantage(trajectories: Trajectories, kind: str) -> Estimate:
    """Mean over spikes and draws of (λ after removing random points - λ after the intervention) / λ, medians of steps.

    λ is that of the loss that the branch trains on.
    """
    return _advantage(trajectories, kind, Branches.sharpness)


def _advantage(trajectories: Trajectories, kind: str, size: Callable[[Branches, str], float]) -> Estimate:
    differences = []
    for branches in branches_by_spike(trajectories).values():
        randoms = branches.names(RANDOM)
        if kind not in branches.runs or "control" not in branches.runs or not randoms:
            continue
        control = size(branches, "control")
        if control > 0:
            others = np.mean([size(branches, name) for name in randoms])
            differences.append((others - size(branches, kind)) / control)
    if not differences:
        raise CannotTellError("no spike has a control with a rise, this intervention and a random one")
    return mean_of_few(np.array(differences), "spikes")
