"""The top eigenvector at break-even, for other runs to be measured along."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from opposing_signals.instruments.instrument import Instrument
from opposing_signals.signals.edge import edge_of_rule, reaches
from opposing_signals.training.module import TrainingModule
from opposing_signals.training.reference import BREAK_EVEN_EIGENVECTOR


class BreakEven(Instrument):
    """Writes ``break_even_eigenvector`` ``[P]`` once, at the first measured step with λ >= 2/η, and ends the run there.

    It reads what `Sharpness` measured in the same step, and stands behind it in the configuration.
    """

    _found = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run killed behind break-even only ends when it is resumed: without a step more."""
        assert isinstance(pl_module, TrainingModule)
        if self._found:
            pl_module.finish()

    def from_step(self, module: TrainingModule, step: int) -> None:
        """Compare λ(θ_t) with the optimizer's step size."""
        optimizer: Any = module.optimizers()
        rule = type(getattr(optimizer, "optimizer", optimizer)).__name__  # Lightning wraps it in a class of its own
        edge = edge_of_rule(rule, optimizer.param_groups[0])
        if edge is not None and reaches(module.scalars.get("sharpness", 0.0), edge):
            self.write(module, step, BREAK_EVEN_EIGENVECTOR, module.eigenvector.float().cpu().numpy())
            self._found = True
            module.finish()

    def state_dict(self) -> dict[str, Any]:
        """Whether it has been found."""
        return {"found": self._found}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._found = state_dict["found"]
