"""Statistics of what the network predicts for outliers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opposing_signals.studies.claim import Estimate
from opposing_signals.studies.groups.claims import modal_shares
from opposing_signals.studies.outliers.panels import outlier_panels
from opposing_signals.studies.runs import Trajectories, only_run


def modal_prediction(trajectories: Trajectories, moments: Sequence[float], modal_share: float) -> Estimate:
    """Share of the panels in which one predicted class after the step holds modal_share of the 24 rising points."""
    trajectory = only_run(trajectories)
    shares = []
    for panel in outlier_panels(trajectory, moments):
        _, counts = np.unique(panel.after[panel.rising], return_counts=True)
        shares.append(counts.max() / len(panel.rising))
    return Estimate(float(np.mean(np.array(shares) >= modal_share)))


def coherent_groups(trajectories: Trajectories, modal_share: float) -> Estimate:
    """Share of the found pairs' groups in which one true class holds modal_share of the members."""
    return Estimate(float(np.mean(np.array(modal_shares(only_run(trajectories))) >= modal_share)))
