"""Share of the parameters that SplitSGD moves by a signed step."""

from __future__ import annotations

from typing import Any

from opposing_signals.errors import InputError
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.optim import SplitSGD
from opposing_signals.training.module import TrainingModule


class SignedShare(Instrument):
    """Writes ``signed_share`` of the step from θ_t to θ_{t+1} (figures 39, 40 and 44b; see `SplitSGD.signed_share`).

    Raises:
        InputError: The optimizer is not `SplitSGD`.
    """

    def from_step(self, module: TrainingModule, step: int) -> None:
        """It follows from the momenta that the step just taken has left."""
        lightning_optimizer: Any = module.optimizers()
        optimizer = lightning_optimizer.optimizer
        if not isinstance(optimizer, SplitSGD):
            raise InputError(
                f"SignedShare: the optimizer is {type(optimizer).__name__}: expected SplitSGD; leave signed_share out "
                "of instruments"
            )
        self.write(module, step, "signed_share", float(optimizer.signed_share))
