"""Steps at which something jumps, found while they pass."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from opposing_signals.follow.step import Step

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
        self._pending: deque[tuple[Tensor, Any]] = deque()

    def look(self, step: Step) -> bool:
        """Whether train loss, gradient or the largest loss of a row has jumped; told as soon as it is known.

        On a GPU that may be some steps later: nothing is waited for.
        """
        largest = [losses.max() for losses in step.losses if len(losses)]
        values = [step.loss, step.gradient_norm, torch.stack(largest).max() if largest else None]
        device = next((value.device for value in values if isinstance(value, Tensor)), None)
        there = torch.stack(
            [torch.as_tensor(math.nan if v is None else v, device=device).detach().float() for v in values]
        )
        event = None
        if there.is_cuda:
            there = there.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((there, event))
        has_jumped = False
        while self._pending and (self._pending[0][1] is None or self._pending[0][1].query()):
            seen, _ = self._pending.popleft()
            for name, value in zip(("loss", "gradient", "row"), seen.tolist(), strict=True):
                has_jumped |= not math.isnan(value) and self.add(name, value)
        return has_jumped

    def add(self, name: str, value: float) -> bool:
        """Take the next ``value`` of ``name``; True if it jumps, or is not finite."""
        seen = self._seen.setdefault(name, deque(maxlen=REMEMBERED))
        if not math.isfinite(value):
            return True
        jumped = len(seen) >= FEWEST and value > bound(seen)
        seen.append(value)
        return jumped
