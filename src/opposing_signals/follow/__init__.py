"""Opposing signals in one's own training: follow it, write a record, and explain the record.

`Follower` needs no framework; `OpposingSignals` is its form as a callback of Lightning, and
`opposing_signals.follow.transformers.OpposingSignals` that of transformers' Trainer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opposing_signals.follow.explanation import explain

if TYPE_CHECKING:
    from opposing_signals.follow.follower import Follower
    from opposing_signals.follow.lightning import OpposingSignals

__all__ = ["Follower", "OpposingSignals", "explain"]


def __getattr__(name: str) -> Any:
    """Import on first use what needs torch or Lightning; an explanation needs neither."""
    if name == "OpposingSignals":
        from opposing_signals.follow.lightning import OpposingSignals

        return OpposingSignals
    if name == "Follower":
        from opposing_signals.follow.follower import Follower

        return Follower
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
