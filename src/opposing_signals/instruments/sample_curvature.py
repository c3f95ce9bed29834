"""Slope and curvature of each example's loss along the top eigenvector of the full loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from opposing_signals.curvature.risk import EmpiricalRisk, flatten
from opposing_signals.curvature.sample_curvature import sample_curvature, step_expansion
from opposing_signals.errors import InputError
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.instruments.sharpness import Sharpness, top_eigenvector
from opposing_signals.record import Record
from opposing_signals.record.quantities import (
    EXPANSION_ALONG_V,
    EXPANSION_FIRST,
    EXPANSION_SECOND,
    SAMPLE_CURVATURE,
    SAMPLE_SLOPE,
)
from opposing_signals.training.module import TrainingModule
from opposing_signals.values import Count


class SampleCurvature(Instrument):
    """Writes ``sample_slope`` ``[N]`` ∇ℓ_i·v and ``sample_curvature`` ``[N]`` vᵀ∇²ℓ_i v of every training point.

    v is the top eigenvector of ∇²L(θ_t) as `Sharpness` measured it in the same step. Each measurement is one forward
    pass of Taylor arithmetic over the training set.

    Args:
        expansion: Also expand the coming step θ − η ∇L: ``expansion_first`` −η ∇ℓ_i·∇L, ``expansion_second``
            ½ η² ∇Lᵀ∇²ℓ_i ∇L, and ``expansion_along_v`` ``[N, 2]``, the part of both along v. One more pass; for
            full-batch gradient descent without momentum, whose step this is.

    Raises:
        InputError: Sharpness was not measured in the same step; or an expansion is asked for under another rule.
    """

    takes_from = (Sharpness,)

    def __init__(
        self, risk: EmpiricalRisk, record: Record, every: Count = 1, consecutive: Count = 1, expansion: bool = False
    ) -> None:
        super().__init__(risk, record, every, consecutive)
        self.expansion = expansion
        self.needs_training = expansion  # which takes the optimizer's step size

    def at_gradient(self, module: TrainingModule, step: int) -> None:
        """The step's own pass may have to show v."""
        v = top_eigenvector(module).vector
        along = sample_curvature(self.risk, v)
        self.write(module, step, SAMPLE_SLOPE, along.slopes.float().cpu().numpy())
        self.write(module, step, SAMPLE_CURVATURE, along.curvatures.float().cpu().numpy())
        if self.expansion:
            gradient = flatten([p.grad for p in self.risk.parameters if p.grad is not None])
            terms = step_expansion(self.risk, gradient, _step_size(module), along, v)
            self.write(module, step, EXPANSION_FIRST, terms.first.float().cpu().numpy())
            self.write(module, step, EXPANSION_SECOND, terms.second.float().cpu().numpy())
            both = terms.along_first, terms.along_second
            self.write(module, step, EXPANSION_ALONG_V, np.stack([part.float().cpu().numpy() for part in both], 1))


def _step_size(module: TrainingModule) -> float:
    optimizer: Any = module.optimizers()
    group = optimizer.param_groups[0]
    plain = isinstance(optimizer.optimizer, torch.optim.SGD) and not group["momentum"] and not group["weight_decay"]
    if not plain or not module.batches.is_full:
        raise InputError(
            "SampleCurvature: expansion=true expands the step of full-batch gradient descent, and this run takes "
            f"another ({type(optimizer.optimizer).__name__}, full batch: {module.batches.is_full}): set it to false"
        )
    return group["lr"]
