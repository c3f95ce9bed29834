"""What a record shows: loss changes, the points that they single out, and the opposing groups among them."""

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
from opposing_signals.signals.rules import Quantity, Rule, final, steps_of_epoch, under
from opposing_signals.signals.selection import fallers, risers
from opposing_signals.signals.trajectory import Runs, Trajectory

__all__ = [
    "SMOOTH",
    "Metric",
    "OpposingPair",
    "Quantity",
    "Rule",
    "Runs",
    "SizeAlongV",
    "Trajectory",
    "detrended",
    "fallers",
    "final",
    "find_pairs",
    "gap_changes",
    "metric_of_points",
    "moving_average",
    "relative_feature_norms",
    "risers",
    "sizes_by_floor_distance",
    "steps_of_epoch",
    "under",
]
