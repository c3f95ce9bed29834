"""Curvature of an `EmpiricalRisk`: pure functions and solvers, no I/O."""

from opposing_signals.curvature.eigen import Eigenpair, TopEigenpair

__all__ = ["Eigenpair", "TopEigenpair"]
