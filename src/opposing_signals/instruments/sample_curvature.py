"""Slope and curvature of each example's loss along the top eigenvector of the full loss."""

from __future__ import annotations

import numpy as np

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
        InputError: An expansion is asked for under another rule.
    """

    takes_from = (Sharpness,)

    def __init__(
        self, risk: EmpiricalRisk, record: Record, every: Count = 1, consecutive: Count = 1, expansion: bool = False
    ) -> None:
        super().__init__(risk, record, every, consecutive)
        self.expansion = expansion
        self.needs_training = expansion  # it takes the optimizer's step size

    def at_gradient(self, module: TrainingModule, step: int) -> None:
        """Measured here because v may come from the step's own pass."""
        v = top_eigenvector(module).vector
        along = sample_curvature(self.risk, v)
        self.write(module, step, SAMPLE_SLOPE, along.slopes.float().cpu().numpy())
        self.write(module, step, SAMPLE_CURVATURE, along.curvatures.float().cpu().numpy())
        if self.expansion:
            gradient = flatten([p.grad for p in self.risk.parameters if p.grad is not None])
            terms = step_expansion(self.risk, gradient, self._step_size(module), along, v)
            self.write(module, step, EXPANSION_FIRST, terms.first.float().cpu().numpy())
            self.write(module, step, EXPANSION_SECOND, terms.second.float().cpu().numpy())
            both = terms.along_first, terms.along_second
            self.write(module, step, EXPANSION_ALONG_V, np.stack([part.float().cpu().numpy() for part in both], 1))

    def _step_size(self, module: TrainingModule) -> float:
        if not module.batches.is_full:
            raise InputError("SampleCurvature: expansion=true: expected full-batch training (batch=null), or false")
        return self.plain_step_size(module, "set expansion to false")
