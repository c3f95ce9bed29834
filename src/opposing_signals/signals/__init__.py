"""What a record shows: loss changes, the points that they single out, and the opposing groups among them."""

from opposing_signals.signals.agreement import (
    Match,
    agreement,
    match,
    match_pair,
    nearest_planted,
    planted_groups,
    stability,
)
from opposing_signals.signals.branches import Branches, branches_by_spike
from opposing_signals.signals.coherence import (
    alternating_share,
    class_r2,
    class_r2_by_chance,
    directions,
    modal_share,
    modal_share_by_chance,
)
from opposing_signals.signals.discovery import Discovery, discover
from opposing_signals.signals.gradient_discovery import discover_by_gradients
from opposing_signals.signals.intervals import interval_coverage
from opposing_signals.signals.metrics import (
    SMOOTH,
    Metric,
    SizeAlongV,
    detrended,
    gap_changes,
    metric_of_points,
    moving_average,
    relative_feature_norms,
    sizes_by_floor_distance,
)
from opposing_signals.signals.pairs import OpposingPair, find_pairs
from opposing_signals.signals.panels import Panel, outlier_panels, pair_panels
from opposing_signals.signals.probe import (
    ProbePath,
    common_loss,
    is_descent,
    lag_one_autocorrelation,
    norm_at_loss,
    probe_path,
    times,
)
from opposing_signals.signals.rules import Quantity, Rule, final, steps_of_epoch, under
from opposing_signals.signals.selection import fallers, risers
from opposing_signals.signals.spikes import Spike, find_spikes
from opposing_signals.signals.trajectory import Runs, Trajectory

__all__ = [
    "SMOOTH",
    "Branches",
    "Discovery",
    "Match",
    "Metric",
    "OpposingPair",
    "Panel",
    "ProbePath",
    "Quantity",
    "Rule",
    "Runs",
    "SizeAlongV",
    "Spike",
    "Trajectory",
    "agreement",
    "alternating_share",
    "branches_by_spike",
    "class_r2",
    "class_r2_by_chance",
    "common_loss",
    "detrended",
    "directions",
    "discover",
    "discover_by_gradients",
    "fallers",
    "final",
    "find_pairs",
    "find_spikes",
    "gap_changes",
    "interval_coverage",
    "is_descent",
    "lag_one_autocorrelation",
    "match",
    "match_pair",
    "metric_of_points",
    "modal_share",
    "modal_share_by_chance",
    "moving_average",
    "nearest_planted",
    "norm_at_loss",
    "outlier_panels",
    "pair_panels",
    "planted_groups",
    "probe_path",
    "relative_feature_norms",
    "risers",
    "sizes_by_floor_distance",
    "stability",
    "steps_of_epoch",
    "times",
    "under",
]
