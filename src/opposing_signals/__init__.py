"""See which training examples drive the optimization of a neural network."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from opposing_signals._torchvision import make_importable

if TYPE_CHECKING:
    from opposing_signals.curvature import EigenTracker, EmpiricalRisk, Hessian
    from opposing_signals.errors import InputError
    from opposing_signals.follow import Follower, OpposingSignals, explain
    from opposing_signals.optim import SAM, ClippedSGD, GradientFlow, OneSAM, SignSGD, SplitSGD
    from opposing_signals.record import Record, Series
    from opposing_signals.signals import OpposingPair, Trajectory, find_pairs

_ROOMS = {
    "ClippedSGD": "optim",
    "EigenTracker": "curvature",
    "EmpiricalRisk": "curvature",
    "Follower": "follow",
    "GradientFlow": "optim",
    "Hessian": "curvature",
    "InputError": "errors",
    "OneSAM": "optim",
    "OpposingPair": "signals",
    "OpposingSignals": "follow",
    "Record": "record",
    "SAM": "optim",
    "Series": "record",
    "SignSGD": "optim",
    "SplitSGD": "optim",
    "Trajectory": "signals",
    "explain": "follow",
    "find_pairs": "signals",
}

__all__ = [  # noqa: RUF022  # in the order of _ROOMS
    "ClippedSGD",
    "EigenTracker",
    "EmpiricalRisk",
    "Follower",
    "GradientFlow",
    "Hessian",
    "InputError",
    "OneSAM",
    "OpposingPair",
    "OpposingSignals",
    "Record",
    "SAM",
    "Series",
    "SignSGD",
    "SplitSGD",
    "Trajectory",
    "explain",
    "find_pairs",
]

make_importable()


def __getattr__(name: str) -> Any:
    """Import the package's names on first use: most need torch, whose import would delay the command's help."""
    if name in _ROOMS:
        return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Includes the names imported on first use."""
    return [*globals(), *_ROOMS]
