"""Figures: trajectories in, a matplotlib figure out. Nothing here trains."""

from opposing_signals.figures.changes import change_distribution, share_increasing
from opposing_signals.figures.chebyshev import chebyshev
from opposing_signals.figures.curvature import curvature_share, mlp_phases, outlier_metrics, sensitivity
from opposing_signals.figures.groups import group_losses
from opposing_signals.figures.intervention import intervention
from opposing_signals.figures.projection import projection
from opposing_signals.figures.theory import (
    theorem31,
    theorem32,
    theorem_map,
    three_phases,
    toy_valley,
    toy_valley_animation,
)

__all__ = [
    "change_distribution",
    "chebyshev",
    "curvature_share",
    "group_losses",
    "intervention",
    "mlp_phases",
    "outlier_metrics",
    "projection",
    "sensitivity",
    "share_increasing",
    "theorem31",
    "theorem32",
    "theorem_map",
    "three_phases",
    "toy_valley",
    "toy_valley_animation",
]
