"""Where the sharpness comes from."""

from __future__ import annotations

from opposing_signals.curvature import curvature_split
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.instruments.sharpness import Sharpness, top_eigenvector
from opposing_signals.record.quantities import SHARPNESS_FUNCTIONAL, SHARPNESS_GAUSS_NEWTON
from opposing_signals.training.module import TrainingModule


class GaussNewton(Instrument):
    """Writes the two parts of vᵀ∇²L(θ_t)v for the top eigenvector v.

    ``sharpness_gauss_newton`` comes from the loss's curvature in the outputs, ``sharpness_functional`` from the
    network's own curvature in the weights (see `opposing_signals.curvature.CurvatureSplit`). They sum to the Rayleigh
    quotient, ``sharpness_quotient``.

    It takes v from `Sharpness`, which must measure in the same steps.
    """

    takes_from = (Sharpness,)

    def at_gradient(self, module: TrainingModule, step: int) -> None:
        """Measured here because v may come from the step's own pass."""
        top = top_eigenvector(module)
        split = curvature_split(self.risk, top.vector, top.batch)
        self.write(module, step, SHARPNESS_GAUSS_NEWTON, split.gauss_newton)
        self.write(module, step, SHARPNESS_FUNCTIONAL, split.functional)
