"""Figures: trajectories in, a matplotlib figure out. Nothing here trains."""

from opposing_signals.figures.changes import change_distribution, share_increasing
from opposing_signals.figures.chebyshev import chebyshev
from opposing_signals.figures.groups import group_losses
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
    "group_losses",
    "share_increasing",
    "theorem31",
    "theorem32",
    "theorem_map",
    "three_phases",
    "toy_valley",
    "toy_valley_animation",
]
