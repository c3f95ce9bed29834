"""Steps at which something jumps, found while they pass."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

REMEMBERED = 32
"""Values that a new one is compared with."""

FEWEST = 8
"""Values that there must be before a jump can be told."""

UNUSUAL = 6.0
"""A jump lies above the median by more than this many standard deviations, as the median absolute deviation gives
them."""


def bound(seen: Iterable[float], unusual: float = UNUSUAL) -> float:
    """What a value must exceed to stand out of those ``seen`` before it.

    Args:
        seen: At least one.
        unusual: Standard deviations above the median.
    """
    median = _median(seen)
    deviation = 1.4826 * _median(abs(value - median) for value in seen)
    return median + unusual * max(deviation, 1e-3 * abs(median))


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)  # of so few values faster than an array's
    return ordered[len(ordered) // 2]


class Jumps:
    """Tells whether a value stands out of those before it."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[float]] = {}

    def add(self, name: str, value: float) -> bool:
        """Take the next ``value`` of ``name``; True if it jumps, or is not finite."""
        seen = self._seen.setdefault(name, deque(maxlen=REMEMBERED))
        if not math.isfinite(value):
            return True
        jumped = False
        if len(seen) >= FEWEST:
            jumped = value > bound(seen)
        seen.append(value)
        return jumped
