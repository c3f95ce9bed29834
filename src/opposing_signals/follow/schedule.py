"""The steps at which the tracking set is measured."""

from __future__ import annotations

from typing import Any

from opposing_signals.errors import InputError
from opposing_signals.follow.budget import Budget
from opposing_signals.follow.jumps import Jumps
from opposing_signals.follow.step import Step
from opposing_signals.processes import agreed, count

LOSSES, CURVATURE = "losses", "curvature"
"""Kinds of measurements for which the budget knows the cost."""

CONSECUTIVE = 4
"""Successive steps in a window: four measurements give three changes."""

SHARED_LOOK = 8
"""Steps between decisions that several processes take together."""


class Schedule:
    """Windows of successive steps, spread over the run as the budget allows, and earlier where something jumps.

    Args:
        every: A window begins every ``every`` steps, as long as the budget allows.
        consecutive: Steps in a window; None: 4, or ``every`` if that is less.
        sharpness_every: λ is measured once per this many windows; None for never.
        budget: Limits the time for measurements.

    Raises:
        InputError: A setting that cannot work.
    """

    def __init__(self, every: int | None, consecutive: int | None, sharpness_every: int | None, budget: Budget) -> None:
        if consecutive is None:
            consecutive = CONSECUTIVE if every is None else min(CONSECUTIVE, every)
        every = consecutive if every is None else every
        if every < 1:
            raise InputError(f"every={every}: expected at least 1")
        if not 1 <= consecutive <= every:
            raise InputError(f"consecutive={consecutive}: expected 1 to every={every}")
        if sharpness_every is not None and sharpness_every < 1:
            raise InputError(f"sharpness_every={sharpness_every}: expected at least 1, or None")
        self.every, self.consecutive, self.sharpness_every = every, consecutive, sharpness_every
        self.budget = budget
        self._jumps = Jumps()
        self._is_shared = False  # shared by several processes
        self.forget()

    def forget(self) -> None:
        """Another training begins."""
        self._window: int | None = None  # the step at which the last window began
        self._windows = 0
        self._next = 0  # the next step at which a window may begin is checked
        self._has_jumped = False

    def begin(self) -> None:
        """Training begins, in all processes."""
        self._is_shared = count() > 1

    def look(self, step: Step) -> None:
        """Note whether a step has jumped; if so, the next ones are measured."""
        if self.budget.share is not None and self._jumps.look(step):
            self._has_jumped = True

    def due(self, step: int) -> tuple[bool, bool]:
        """Whether the losses are measured at ``step``, and whether λ is too."""
        is_inside = self._window is not None and step - self._window < self.consecutive
        if not is_inside and not self._begins(step):
            return False, False
        return True, self._wants_sharpness(self._windows - 1)

    def _begins(self, step: int) -> bool:
        """Whether a window begins at ``step``; with several processes the first one decides."""
        if not self._is_shared or self.budget.share is None:
            begins = self._may_begin(step)
        elif step % SHARED_LOOK:
            return False
        else:
            begins = agreed(lambda: self._may_begin(step))
        if begins:
            self._window, self._next, self._has_jumped = step, step + self.every, False
            self._windows += 1
        return begins

    def _wants_sharpness(self, window: int) -> bool:
        return self.sharpness_every is not None and window % self.sharpness_every == 0

    def _may_begin(self, step: int) -> bool:
        is_free = self._window is None or self._has_jumped
        if not is_free and step < self._next:
            return False
        self._next = step + self.every
        wanted = {LOSSES: self.consecutive}
        if self._wants_sharpness(self._windows):
            wanted[CURVATURE] = self.consecutive
        if not self.budget.allows(wanted, step, is_urgent=self._has_jumped):
            return False
        if not is_free:
            cost = sum(number * self.budget.costs.get(kind, 0.0) for kind, number in wanted.items())
            self._next = (self._window or 0) + max(self.every, self.budget.stride(cost, step))
        return is_free or step >= self._next

    def state_dict(self) -> dict[str, Any]:
        """State for a resumed run."""
        return {"window": self._window, "windows": self._windows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._window, self._windows = state["window"], state["windows"]
