"""Records of runs, and the quantities in them."""

from opposing_signals.record.record import Record, Series, WrittenElsewhere

__all__ = ["Record", "Series", "WrittenElsewhere"]
