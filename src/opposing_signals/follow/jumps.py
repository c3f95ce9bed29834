"""Steps at which something jumps, found while they pass."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

REMEMBERED = 32
"""Values that a new one is compared with."""

FEWEST = 8
"""Values that there must be before a jump can be told."""

UNUSUAL = 6.0
"""A jump lies above the median by more than this many standard deviations, as the median absolute deviation gives
them."""


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
            median = float(np.median(seen))
            deviation = 1.4826 * float(np.median(np.abs(np.array(seen) - median)))
            jumped = value > median + UNUSUAL * max(deviation, 1e-3 * abs(median))
        seen.append(value)
        return jumped
