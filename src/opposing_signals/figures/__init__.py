"""Figures: trajectories in, a matplotlib figure out. Nothing here trains."""

from opposing_signals.figures.changes import change_distribution, share_increasing
from opposing_signals.figures.chebyshev import chebyshev
from opposing_signals.figures.conjectures import descents, group_variance, probes_by_rule
from opposing_signals.figures.curvature import curvature_share, mlp_phases, outlier_metrics, sensitivity
from opposing_signals.figures.discovery import discovered_pairs, planted_pair
from opposing_signals.figures.groups import group_losses
from opposing_signals.figures.intervention import intervention
from opposing_signals.figures.optimizers import (
    learning_rates,
    learning_rates_of_both,
    plain_step_sizes,
    rules,
    sgd_groups,
    signed_shares,
)
from opposing_signals.figures.outliers import outlier_grids
from opposing_signals.figures.probes import (
    block_probe,
    colour_neighbours,
    probe_family,
    probe_under_adam,
    probe_under_flow,
)
from opposing_signals.figures.projection import projection
from opposing_signals.figures.spikes import loss_spikes
from opposing_signals.figures.text import adam_and_splitsgd, token_losses, token_pair, token_tables
from opposing_signals.figures.theory import (
    theorem31,
    theorem32,
    theorem_map,
    three_phases,
    toy_valley,
    toy_valley_animation,
)

__all__ = [
    "adam_and_splitsgd",
    "block_probe",
    "change_distribution",
    "chebyshev",
    "colour_neighbours",
    "curvature_share",
    "descents",
    "discovered_pairs",
    "group_losses",
    "group_variance",
    "intervention",
    "learning_rates",
    "learning_rates_of_both",
    "loss_spikes",
    "mlp_phases",
    "outlier_grids",
    "outlier_metrics",
    "plain_step_sizes",
    "planted_pair",
    "probe_family",
    "probe_under_adam",
    "probe_under_flow",
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
    "token_losses",
    "token_pair",
    "token_tables",
    "toy_valley",
    "toy_valley_animation",
]
