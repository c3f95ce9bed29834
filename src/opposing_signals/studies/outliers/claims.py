"""Statistics of what the network predicts for outliers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opposing_signals.studies.claim import Estimate
from opposing_signals.studies.groups.claims import modal_shares
from opposing_signals.studies.outliers.panels import outlier_panels
from opposing_signals.studies.runs import Trajectories, only_run


def modal_prediction(trajectories: Trajectories, moments: Sequence[float], modal_share: float) -> Estimate:
    """Share of the panels in which one predicted class after the step holds modal_share or more of 24 rising points.

    An untrained network may predict one class for everything. So the reason says for each panel how many of all points
    are called that class, how many of the 24 are called so newly, and whether the step precedes break-even.
    """
    trajectory = only_run(trajectories)
    shares, said = [], []
    for panel in outlier_panels(trajectory, moments):
        modal, count = panel.modal_prediction(panel.rising)
        shares.append(count / len(panel.rising))
        is_early = trajectory.break_even is not None and panel.step < trajectory.break_even
        newly = np.count_nonzero((panel.after == modal)[panel.rising] & (panel.before != modal)[panel.rising])
        said.append(
            f"step {panel.step}{', before break-even' if is_early else ''}: {count} of {len(panel.rising)} "
            f"called {trajectory.dataset.class_names[modal]}, as are {np.mean(panel.after == modal):.0%} of all, "
            f"{newly} newly"
        )
    return Estimate(float(np.mean(np.array(shares) >= modal_share)), reason="; ".join(said))


def new_prediction(trajectories: Trajectories, moments: Sequence[float], modal_share: float) -> Estimate:
    """Share of the panels in which the step changes the prediction to one class for modal_share or more of risers."""
    shares = []
    for panel in outlier_panels(only_run(trajectories), moments):
        before, after = panel.before[panel.rising], panel.after[panel.rising]
        shares.append(np.bincount(after[before != after], minlength=1).max() / len(panel.rising))
    return Estimate(float(np.mean(np.array(shares) >= modal_share)))


def coherent_groups(trajectories: Trajectories, modal_share: float) -> Estimate:
    """Share of the found pairs' groups in which one true class holds modal_share or more of the members."""
    return Estimate(float(np.mean(np.array(modal_shares(only_run(trajectories))) >= modal_share)))
