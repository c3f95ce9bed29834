"""What a record shows: loss changes, the points that they single out, and the opposing groups among them."""

from opposing_signals.signals.pairs import OpposingPair, find_pairs
from opposing_signals.signals.selection import fallers, risers
from opposing_signals.signals.trajectory import Trajectory

__all__ = ["OpposingPair", "Trajectory", "fallers", "find_pairs", "risers"]
