"""Claims as data, and the statistics that decide them."""

from opposing_signals.claims.claim import Claim, Estimate, Threshold, verdict_table

__all__ = ["Claim", "Estimate", "Threshold", "verdict_table"]
