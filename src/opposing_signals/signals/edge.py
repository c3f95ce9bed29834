"""The edge of stability: the largest stable sharpness of an update rule, and when a run reaches it (break-even)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from opposing_signals.record import Record
from opposing_signals.record.quantities import LEARNING_RATE

NO_EDGE = "2/η is no edge of stability of this run: that needs gradient steps of one size without momentum"


def edge_of_stability(record: Record) -> float | None:
    """2/η, the largest λ at which gradient steps of size η do not grow along the top eigenvector.

    Returns:
        None for other rules (momentum, Adam, SAM and the like have thresholds of their own), with weight decay, which
        changes the loss, or if the step size varies.
    """
    optimizer = record.configuration.get("optimizer")
    if not isinstance(optimizer, Mapping) or record.configuration.get("before_update"):
        return None
    if LEARNING_RATE in record and len(np.unique(record[LEARNING_RATE].values)) > 1:
        return None
    rule = str(optimizer.get("_target_", "SGD")).rpartition(".")[2]  # jobs of the theory name no class
    return edge_of_rule(rule, optimizer)


def edge_of_rule(rule: str, settings: Mapping[str, Any]) -> float | None:
    """2/η if the rule is plain gradient descent, else None.

    Args:
        rule: Name of the optimizer's class.
        settings: Its ``lr``, and ``momentum`` and ``weight_decay`` if it has them.
    """
    lr = settings.get("lr")
    is_plain = rule == "SGD" and not settings.get("momentum") and not settings.get("weight_decay")
    return 2 / lr if is_plain and isinstance(lr, int | float) and lr > 0 else None


def reaches(sharpness: np.ndarray | float, edge: float) -> np.ndarray:
    """Whether λ is at the edge or beyond: at λ = 2/η a step flips the offset without shrinking it."""
    return np.asarray(sharpness) >= edge
