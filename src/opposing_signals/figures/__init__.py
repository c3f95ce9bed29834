"""Figures: trajectories in, a matplotlib figure out. Nothing here trains."""

from opposing_signals.figures.changes import change_distribution, share_increasing
from opposing_signals.figures.chebyshev import chebyshev
from opposing_signals.figures.conjectures import descents, group_variance, probes_by_rule
from opposing_signals.figures.curvature import curvature_share, mlp_phases, outlier_metrics, sensitivity
from opposing_signals.figures.groups import group_losses
from opposing_signals.figures.optimizers import (
    learning_rates,
    learning_rates_of_both,
    plain_step_sizes,
    rules,
    sgd_groups,
    signed_shares,
)
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
    "descents",
    "group_losses",
    "group_variance",
    "learning_rates",
    "learning_rates_of_both",
    "mlp_phases",
    "outlier_metrics",
    "plain_step_sizes",
    "probes_by_rule",
    "projection",
    "rules",
    "sensitivity",
    "sgd_groups",
    "share_increasing",
    "signed_shares",
    "theorem31",
    "theorem32",
    "theorem_map",
    "three_phases",
    "toy_valley",
    "toy_valley_animation",
]
