"""Measurements at θ_t on the tracking set: its losses, and λ of their mean."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from logging import getLogger
from typing import Any

import numpy as np
import torch
from torch import nn

from opposing_signals.curvature import Eigenpairs, EigenTracker
from opposing_signals.curvature.refusals import check_trained
from opposing_signals.curvature.risk import EmpiricalRisk, flatten
from opposing_signals.curvature.tracking import COLD_PRODUCTS
from opposing_signals.errors import first_line
from opposing_signals.follow.isolation import isolated
from opposing_signals.follow.tracking_set import TrackingSet
from opposing_signals.processes import count, gathered
from opposing_signals.record import Record, quantities

log = getLogger(__name__)


class Measurement:
    """Measures in evaluation mode, without side effects, and writes the results into the record."""

    def __init__(self) -> None:
        self._tracker = EigenTracker(tolerance=0.05, cold_products=COLD_PRODUCTS)
        self._examples: TrackingSet
        self._risk: EmpiricalRisk
        self._mean: EmpiricalRisk | None = None  # the mean loss whose curvature is measured
        self._parameters = 0

    def begin(
        self,
        model: nn.Module,
        examples: TrackingSet,
        device: torch.device,
        context: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """Set the model and the examples.

        Args:
            model: The model in training.
            examples: The examples whose losses are measured.
            device: The model's device.
            context: Context in which a training step computes, such as the autocast of mixed precision.
        """
        self._model, self._examples, self._device, self._mean = model, examples, device, None
        self._failures: list[str] = []  # failures of this process; the others still wait for its losses
        failed = (lambda error: self._failures.append(first_line(error))) if count() > 1 else None
        self._risk = examples.risk(model, device, context, failed)

    def losses(self, record: Record, step: int) -> str:
        """Write the losses; returns a message if they are not finite, and so the last."""
        with isolated(), self._risk.probe():
            self._model.eval()
            losses = self._risk.sample_losses().losses.float().cpu().numpy()
        if not np.isfinite(losses).all():
            failures = gathered(self._failures[:1])
            if failures:
                return f"stopped: measuring failed at step {step}: {failures[0]}"
            example = int(self._examples.indices[np.flatnonzero(~np.isfinite(losses))[0]])
            return f"stopped: the loss of train_dataset[{example}] is not finite at step {step}"
        record.append(quantities.SAMPLE_LOSS, step, losses)
        return ""

    def sharpness(self, record: Record, step: int) -> str:
        """Write λ; returns a message if it cannot be measured."""
        try:
            pairs = self._eigenpairs()
        except Exception as error:
            log.warning("the sharpness is not measured any more: %s", first_line(error))
            return f"ended at step {step}: {first_line(error)}"
        if math.isfinite(pairs.value):
            for quantity, value in (
                (quantities.SHARPNESS, pairs.value),
                (quantities.SHARPNESS_QUOTIENT, pairs.quotient),
                (quantities.SHARPNESS_RESIDUAL, pairs.residual),
                (quantities.SHARPNESS_BOUND, pairs.bound),
                (quantities.SHARPNESS_PRODUCTS, pairs.products),
            ):
                record.append(quantity, step, value)
        return ""

    def _eigenpairs(self) -> Eigenpairs:
        """With several processes, each measures a copy of the model: DistributedDataParallel's hooks on the parameters
        do not survive the change of precision in which the products are checked."""
        if self._mean is None:
            self._parameters = 0
            self._measured = copy.deepcopy(self._model) if count() > 1 else self._model
            self._mean = self._examples.risk(
                self._measured, self._device, lambda: torch.autocast(self._device.type, enabled=False)
            )
        if self._measured is not self._model:
            self._measured.load_state_dict(self._model.state_dict())
        check_trained(self._mean.parameters)
        parameters = flatten([parameter.detach() for parameter in self._mean.parameters])
        if len(parameters) != self._parameters > 0:  # layers were frozen or unfrozen: the parameter space has changed
            self._tracker = EigenTracker(tolerance=self._tracker.tolerance, cold_products=COLD_PRODUCTS)
        self._parameters = len(parameters)
        mean = self._mean
        with isolated(), mean.probe():
            self._measured.eval()
            return self._tracker(lambda vectors: mean.hessian_products(vectors).products, parameters)

    def state_dict(self) -> dict[str, Any]:
        """State for a resumed run."""
        return self._tracker.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._tracker.load_state_dict(state)
