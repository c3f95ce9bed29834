"""See which training examples drive the optimization of a neural network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opposing_signals._torchvision import make_importable

if TYPE_CHECKING:
    from opposing_signals.follow import Follower, OpposingSignals

__all__ = ["Follower", "OpposingSignals"]

make_importable()


def __getattr__(name: str) -> Any:
    """`Follower` and `OpposingSignals` on first use: they import torch, and the command line's help must not wait."""
    if name in __all__:
        from opposing_signals import follow

        return getattr(follow, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
