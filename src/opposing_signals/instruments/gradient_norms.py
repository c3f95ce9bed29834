"""Norms of the per-example gradients."""

from __future__ import annotations

from opposing_signals.curvature import gradient_norms
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.record.quantities import GRADIENT_NORM
from opposing_signals.training.module import TrainingModule


class GradientNorms(Instrument):
    """Writes ``gradient_norm`` ``[N]``: ‖∇ℓ_i(θ_t)‖ of every training point (figure 2)."""

    def before_step(self, module: TrainingModule, step: int) -> None:
        """One forward and one backward pass over the training set."""
        self.write(module, step, GRADIENT_NORM, gradient_norms(self.risk).float().cpu().numpy())
