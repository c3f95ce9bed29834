"""Where the curvature sits: figures 2, 6b, 32 to 36."""
