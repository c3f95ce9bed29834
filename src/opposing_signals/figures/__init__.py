"""Figures: trajectories in, a matplotlib figure out. Nothing here trains."""

from opposing_signals.figures.changes import change_distribution, share_increasing
from opposing_signals.figures.chebyshev import chebyshev
from opposing_signals.figures.groups import group_losses

__all__ = ["change_distribution", "chebyshev", "group_losses", "share_increasing"]
