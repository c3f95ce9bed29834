"""What a record shows: loss changes, the points that they single out, and the opposing groups among them."""

from opposing_signals.signals.branches import Branches, branches_by_spike
from opposing_signals.signals.metrics import Metric, SizeAlongV, metric_of_points, sizes_by_floor_distance
from opposing_signals.signals.pairs import OpposingPair, find_pairs
from opposing_signals.signals.selection import fallers, risers
from opposing_signals.signals.spikes import Spike, find_spikes
from opposing_signals.signals.trajectory import Trajectory

__all__ = [
    "Branches",
    "Metric",
    "OpposingPair",
    "SizeAlongV",
    "Spike",
    "Trajectory",
    "branches_by_spike",
    "fallers",
    "find_pairs",
    "find_spikes",
    "metric_of_points",
    "risers",
    "sizes_by_floor_distance",
]
