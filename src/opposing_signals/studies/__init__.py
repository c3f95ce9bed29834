"""Studies: one folder per topic of the paper, with its claims, its figures and the measures that both use."""
