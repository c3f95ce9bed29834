"""The two-layer model of §3.3 of the paper, its dynamics, its theorems, and the toy valley of figure 4."""
