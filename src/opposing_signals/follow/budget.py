"""How much of the training time measuring may take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Budget:
    """Keeps the seconds that measuring has taken at most at a share of those that the rest of training took.

    Args:
        share: 0.05 is at most 5%; None is no limit.
    """

    def __init__(self, share: float | None) -> None:
        self.share = share
        self.spent = 0.0
        self.costs: dict[str, float] = {}
        self._before = 0.0
        self._began: float | None = None

    def begin(self) -> None:
        """Training begins, or goes on."""
        self._began = time.perf_counter()

    def end(self) -> None:
        """Training ends; `seconds` stays as it is."""
        self._before, self._began = self.seconds, None

    @property
    def seconds(self) -> float:
        """Wall time of training so far, measuring included."""
        return self._before + (0.0 if self._began is None else time.perf_counter() - self._began)

    @property
    def overhead(self) -> float:
        """What measuring took, as a share of what the rest of training took; 0 before it began."""
        rest = self.seconds - self.spent
        return self.spent / rest if rest > 0 else 0.0

    def allows(self, measurements: dict[str, int]) -> bool:
        """Whether so many of each kind of measurement, at the last cost of each, still fit.

        A kind without a known cost fits: it has to be measured once to know.
        """
        if self.share is None:
            return True
        costs = [count * self.costs[kind] for kind, count in measurements.items() if kind in self.costs]
        return len(costs) < len(measurements) or self.spent + sum(costs) <= self.share * (self.seconds - self.spent)

    @contextmanager
    def measuring(self, kind: str, device: torch.device | None = None) -> Iterator[None]:
        """Count what is done inside as a measurement of ``kind``.

        Args:
            kind: What is measured.
            device: Where; on a GPU the work of training that is still under way is waited for first.
        """
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        try:
            yield
        finally:
            self.costs[kind] = time.perf_counter() - began
            self.spent += self.costs[kind]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from."""
        return {"seconds": self.seconds, "spent": self.spent, "costs": dict(self.costs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._before, self.spent, self.costs = state["seconds"], state["spent"], dict(state["costs"])
