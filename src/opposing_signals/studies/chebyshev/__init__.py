"""Figure 3: a Chebyshev polynomial."""
