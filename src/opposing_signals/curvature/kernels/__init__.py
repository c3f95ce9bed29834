"""Layers with second derivatives of their own, for `opposing_signals.curvature.second_order`."""
