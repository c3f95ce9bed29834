"""Online detection of steps at which something jumps."""

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
"""Number of earlier values that a new one is compared with."""

FEWEST = 8
"""Minimum number of values before a jump can be detected."""

_SERVES = 8  # number of values for which a bound is reused

UNUSUAL = 6.0
"""A jump lies more than this many standard deviations above the median; the standard deviation is estimated from the
median absolute deviation."""


def bound(seen: Iterable[float], unusual: float = UNUSUAL) -> float:
    """The bound above which a value stands out from those ``seen`` before it.

    Args:
        seen: Values, at least one.
        unusual: Standard deviations above the median.
    """
    median = _median(seen)
    deviation = 1.4826 * _median(abs(value - median) for value in seen)
    return median + unusual * max(deviation, 1e-3 * abs(median))


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)  # for so few values faster than a NumPy sort
    return ordered[len(ordered) // 2]


class Jumps:
    """Detects values that stand out from those before them."""

    def __init__(self) -> None:
        self._series: dict[str, _Series] = {}
        self._pending: deque[tuple[list[str], Tensor, torch.cuda.Event]] = deque()  # being copied from the device

    def look(self, step: Step) -> bool:
        """Whether train loss, gradient norm or the largest loss of a row has jumped; reported as soon as it is known.

        On a GPU that may be some steps later, because nothing synchronizes.
        """
        named: list[tuple[str, Any]] = [("row", step.largest), ("loss", step.loss), ("gradient", step.gradient_norm)]
        if step.largest is None:
            named[:1] = [("row", losses.max()) for losses in step.losses if len(losses)]
        named = [(name, value) for name, value in named if value is not None]
        device = next((value.device for _, value in named if isinstance(value, Tensor) and value.is_cuda), None)
        if device is None:
            return self._add_all(named)
        packed = torch.stack([torch.as_tensor(value, device=device).detach().float() for _, value in named])
        values, event = packed.to("cpu", non_blocking=True), torch.cuda.Event()
        event.record()
        self._pending.append(([name for name, _ in named], values, event))
        has_jumped = False
        while self._pending and self._pending[0][-1].query():
            names, values, _ = self._pending.popleft()
            has_jumped |= self._add_all(list(zip(names, values, strict=True)))
        return has_jumped

    def _add_all(self, named: list[tuple[str, Any]]) -> bool:
        return sum(self.add(name, float(value)) for name, value in named) > 0

    def add(self, name: str, value: float) -> bool:
        """Add the next ``value`` of ``name``; True if it jumps or is not finite."""
        if not math.isfinite(value):
            return True
        if name not in self._series:
            self._series[name] = _Series()
        return self._series[name].add(value)


class _Series:
    """The last values of one name, and the bound computed from them."""

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=REMEMBERED)
        self._bound = math.inf
        self._left = FEWEST  # number of values for which the bound is still used

    def add(self, value: float) -> bool:
        """Whether ``value`` exceeds the bound."""
        if not self._left:
            self._bound, self._left = bound(self._seen), _SERVES
        self._left -= 1
        self._seen.append(value)
        return value > self._bound
