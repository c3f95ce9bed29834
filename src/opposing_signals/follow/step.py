"""A followed step, and steps waiting to be written."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opposing_signals.processes import count
from opposing_signals.record import Record, quantities

WIDEST = 1024
"""Maximum number of a batch's rows whose losses are kept: those of largest loss."""

BUFFERED = 200
"""Maximum number of steps kept before they are written. A process that is killed loses them."""

SECONDS = 5.0
"""Seconds for which a single process keeps them, at most; several must write after the same step and use no clock."""


Indices = list[int] | Tensor
"""``[n]`` indices of a batch: a list, or a tensor on its device; converting it would take longer within a step."""


@dataclass
class Step:
    """One step of training, while it runs.

    Attributes:
        loss: The training step's own loss; a plain loop may set it. None: the mean over the batch's rows.
        gradient_norm: Norm of its gradient before clipping.
        number: t.
        learning_rate: η.
        losses: ``[n]`` losses of each batch that the step trains on.
        indices: ``[n]`` indices of the same examples; None where they are not known.
        is_given: Whether the loop itself has given the losses.
        values: The losses as numbers, if they are known without synchronization and few enough; else None.
        largest: The largest of these.
    """

    loss: Tensor | float | None = None
    gradient_norm: Tensor | float | None = None
    number: int = -1
    learning_rate: float = math.nan
    losses: list[Tensor] = field(default_factory=list)
    indices: list[Indices | None] = field(default_factory=list)
    is_given: bool = False
    values: list[float] | None = field(default_factory=list)
    largest: float | None = None

    def record(self, losses: Tensor, indices: Any = None) -> None:
        """Set the losses of examples that the step trains on, instead of those found automatically.

        Args:
            losses: ``[n]``, with or without a graph.
            indices: ``[n]`` indices in the data set; None if unknown.
        """
        if not self.is_given:
            self.is_given = True
            self.losses.clear()
            self.indices.clear()
            self.values = []
        self.add(losses.detach().reshape(-1), as_indices(indices))

    def add(self, losses: Tensor, indices: Indices | None) -> None:
        """Add the ``[n]`` losses of a batch, and the indices if there are as many."""
        self.losses.append(losses)
        # As Python numbers: after a long step, one more torch operation takes 30 µs.
        is_known = self.values is not None and losses.is_cpu and losses.numel() <= WIDEST
        self.values = [*(self.values or ()), *losses.tolist()] if is_known else None
        self.indices.append(indices if indices is not None and len(indices) == losses.numel() else None)

    @property
    def size(self) -> int:
        """Number of examples whose losses are known."""
        return sum(losses.numel() for losses in self.losses)


