"""Opposing signals in a training of one's own: it is followed, a record is written, and what the record says.

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
    """Those that train on first use: they import torch or Lightning, which an explanation does not need."""
    if name == "OpposingSignals":
        from opposing_signals.follow.lightning import OpposingSignals

        return OpposingSignals
    if name == "Follower":
        from opposing_signals.follow.follower import Follower

        return Follower
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
