"""The followed examples: how many, and when their losses are measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from opposing_signals.curvature.refusals import check_shapes
from opposing_signals.errors import InputError
from opposing_signals.follow.batch_losses import outermost_calls
from opposing_signals.follow.isolation import isolated, uncached_casts
from opposing_signals.follow.measurement import Measurement
from opposing_signals.follow.per_sample import sharded_parts
from opposing_signals.follow.schedule import CURVATURE, LOSSES, Schedule
from opposing_signals.follow.shown import Shown
from opposing_signals.follow.step import Step
from opposing_signals.follow.tracking_set import Collate, TrackingSet, evaluation
from opposing_signals.processes import agreed, count, is_first
from opposing_signals.record import Record, quantities

log = getLogger(__name__)

_TIMED = 6  # steps that are timed before the number of followed examples is set


class Tracking:
    """Chooses the followed examples once the time of a step is known, and measures them when a measurement is due.

    Args:
        examples: Makes a new tracking set for each training.
        schedule: The steps at which it is measured.
        shown: How figures show an example.
        meet: See `Meeting.wait`.
    """

    def __init__(
        self, examples: Callable[[], TrackingSet], schedule: Schedule, shown: Shown, meet: Callable[[str], None]
    ) -> None:
        self.examples = examples()
        self.schedule = schedule
        self.stopped = ""  # why measuring has stopped
        self.has_settled = False
        self.described: dict[str, Any] = {}  # for the record's provenance
        self._anew = examples
        self._budget = schedule.budget
        self._shown = shown
        self._meet = meet
        self._measurement = Measurement()
        self._first = 0
        self._due = False, False  # whether losses and λ are measured at the present step

    def forget(self, is_read: bool) -> None:
        """Another training begins.

        Args:
            is_read: Whether examples have been read for the one before.
        """
        self.schedule.forget()
        self.has_settled = False
        if is_read:
            self.examples = self._anew()
            self._budget.forget()

    def read(
        self,
        model: nn.Module,
        device: torch.device,
        collate: Collate | None,
        to_device: Callable[[Any], Any],
        context: Callable[[], AbstractContextManager[Any]],
    ) -> list[nn.Module]:
        """Read the first examples, and check that their losses can be followed. See `TrackingSet.begin`.

        Returns:
            The modules whose outputs per_sample_loss needs; see `outermost_calls`.

        Raises:
            InputError: They cannot.
        """
        check_shapes(model)  # the first measurement would initialize lazy layers
        if self.schedule.sharpness_every is not None and sharded_parts(model):
            raise InputError(
                f"sharpness_every={self.schedule.sharpness_every}: the model's parameters are sharded over processes "
                "(fully_shard): expected None, because torch has no second derivative through their gathering"
            )
        self._model, self._device, self._context = model, device, context
        self.schedule.begin()
        self._seconds = self.examples.begin(model, collate, to_device, context)
        batch = self.examples.first_batch()

        def evaluate() -> None:
            with evaluation(model), context(), uncached_casts():
                self.examples.per_sample_loss(model, batch)

        with isolated():
            return outermost_calls(model, evaluate)

    def begin(self, record: Record, folder: Path, first: int, indices: Any) -> None:
        """The record is open.

        Args:
            record: The record that is written.
            folder: The record's folder.
            first: Step at which training begins.
            indices: Indices of the examples that a resumed run keeps following; None for a new run.

        Raises:
            InputError: The resumed run was begun with other examples.
        """
        self._record, self._folder, self._first = record, folder, first
        self.described = {"data": self._data("none tracked: too short a training")}
        if indices is not None:
            self._settle(np.asarray(indices, np.int64))
        elif not self.examples.is_sized_by_cost or self._budget.share is None:
            self._settle(self.examples.indices)

    def is_turn(self, step: int) -> bool:
        """Whether θ_t is measured, or the examples are chosen, at this step."""
        if not self.has_settled:
            return step - self._first >= _TIMED
        self._due = (False, False) if self.stopped else self.schedule.due(step)
        return self._due[0]

    def measure(self, step: int) -> bool:
        """Measure θ_t, which is due; whether `described` has changed."""
        has_settled = self.has_settled
        if not has_settled:
            self._plan(step)
            self._due = self.schedule.due(step)
        wants_losses, wants_sharpness = self._due
        if wants_losses:
            with self._budget.measuring(LOSSES, self._device):
                self.stopped = self._measurement.losses(self._record, step)
            if self.stopped:
                log.warning("opposing signals %s; training goes on, the record of losses ends here", self.stopped)
        if wants_sharpness and not self.stopped:
            with self._budget.measuring(CURVATURE, self._device):
                failure = self._measurement.sharpness(self._record, step)
            if failure:
                self.schedule.sharpness_every = None
                self.described[quantities.SHARPNESS] = failure
        return not has_settled

    def look(self, step: Step) -> None:
        """Note whether a step has jumped; if so, the next ones are measured."""
        if self.has_settled:
            self.schedule.look(step)

    def check_order(self) -> None:
        """Check that an index still refers to the same example.

        Raises:
            InputError: It does not.
        """
        if self.has_settled:
            with self._budget.measuring("order"):
                self.examples.check_order()

    def _plan(self, step: int) -> None:
        """Follow as many examples as the budget allows, now that a step's time is known."""
        with self._budget.measuring("reading"):
            fixed, each = self.examples.cost(self._model, self._device)
            self._meet(f"planning, step {step}")
            wanted = partial(self._budget.examples, self._seconds, fixed, each)
            size = agreed(lambda: wanted(len(self.examples), self.schedule.consecutive, step))
            self._settle(self.examples.indices[:size])

    def _settle(self, indices: np.ndarray) -> None:
        """Read the followed examples, and record which they are."""
        checksum = self.examples.settle(indices, count())
        theirs = self._record.provenance.get("data", {}).get("sha256") or checksum
        if theirs != checksum:
            raise InputError(
                f"{self._folder} was written with other examples than train_dataset and track give now: resume with "
                "the same, or choose another folder for a new run"
            )
        self.has_settled = True
        examples, self.examples.examples = self.examples.examples, []  # their batches are on the device
        if is_first():
            self._shown.write(self._folder, self.examples.indices, examples)
        self._measurement.begin(self._model, self.examples, self._device, self._context)
        self.described["data"] = self._data(
            f"{len(self.examples)} of {self.examples.available} examples tracked", checksum, len(self.examples)
        )

    def _data(self, said: str, checksum: str = "", examples: int = 0) -> dict[str, Any]:
        name = f"{type(self.examples.dataset).__name__} ({said})"
        return {"name": name, "sha256": checksum, "examples": examples}

    def state_dict(self) -> dict[str, Any]:
        """The state that lets a resumed run measure at the same steps as an uninterrupted one."""
        return {
            "schedule": self.schedule.state_dict(),
            "tracker": self._measurement.state_dict(),
            "stopped": self.stopped,
            "indices": self.examples.indices.tolist() if self.has_settled else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`; the indices are passed to `begin`."""
        self.schedule.load_state_dict(state["schedule"])
        self._measurement.load_state_dict(state["tracker"])
        self.stopped = state["stopped"]
