"""The weights along a run, from which other runs can branch off."""

from __future__ import annotations

from opposing_signals.curvature.risk import flatten
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.record.quantities import PARAMETERS
from opposing_signals.training.module import TrainingModule


class Snapshots(Instrument):
    """Writes ``parameters`` ``[P]``: θ_t, in the weights' precision."""

    def before_step(self, module: TrainingModule, step: int) -> None:
        """Copy the weights."""
        theta = flatten([parameter.detach() for parameter in self.risk.parameters])
        self.write(module, step, PARAMETERS, theta.cpu().numpy())
