"""The top eigenvector at break-even, along which other runs are measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from opposing_signals.errors import InputError
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.instruments.sharpness import Sharpness, top_eigenvector
from opposing_signals.record import Record
from opposing_signals.record.quantities import BREAK_EVEN_EIGENVECTOR, SHARPNESS
from opposing_signals.signals.edge import reaches
from opposing_signals.training.module import TrainingModule


class BreakEven(Instrument):
    """Writes ``break_even_eigenvector`` ``[P]`` once, at the first measured step with λ >= 2/η, and ends the run there.

    It reads every λ that `Sharpness` measures.

    Raises:
        InputError: The optimizer is not plain gradient descent, which alone has the edge 2/η.
    """

    takes_from = (Sharpness,)
    ends_run = True
    _found = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that was killed after break-even ends at once when resumed, without another step."""
        assert isinstance(pl_module, TrainingModule)
        if self._found:
            pl_module.finish()

    def misses(self, step: int, is_measured: bool) -> bool:
        """It needs every λ, to find the first at the edge."""
        return is_measured and not self.is_due(step)

    def after_step(self, module: TrainingModule, step: int) -> None:
        """Compare λ(θ_t) with the optimizer's step size."""
        edge = 2 / self.plain_step_size(module, "leave break_even out of instruments")
        if reaches(module.scalars.get(SHARPNESS, 0.0), edge):
            self.write(module, step, BREAK_EVEN_EIGENVECTOR, top_eigenvector(module).vector.float().cpu().numpy())
            self._found = True
            module.finish()

    def state_dict(self) -> dict[str, Any]:
        """Whether the eigenvector has been found."""
        return {"found": self._found}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._found = state_dict["found"]


def break_even_direction(reference: Record, parameters: int) -> Tensor:
    """``[P]`` float32: the unit eigenvector v that ``reference`` wrote at the first step with λ >= 2/η.

    Args:
        reference: The record of a run with the instrument `BreakEven`.
        parameters: P of the model that is measured along v.

    Raises:
        InputError: The reference never reached the edge, or its model has another number of parameters.
    """
    if BREAK_EVEN_EIGENVECTOR not in reference or not len(reference[BREAK_EVEN_EIGENVECTOR]):
        raise InputError(
            f"{reference.folder.name}, the reference, ended before λ reached 2/η: expected a run that reaches the "
            "edge of stability; set more steps or a larger optimizer.lr"
        )
    vector = reference[BREAK_EVEN_EIGENVECTOR].values[0]
    if len(vector) != parameters:
        raise InputError(
            f"{reference.folder.name}, the reference, holds an eigenvector of {len(vector)} entries, and this run's "
            f"model has {parameters} parameters: expected one model; do not set reference.model"
        )
    return torch.from_numpy(np.array(vector))
