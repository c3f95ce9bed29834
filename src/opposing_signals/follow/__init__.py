"""Opposing signals on a LightningModule of one's own: a callback that writes a record, and what the record says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opposing_signals.follow.explanation import explain

if TYPE_CHECKING:
    from opposing_signals.follow.callback import OpposingSignals

__all__ = ["OpposingSignals", "explain"]


def __getattr__(name: str) -> Any:
    """`OpposingSignals` on first use: it imports Lightning, which an explanation does not need."""
    if name == "OpposingSignals":
        from opposing_signals.follow.callback import OpposingSignals

        return OpposingSignals
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
