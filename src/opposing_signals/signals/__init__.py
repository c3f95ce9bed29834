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
from opposing_signals.signals.coherence import (
    class_r2,
    class_r2_by_chance,
    directions,
    modal_share,
    modal_share_by_chance,
)
from opposing_signals.signals.edge import edge_of_stability
from opposing_signals.signals.gradient_pairs import find_pairs_by_gradients
from opposing_signals.signals.intervals import interval_coverage
from opposing_signals.signals.names import name_group, name_pair
from opposing_signals.signals.pairs import OpposingPair, find_pairs, outliers_of
from opposing_signals.signals.selection import fallers, risers
from opposing_signals.signals.spikes import Spike, find_spikes
from opposing_signals.signals.trajectory import Runs, Trajectory

__all__ = [
    "Match",
    "OpposingPair",
    "Runs",
    "Spike",
    "Trajectory",
    "agreement",
    "class_r2",
    "class_r2_by_chance",
    "directions",
    "edge_of_stability",
    "fallers",
    "find_pairs",
    "find_pairs_by_gradients",
    "find_spikes",
    "interval_coverage",
    "match",
    "match_pair",
    "modal_share",
    "modal_share_by_chance",
    "name_group",
    "name_pair",
    "nearest_planted",
    "outliers_of",
    "planted_groups",
    "risers",
    "stability",
]
