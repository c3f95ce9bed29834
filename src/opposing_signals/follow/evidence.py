"""What the record of the training batches shows: where the train loss spiked or diverged, and what was unusual there.

A batch's loss jumps for three kinds of reasons: the batch is unusual (a last batch of five examples, an odd row), the
step before it was unusual (learning rate, gradient), or the training leaves the region in which it converges.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from opposing_signals.follow.jumps import FEWEST, REMEMBERED, bound
from opposing_signals.record import Record, quantities

SMALL = 0.5
"""A batch is small if it has fewer examples than this fraction of the usual number."""

JUMP = 1.5
"""A learning rate jumps if it grows by more than this factor from one step to the next."""

BEFORE = 3
"""Number of steps before a spike in which a jump of the learning rate may be its cause."""

NAMED = 5
"""Number of rows of a batch that are named."""

GONE = 3.0
"""A training has diverged without overflow if its train loss ends above this many times that of its first steps."""


@dataclass(frozen=True)
class BatchSpike:
    """A step whose train loss stands out from the steps before it.

    Attributes:
        step: t.
        loss: Loss of the batch at θ_t.
        usual: Median of the steps before.
        reasons: What was unusual, in words; empty if nothing was.
        rows: Indices of the rows of largest loss, −1 where not known.
        losses: Losses of these rows.
        share: Fraction of the batch's total excess over the usual loss that these rows carry; NaN if unknown.
    """

    step: int
    loss: float
    usual: float
    reasons: tuple[str, ...]
    rows: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    share: float = math.nan

    def as_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {**asdict(self), "share": None if math.isnan(self.share) else self.share}


@dataclass(frozen=True)
class Divergence:
    """A training that diverged.

    Attributes:
        step: The first step whose train loss is not finite, or from which it stays far above its initial value.
        is_finite: Whether the loss stayed finite.
        row: Index of the first example whose loss was not finite, −1 where not known; None if there is none.
        row_step: The step of that example.
        before: Steps, train losses, gradient norms and learning rates of the last steps before.
        reasons: What was unusual before, in words.
    """

    step: int
    is_finite: bool
    row: int | None
    row_step: int | None
    before: dict[str, list[float]] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """A JSON object."""
        return asdict(self)


class Batches:
    """The recorded batches of a run, step by step."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self.steps, self.losses = self._series(quantities.TRAIN_LOSS)

    def spikes(self, count: int, last: float = math.inf) -> list[BatchSpike]:
        """The steps up to ``last`` whose train loss stands out most, the largest first."""
        found = []
        for row in range(FEWEST, int(np.searchsorted(self.steps, last, "right"))):
            seen = self.losses[max(0, row - REMEMBERED) : row]
            seen = seen[np.isfinite(seen)]
            if len(seen) >= FEWEST and math.isfinite(self.losses[row]) and self.losses[row] > bound(seen.tolist()):
                usual = float(np.median(seen))
                found.append((self.losses[row] - usual, row, usual))
        chosen: list[tuple[int, float]] = []
        for _, row, usual in sorted(found, reverse=True):
            if len(chosen) < count and all(abs(row - other) > 2 for other, _ in chosen):
                chosen.append((row, usual))
        return [self._spike(row, usual) for row, usual in chosen]

    def divergence(self) -> Divergence | None:
        """Where the training diverged; None if it did not."""
        row, row_step = self._first_row()
        lost = np.flatnonzero(~np.isfinite(self.losses))
        if len(lost):
            step = int(self.steps[lost[0]])
        elif row_step is not None:
            step = row_step
        else:
            return self._runaway()
        return Divergence(step, False, row, row_step, self._before(step), self.reasons(step))

    def reasons(self, step: int) -> tuple[str, ...]:
        """What was unusual at ``step`` and the step before it, in words."""
        return tuple(
            reason for reason in (self._size_at(step), self._rate_before(step), self._gradient_before(step)) if reason
        )

    # -- parts --------------------------------------------------------------------------------------------------

    def _series(self, quantity: str) -> tuple[np.ndarray, np.ndarray]:
        if quantity not in self._record:
            return np.empty(0, np.int64), np.empty(0)
        series = self._record[quantity]
        return np.asarray(series.steps), np.asarray(series.values)

    def _spike(self, place: int, usual: float) -> BatchSpike:
        step = int(self.steps[place])
        losses, indices = self._rows(step)
        reasons = self.reasons(step)
        if not len(losses):
            return BatchSpike(step, float(self.losses[place]), usual, reasons)
        largest = np.argsort(-losses)[:NAMED]
        above = np.maximum(losses - usual, 0)
        share = float(above[largest].sum() / above.sum()) if above.sum() > 0 else math.nan
        return BatchSpike(
            step,
            float(self.losses[place]),
            usual,
            reasons,
            tuple(int(index) for index in indices[largest]),
            tuple(float(loss) for loss in losses[largest]),
            share,
        )

    def _rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        there = max(0, self._size_of(step))
        losses, indices = (self._at(quantity, step, []) for quantity in (quantities.BATCH_LOSS, quantities.BATCH_INDEX))
        return (losses[:there], indices[:there]) if len(indices) else (np.empty(0), np.empty(0, np.int64))

    def _size_of(self, step: int) -> int:
        return int(self._at(quantities.BATCH_SIZE, step, -1))

    def _at(self, quantity: str, step: int, otherwise: Any) -> Any:
        try:
            return self._record[quantity].at(step)
        except KeyError:
            return otherwise

    def _first_row(self) -> tuple[int | None, int | None]:
        """Index and step of the first row whose loss was not finite."""
        steps, losses = self._series(quantities.BATCH_LOSS)
        if not len(steps):
            return None, None
        sizes_at, sizes = self._series(quantities.BATCH_SIZE)
        kept = np.minimum(sizes[np.isin(sizes_at, steps)], losses.shape[1])
        if len(kept) != len(steps):
            return None, None
        lost = ~np.isfinite(losses) & (np.arange(losses.shape[1]) < kept[:, None])
        if not lost.any():
            return None, None
        place = int(np.flatnonzero(lost.any(1))[0])
        row = int(np.flatnonzero(lost[place])[0])
        _, indices = self._series(quantities.BATCH_INDEX)
        return (int(indices[place, row]) if place < len(indices) else -1), int(steps[place])

    def _runaway(self) -> Divergence | None:
        if len(self.losses) < 2 * FEWEST:
            return None
        end = max(5, len(self.losses) // 20)
        start = float(np.median(self.losses[:5]))
        if not np.median(self.losses[-end:]) > GONE * max(start, 0):
            return None
        above = self.losses > GONE * start
        stays = len(above) - int(np.argmin(above[::-1])) if not above.all() else 0
        step = int(self.steps[min(stays, len(self.steps) - 1)])
        return Divergence(step, True, None, None, self._before(step), self.reasons(step))

    def _before(self, step: int) -> dict[str, list[float]]:
        told: dict[str, list[float]] = {}
        for quantity in (quantities.TRAIN_LOSS, quantities.BATCH_GRADIENT_NORM, quantities.LEARNING_RATE):
            steps, values = self._series(quantity)
            chosen = (steps < step) & (steps >= step - BEFORE)
            told[quantity] = [float(value) for value in values[chosen]]
        return told

    def _size_at(self, step: int) -> str:
        _, sizes = self._series(quantities.BATCH_SIZE)
        size, usual = self._size_of(step), float(np.median(sizes)) if len(sizes) else 0.0
        return f"its batch holds {size} examples, others {usual:g}" if 0 < size < SMALL * usual else ""

    def _rate_before(self, step: int) -> str:
        steps, rates = self._series(quantities.LEARNING_RATE)
        for place in np.flatnonzero((steps <= step) & (steps > step - BEFORE - 1))[::-1]:
            if place > 0 and steps[place - 1] >= 0 and rates[place] > JUMP * rates[place - 1] > 0:
                return (
                    f"the learning rate went from {rates[place - 1]:.3g} to {rates[place]:.3g} at step {steps[place]}"
                )
        return ""

    def _gradient_before(self, step: int) -> str:
        steps, norms = self._series(quantities.BATCH_GRADIENT_NORM)
        place = int(np.searchsorted(steps, step - 1))
        seen = norms[max(0, place - REMEMBERED) : place]
        seen = seen[np.isfinite(seen)]
        if place >= len(steps) or steps[place] != step - 1:
            return ""
        if not math.isfinite(norms[place]):
            return "the step before had a gradient that is not finite"
        if len(seen) < FEWEST or not norms[place] > bound(seen):
            return ""
        usual = float(np.median(seen))
        times = f", {norms[place] / usual:.1f} times the usual" if usual > 0 else ""
        return f"the step before had a gradient of norm {norms[place]:.3g}{times}"
