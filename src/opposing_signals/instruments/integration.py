"""Cost and estimated error of the gradient-flow integrator."""

from __future__ import annotations

from opposing_signals.instruments.instrument import Instrument
from opposing_signals.optim import GradientFlow
from opposing_signals.record.quantities import FLOW_ERROR, FLOW_GRADIENTS
from opposing_signals.training.module import TrainingModule


class Integration(Instrument):
    """Writes ``flow_gradients`` and ``flow_error`` of the interval that begins at θ_t (see `GradientFlow`).

    Raises:
        InputError: The optimizer is not `GradientFlow`.
    """

    needs_training = True

    def after_step(self, module: TrainingModule, step: int) -> None:
        """The optimizer holds both from the step just taken."""
        optimizer = self.required_optimizer(module, GradientFlow, "integration")
        self.write(module, step, FLOW_GRADIENTS, optimizer.evaluations)
        self.write(module, step, FLOW_ERROR, optimizer.error)
