"""What a training step reveals: the losses of its batch's rows, their indices, and the optimizers' gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from torch import Tensor, nn

from opposing_signals.errors import InputError
from opposing_signals.follow.batch_losses import BatchLosses, Safely
from opposing_signals.follow.optimizers import OptimizerSteps
from opposing_signals.follow.per_sample import PerSampleLoss
from opposing_signals.follow.sampling import DrawnIndices
from opposing_signals.follow.step import Indices, Step, as_indices

_MOST_BATCHES = 1024  # most micro-batches accumulated in a step


class StepWatch:
    """Observes training steps, batch by batch; a step is over when an optimizer has stepped.

    Args:
        dataset: The data set that indices refer to.
        ids: Example ↦ its number, for batches whose indices no sampler gives.
        safely: See `batch_losses.Safely`.
    """

    def __init__(self, dataset: Any, ids: Callable[[Any], Any] | None, safely: Safely) -> None:
        self.drawn = DrawnIndices(dataset)
        self.step: Step | None = None  # the current one
        self._ids = ids
        self._safely = safely
        self.optimizers = OptimizerSteps(safely)
        self._rows: BatchLosses | None = None
        self._batch: tuple[Any, Any] = None, None  # the batch and its indices, if they are given
        self._is_open = self._has_rows = False
        self._has_indices = False  # whether the index of any row is known so far

    def begin(
        self,
        model: nn.Module,
        per_sample_loss: PerSampleLoss,
        calls: list[nn.Module],
        context: Callable[[], AbstractContextManager[Any]],
        optimizers: Sequence[Any],
        hooks: bool,
    ) -> None:
        """Training begins. See `BatchLosses` and `OptimizerSteps.begin`."""
        self._rows = BatchLosses(model, per_sample_loss, calls, self._take, context, self._safely)
        self.optimizers.begin(optimizers, hooks)
        self._has_indices = False

    @property
    def is_complete(self) -> bool:
        """Whether an optimizer has stepped in the current step."""
        return self.step is not None and self.optimizers.has_stepped

    @property
    def missing(self) -> str:
        """What is unknown about the batches' rows, and why; empty if nothing is."""
        if self._rows is not None and self._rows.failure:
            return f"not recorded: {self._rows.failure}"
        if self._has_indices or not self._has_rows:
            return ""
        return (
            "recorded without indices, because no sampler tells them: give batch_indices=, or ids= as a function that "
            "takes a batch, too"
        )

    def open(self, number: int, batch: Any, batch_indices: Any) -> None:
        """A batch begins.

        Args:
            number: Number of the step, used at its first batch.
            batch: Passed to per_sample_loss; None takes the arguments of the model's call.
            batch_indices: ``[n]``; None asks the loader, or ``ids``.

        Raises:
            InputError: No optimizer ever steps.
        """
        self.step = self.step or Step(number=number)
        if len(self.step.losses) >= _MOST_BATCHES:
            raise InputError(f"no optimizer stepped in {_MOST_BATCHES} batches: expected the one that steps")
        self.step.learning_rate = self.optimizers.learning_rate
        self._batch = batch, batch_indices
        self._is_open, self._has_rows = True, False
        if self._rows is not None:
            self._rows.open(batch)
        self.optimizers.open()

    def shut(self) -> None:
        """The batch is over."""
        if self._is_open and self._rows is not None:
            self._is_open = False
            self._rows.close()
            if not self._has_rows:
                self._indices()
            self._batch = None, None

    def take(self) -> Step:
        """Return the complete step; the next one may begin."""
        step, self.step = self.step, None
        assert step is not None
        self._has_indices = self._has_indices or any(indices is not None for indices in step.indices)
        norm = self.optimizers.take()
        step.gradient_norm = norm if step.gradient_norm is None else step.gradient_norm
        return step

    def add_loss(self, loss: Any) -> None:
        """Add a batch's part of the step's own loss; for adapters of frameworks that report it."""
        if self.step is not None and isinstance(loss, Tensor) and loss.numel() == 1:
            loss = loss.detach().reshape(())
            self.step.loss = loss if self.step.loss is None else self.step.loss + loss

    def end(self) -> None:
        """Training ends."""
        self.step, self._is_open, self._batch = None, False, (None, None)
        if self._rows is not None:
            self._rows.release()
        self.optimizers.end()
        self.drawn.forget()

    def _take(self, losses: Tensor) -> None:
        if self.step is not None and not self.step.is_given:
            self._has_rows = True
            self.step.add(losses, self._indices())

    def _indices(self) -> Indices | None:
        """The indices as given, from the loader's sampler, or from ``ids`` applied to the batch."""
        batch, given = self._batch
        if given is not None:
            return as_indices(given)
        indices: Indices | None = self.drawn.next()
        if indices is None and self._ids is not None and batch is not None:
            with suppress(Exception):  # ``ids`` may accept single examples only
                indices = as_indices(self._ids(batch))
        return indices
