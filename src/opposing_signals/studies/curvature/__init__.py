"""Curvature by example, direction and layer: figures 2, 6b, 32 to 36."""
