"""What the integrator of gradient flow spends, and what it believes its error to be."""

from __future__ import annotations

from typing import Any

from opposing_signals.errors import InputError
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.optim import GradientFlow
from opposing_signals.training.module import TrainingModule


class Integration(Instrument):
    """Writes ``flow_gradients`` and ``flow_error`` of the interval that begins at θ_t (see `GradientFlow`).

    Raises:
        InputError: The optimizer is not `GradientFlow`.
    """

    def from_step(self, module: TrainingModule, step: int) -> None:
        """Both are left by the step just taken."""
        lightning_optimizer: Any = module.optimizers()
        optimizer = lightning_optimizer.optimizer
        if not isinstance(optimizer, GradientFlow):
            raise InputError(
                f"Integration: the optimizer is {type(optimizer).__name__}: expected GradientFlow; leave integration "
                "out of instruments"
            )
        self.write(module, step, "flow_gradients", optimizer.evaluations)
        self.write(module, step, "flow_error", optimizer.error)
