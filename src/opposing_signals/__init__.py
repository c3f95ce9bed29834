"""See which training examples drive the optimization of a neural network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opposing_signals._torchvision import make_importable

if TYPE_CHECKING:
    from opposing_signals.follow import OpposingSignals

__all__ = ["OpposingSignals"]

make_importable()


def __getattr__(name: str) -> Any:
    """`OpposingSignals` on first use: it imports torch, and the command line's help must not wait for that."""
    if name == "OpposingSignals":
        from opposing_signals.follow import OpposingSignals

        return OpposingSignals
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
