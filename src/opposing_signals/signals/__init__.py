"""What a record shows: loss changes, the points that they single out, and the opposing groups among them."""

from opposing_signals.signals.discovery import (
    Discovery,
    Match,
    agreement,
    discover,
    discover_by_gradients,
    match,
    match_pair,
    stability,
)
from opposing_signals.signals.metrics import Metric, SizeAlongV, metric_of_points, sizes_by_floor_distance
from opposing_signals.signals.pairs import OpposingPair, find_pairs
from opposing_signals.signals.panels import Panel, outlier_panels, pair_panels
from opposing_signals.signals.selection import fallers, risers
from opposing_signals.signals.trajectory import Trajectory

__all__ = [
    "Discovery",
    "Match",
    "Metric",
    "OpposingPair",
    "Panel",
    "SizeAlongV",
    "Trajectory",
    "agreement",
    "discover",
    "discover_by_gradients",
    "fallers",
    "find_pairs",
    "match",
    "match_pair",
    "metric_of_points",
    "outlier_panels",
    "pair_panels",
    "risers",
    "sizes_by_floor_distance",
    "stability",
]