class StepBuffer:
    """Steps to be written to the record: one synchronization and one write for many of them."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._began = 0.0  # when the first of them was added
        self._width: int | None = None

    def add(self, step: Step) -> bool:
        """Add a complete step; True if it is time to write."""
        if step.values and len(step.values) <= WIDEST:
            step.largest = max(step.values)
            step.loss = sum(step.values) / len(step.values) if step.loss is None else step.loss
        elif step.loss is None and step.losses:
            step.loss = torch.cat([losses.float() for losses in step.losses]).mean()
        step.values = None  # the tensors are kept
        now = time.monotonic()
        if not self._steps:
            self._began = now
        self._steps.append(step)
        return len(self._steps) >= BUFFERED or (now - self._began > SECONDS and count() == 1)

    def clear(self) -> None:
        """Drop what is not written yet."""
        self._steps.clear()

    def write(self, record: Record, with_others: bool = True) -> None:
        """Append the steps to ``record``, those of all processes or of this one alone."""
        steps, self._steps = self._steps, []
        if not steps:
            return
        rows = list(zip(_losses_of(steps), map(_indices_of, steps), strict=True))
        loss, norm = _to_floats([step.loss for step in steps]), _to_floats([step.gradient_norm for step in steps])
        if with_others and count() > 1:
            rows, loss = _gathered(rows, loss)
        numbers = np.array([step.number for step in steps], np.int64)
        sizes = np.array([len(losses) or -1 for losses, _ in rows], np.int64)
        record.extend(quantities.LEARNING_RATE, numbers, np.array([step.learning_rate for step in steps]))
        record.extend(quantities.BATCH_SIZE, numbers, sizes)
        for quantity, values, known in (
            (quantities.TRAIN_LOSS, loss, [step.loss is not None for step in steps]),
            (quantities.BATCH_GRADIENT_NORM, norm, [step.gradient_norm is not None for step in steps]),
        ):
            record.extend(quantity, numbers[known], np.array(values)[known])
        self._write_rows(record, numbers[sizes > 0], [row for row in rows if len(row[0])])

    def _write_rows(self, record: Record, numbers: np.ndarray, rows: list[tuple[np.ndarray, np.ndarray]]) -> None:
        if not rows:
            return
        if self._width is None:
            self._width = min(WIDEST, max(len(losses) for losses, _ in rows))
            if quantities.BATCH_LOSS in record:
                self._width = record[quantities.BATCH_LOSS].values.shape[1]
        shape = len(rows), self._width
        losses, indices = np.full(shape, np.nan, np.float32), np.full(shape, -1, np.int64)
        for place, (row, index) in enumerate(rows):
            kept = _largest(row, self._width)
            losses[place, : len(row[kept])], indices[place, : len(row[kept])] = row[kept], index[kept]
        record.extend(quantities.BATCH_LOSS, numbers, losses)
        record.extend(quantities.BATCH_INDEX, numbers, indices)


def as_indices(given: Any) -> Indices | None:
    """A copy of any array, tensor or list of indices; None stays None."""
    if given is None:
        return None
    if not isinstance(given, Tensor):
        return np.asarray(given).astype(np.int64).reshape(-1).tolist()
    given = given if given.dim() == 1 else given.reshape(-1)
    return given.tolist() if given.is_cpu else given.clone()


def _gathered(rows: list[tuple[np.ndarray, np.ndarray]], loss: list[float]) -> tuple[list[Any], Any]:
    """The batches of all processes together, and the mean of their losses."""
    shares: list[Any] = [None] * count()
    torch.distributed.all_gather_object(shares, (rows, loss))
    together = [
        tuple(np.concatenate([share[0][place][part] for share in shares]) for part in (0, 1))
        for place in range(len(rows))
    ]
    return together, np.mean([share[1] for share in shares], axis=0).tolist()


def _largest(losses: np.ndarray, width: int) -> np.ndarray | slice:
    """Positions of the ``width`` largest losses, or of all; non-finite losses count as the largest."""
    if len(losses) <= width:
        return slice(None)
    return np.sort(np.argpartition(-np.where(np.isnan(losses), np.inf, losses), width - 1)[:width])


def _losses_of(steps: list[Step]) -> list[np.ndarray]:
    """``[n]`` losses of the rows of each step, in one transfer from the device."""
    parts = [losses.float() for step in steps for losses in step.losses]
    flat = torch.cat(parts).cpu().numpy() if parts else np.empty(0, np.float32)
    return np.split(flat, np.cumsum([step.size for step in steps])[:-1])


def _indices_of(step: Step) -> np.ndarray:
    parts = [
        np.full(len(losses), -1) if indices is None else torch.as_tensor(indices).cpu().numpy().astype(np.int64)
        for losses, indices in zip(step.losses, step.indices, strict=True)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _to_floats(values: list[Tensor | float | None]) -> list[float]:
    """As float32; NaN for None. One transfer from the device for all."""
    tensors = [value.detach().reshape(()).float() for value in values if isinstance(value, Tensor)]
    device = max((tensor.device for tensor in tensors), key=str, default=None)
    transferred = iter(torch.stack([tensor.to(device) for tensor in tensors]).tolist() if tensors else ())
    numbers = [next(transferred) if isinstance(value, Tensor) else value for value in values]
    with np.errstate(over="ignore"):  # infinite, as in torch
        return np.array([math.nan if number is None else number for number in numbers], np.float32).tolist()
