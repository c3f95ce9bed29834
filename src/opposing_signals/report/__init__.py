"""The static page of all results."""

from opposing_signals.report.page import build

__all__ = ["build"]
