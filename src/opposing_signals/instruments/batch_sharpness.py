"""The curvature that minibatch SGD sees."""

from __future__ import annotations

import numpy as np
import torch

from opposing_signals.curvature import batch_sharpness
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.record import Record
from opposing_signals.record.quantities import BATCH_SHARPNESS, BATCH_SHARPNESS_ERROR
from opposing_signals.training.module import TrainingModule
from opposing_signals.values import Count, Seed


class BatchSharpness(Instrument):
    """Writes ``batch_sharpness``: the mean of gᵀHg/‖g‖² over random batches of the run's batch size, at θ_t.

    g and H are gradient and Hessian of one batch's loss (see `opposing_signals.curvature.batch_sharpness`). The batches
    are not those of training but drawn from the seed and the step. ``batch_sharpness_error`` is the standard error of
    the mean.

    Args:
        batches: Number of batches, at least 2.
        seed: Of the batches.

    Raises:
        InputError: Fewer than 2 batches.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        record: Record,
        every: Count = 10,
        consecutive: Count = 1,
        batches: Count = 16,
        seed: Seed = 0,
    ) -> None:
        super().__init__(risk, record, every, consecutive)
        if batches < 2:
            raise InputError(f"BatchSharpness: batches={batches}: expected at least 2")
        self.batches = batches
        self.seed = seed

    def before_step(self, module: TrainingModule, step: int) -> None:
        """Two passes over each batch."""
        if module.batches.size is None:
            raise InputError(
                "BatchSharpness: batch=null: expected minibatch training; with full batches it is the curvature along "
                "the gradient; leave batch_sharpness out of instruments"
            )
        random = np.random.default_rng((self.seed, step))  # not the seed of an epoch's order, which training uses
        orders = (torch.from_numpy(random.permutation(len(self.risk))) for _ in range(self.batches))
        values = [batch_sharpness(self.risk, order[: module.batches.size]) for order in orders]
        self.write(module, step, BATCH_SHARPNESS, float(np.mean(values)))
        self.write(module, step, BATCH_SHARPNESS_ERROR, float(np.std(values, ddof=1) / np.sqrt(self.batches)))
