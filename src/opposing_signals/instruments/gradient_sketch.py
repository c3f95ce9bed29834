"""Random projections of the per-example gradients."""

from __future__ import annotations

from opposing_signals.curvature import gradient_sketch
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.record import Record
from opposing_signals.record.quantities import GRADIENT_SKETCH
from opposing_signals.training.module import TrainingModule
from opposing_signals.values import Count


class GradientSketch(Instrument):
    """Writes ``gradient_sketch`` ``[N, d]``: a random projection of ∇ℓ_i(θ_t) for every training point.

    Their inner products approximate those of the gradients, from which `find_pairs_by_gradients` finds opposing groups.
    The projection is the same at every step.

    Args:
        dimensions: d, the length of a projection.
    """

    def __init__(
        self, risk: EmpiricalRisk, record: Record, every: Count = 10, consecutive: Count = 1, dimensions: Count = 64
    ) -> None:
        super().__init__(risk, record, every, consecutive)
        self.dimensions = dimensions

    def before_step(self, module: TrainingModule, step: int) -> None:
        """One forward and one backward pass over the training set."""
        sketch = gradient_sketch(self.risk, self.dimensions)
        self.write(module, step, GRADIENT_SKETCH, sketch.float().cpu().numpy())
