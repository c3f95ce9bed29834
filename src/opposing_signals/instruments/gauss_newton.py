"""Where the sharpness comes from."""

from __future__ import annotations

from opposing_signals.curvature import curvature_split
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.training.module import TrainingModule


class GaussNewton(Instrument):
    """Writes the two parts of vᵀ∇²L(θ_t)v for the top eigenvector v.

    ``sharpness_gauss_newton`` is the part of the loss's curvature in the outputs, ``sharpness_functional`` that of the
    network's own in the weights (see `opposing_signals.curvature.CurvatureSplit`). They sum to the Rayleigh
    quotient, ``sharpness_quotient``.

    It takes v from `Sharpness`, and stands behind it in the configuration.
    """

    def before_step(self, module: TrainingModule, step: int) -> None:
        """Wait until the step's own pass has shown v."""
        nothing = self.risk.parameters[0].new_empty(0, sum(p.numel() for p in self.risk.parameters))
        module.request_products(nothing, lambda _: self._measure(module, step))

    def _measure(self, module: TrainingModule, step: int) -> None:
        split = curvature_split(self.risk, module.eigenvector, module.eigenvector_batch)
        self.write(module, step, "sharpness_gauss_newton", split.gauss_newton)
        self.write(module, step, "sharpness_functional", split.functional)
