"""Studies: one folder a topic of the paper, with its claims, its figures and what both are measured by."""
