"""The fraction of the training time that measuring may take."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

Result = TypeVar("Result")

MODEST = 0.015
"""The fraction that is used where it suffices for `CHANGES` changes of `FEWEST` examples."""

CHANGES = 50
"""One-step changes that a run should have at least."""

FEWEST = 128
"""Minimum number of examples that are followed, if there are as many."""

GRACE = 1.0
"""Seconds that `FEWEST` examples and `CHANGES` changes may take beyond the budget, in a run too short for them."""

SHORT = 4.0
"""A training shorter than this many seconds is such a run."""

LEAST = 16
"""Minimum number of examples followed even then, if there are as many."""

ROOM = 2.0
"""Factor by which a measurement may cost more than estimated, in such a run."""

KEPT = 0.25
"""Fraction of the budget reserved for measuring, however much watching the steps takes."""

RESERVE = 0.2
"""Fraction of the budget reserved for steps at which something jumps."""


class Budget:
    """Keeps the time spent on measuring below a fraction of the rest of the training time.

    Observing the training steps counts, too.

    If the number of steps is known, the budget of the whole training is spread over it; otherwise no more is spent than
    the time passed so far allows.

    Args:
        share: 0.05 allows at most 5%; None sets no limit.
        steps: Number of training steps; None if unknown.
    """

    def __init__(self, share: float | None, steps: int | None = None) -> None:
        self._allowed = share
        self.steps = steps
        self.forget()

    def forget(self) -> None:
        """Another training begins."""
        self.share = self._allowed
        self.spent = 0.0
        self.watched = 0.0  # the part of it that passed during training steps
        self.grace = 0.0
        self.costs: dict[str, float] = {}
        self._before = 0.0
        self._began: float | None = None
        self._taken: deque[float] = deque(maxlen=20)  # seconds of the last steps, excluding measurements
        self._watched: deque[float] = deque(maxlen=20)  # seconds spent on observing the same steps
        self._mark: tuple[float, float] | None = None

    def begin(self) -> None:
        """Training begins, or goes on."""
        if self._began is None:
            self._began = time.perf_counter()
            self._mark = None

    def end(self) -> None:
        """Training ends; `seconds` stays as it is."""
        self._before, self._began = self.seconds, None

    @property
    def seconds(self) -> float:
        """Wall time of training so far, measuring included."""
        return self._before + (0.0 if self._began is None else time.perf_counter() - self._began)

    @property
    def overhead(self) -> float:
        """Time spent on measuring over the time of the rest of training; 0 before training begins."""
        rest = self.seconds - self.spent
        return self.spent / rest if rest > 0 else 0.0

    def count_step(self) -> None:
        """A step begins."""
        rest = time.perf_counter() - self.spent
        if self._mark:
            self._taken.append(rest - self._mark[0])
            self._watched.append(self.watched - self._mark[1])
        self._mark = rest, self.watched

    @property
    def step_seconds(self) -> float:
        """Time of a step without measuring: the lower quartile of recent steps, because the first ones are slow."""
        return _lower_quartile(self._taken)

    def allowance(self, step: int) -> float:
        """Seconds that may be spent by the end of the training or, if that is unknown, by now."""
        if self.share is None:
            return float("inf")
        return self._room(self.share, step, step if self.steps is None else self.steps) + self.grace

    def _rest(self, step: int, steps: int) -> float:
        """Seconds that the whole training takes, without measuring."""
        return self.seconds - self.spent + max(0, steps - step) * self.step_seconds

    def _room(self, share: float, step: int, steps: int) -> float:
        """Seconds that ``share`` allows by now, less what observing the remaining steps will take.

        A quarter is kept for measuring where steps are so short that observing would take more than the rest.
        """
        allowed = share * self._rest(step, steps)
        each = statistics.median(self._watched) if self._watched else 0.0
        to_come = each * max(0, steps - step)
        return allowed - to_come + max(0.0, self.watched + to_come - (1 - KEPT) * allowed)

    def allows(self, measurements: dict[str, int], step: int, is_urgent: bool = False) -> bool:
        """Whether these numbers of measurements still fit, at the last known cost of each kind.

        A kind of unknown cost fits: it has to be measured once to know.

        Args:
            measurements: Kind ↦ number.
            step: The current one.
            is_urgent: Whether they may use the `RESERVE`.
        """
        if self.share is None:
            return True
        costs = [count * self.costs[kind] for kind, count in measurements.items() if kind in self.costs]
        if len(costs) < len(measurements):
            return True
        part = 1.0 if is_urgent or self.steps is None else 1 - RESERVE
        return self.spent + sum(costs) <= part * self.allowance(step)

    def stride(self, cost: float, step: int) -> int:
        """Steps between the starts of two windows that spread the remaining budget over the remaining steps.

        Args:
            cost: Seconds of a window.
            step: The current one.
        """
        if self.share is None or self.steps is None or not cost > 0:
            return 1
        left = (1 - RESERVE) * self.allowance(step) - self.spent
        windows = max(left / cost, 1e-9)
        return max(1, int((self.steps - step) / windows))

    def examples(self, reading: float, fixed: float, each: float, available: int, window: int, step: int) -> int:
        """How many examples can be followed so that the run has `CHANGES` changes.

        Args:
            reading: Seconds to read one example.
            fixed: Fixed cost of a measurement in seconds.
            each: Seconds per example of a measurement.
            available: Number of examples there are.
            window: Successive steps that are measured each time.
            step: The current one.
        """
        if self.share is None:
            return available
        steps = self.steps if self.steps is not None else step + 1000
        rest = self._rest(step, steps)
        measurements = CHANGES * window / max(1, window - 1)
        start = self.spent + measurements * fixed
        cost = reading + measurements * each

        def affordable(share: float, more: float = 0.0) -> int:
            return int(((1 - RESERVE) * (self._room(share, step, steps) + more) - start) / cost)

        few, least = min(FEWEST, available), min(LEAST, available)
        if affordable(self.share) < few and rest < SHORT:
            count = min(few, max(least, affordable(self.share, GRACE)))
            wanted = ROOM * (start + count * cost) / (1 - RESERVE)
            self.grace = float(np.clip(wanted - self._room(self.share, step, steps), 0.0, GRACE))
            return count
        for share in np.linspace(min(MODEST, self.share), self.share, 16).tolist():
            count = affordable(share)
            if count >= few:
                self.share = share
                return min(count, available)
        return max(least, count)

    @contextmanager
    def measuring(self, kind: str, device: torch.device | None = None) -> Iterator[None]:
        """Count the time spent inside as a measurement of ``kind``.

        Args:
            kind: What is measured.
            device: Where; on a GPU, pending work of the training is waited for first.
        """
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        try:
            yield
        finally:
            self.costs[kind] = time.perf_counter() - began
            self.spent += self.costs[kind]

    def watching(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """The result of ``work`` during a training step; its time counts, and a measurement within it counts once.

        Called several times per step; a context manager would cost more than much of the work itself.
        """
        began, spent = time.perf_counter(), self.spent
        try:
            return work(*arguments)
        finally:
            seconds = time.perf_counter() - began - (self.spent - spent)
            self.spent += seconds
            self.watched += seconds

    def state_dict(self) -> dict[str, Any]:
        """State for a resumed run."""
        return {
            "seconds": self.seconds,
            "spent": self.spent,
            "watched": self.watched,
            "share": self.share,
            "grace": self.grace,
            "costs": dict(self.costs),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._before, self.costs = state["seconds"], dict(state["costs"])
        self.spent, self.watched = state["spent"], state["watched"]
        self.share, self.grace = state["share"], state["grace"]


def _lower_quartile(values: Iterable[float]) -> float:
    """0 if there are none. The first steps are slow and others are disturbed, hence the quartile."""
    ordered = sorted(values)
    return ordered[len(ordered) // 4] if ordered else 0.0
