"""What a record shows: loss changes, the points that they single out, and the opposing groups among them."""

from opposing_signals.signals.metrics import (
    Metric,
    SizeAlongV,
    metric_of_points,
    relative_feature_norms,
    sizes_by_floor_distance,
)
from opposing_signals.signals.pairs import OpposingPair, find_pairs
from opposing_signals.signals.selection import fallers, risers
from opposing_signals.signals.trajectory import Trajectory

__all__ = [
    "Metric",
    "OpposingPair",
    "SizeAlongV",
    "Trajectory",
    "fallers",
    "find_pairs",
    "metric_of_points",
    "relative_feature_norms",
    "risers",
    "sizes_by_floor_distance",
]
