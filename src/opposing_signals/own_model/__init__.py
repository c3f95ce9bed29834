"""Opposing signals on a LightningModule of one's own: a callback that writes a record, and what the record says."""

from opposing_signals.own_model.callback import OpposingSignals
from opposing_signals.own_model.explanation import explain

__all__ = ["OpposingSignals", "explain"]
