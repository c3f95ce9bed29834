"""The network's output for each training point."""

from __future__ import annotations

from opposing_signals.data import Dataset
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.record.quantities import OUTPUTS
from opposing_signals.training.module import TrainingModule


class Outputs(Instrument):
    """Writes ``outputs`` ``[n, C]``: f(x_i; θ_t) for the points of the step's batch, in the batch's order.

    Meant for full-batch training of small networks, where it shows the fit.

    Raises:
        InputError: The run does not keep outputs.
    """

    def prepare(self, dataset: Dataset) -> None:
        """Refuse a run without outputs before it begins."""
        self.check_outputs("outputs")

    def after_step(self, module: TrainingModule, step: int) -> None:
        """The step's own forward pass has the outputs."""
        self.write(module, step, OUTPUTS, module.forward_pass.outputs.float().cpu().numpy())
