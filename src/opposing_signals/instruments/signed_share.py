"""Fraction of the parameters that SplitSGD moves by a signed step."""

from __future__ import annotations

from opposing_signals.instruments.instrument import Instrument
from opposing_signals.optim import SplitSGD
from opposing_signals.record.quantities import SIGNED_SHARE
from opposing_signals.training.module import TrainingModule


class SignedShare(Instrument):
    """Writes ``signed_share`` of the step from θ_t to θ_{t+1} (figures 39, 40 and 44b; see `SplitSGD.signed_share`).

    Raises:
        InputError: The optimizer is not `SplitSGD`.
    """

    needs_training = True

    def after_step(self, module: TrainingModule, step: int) -> None:
        """Measured here because it follows from the momenta after the step."""
        optimizer = self.required_optimizer(module, SplitSGD, "signed_share")
        self.write(module, step, SIGNED_SHARE, float(optimizer.signed_share))
