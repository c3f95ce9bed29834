"""The class that the network predicts for each training point."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from opposing_signals.data import Dataset
from opposing_signals.errors import InputError
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.record.quantities import PREDICTION
from opposing_signals.training.module import TrainingModule


class Predictions(Instrument):
    """Writes ``prediction`` ``[N]`` uint8: the class of the largest output f(x_i; θ_t), for every training point.

    Full-batch training has it in the step's own forward pass. Under minibatch training a pass over the training set is
    made at the steps that ``every`` and ``consecutive`` name.
    """

    def prepare(self, dataset: Dataset) -> None:
        """Refuse data without one class per point.

        Raises:
            InputError: The targets are not classes, or there are more than 256; or the run does not keep outputs.
        """
        if not dataset.is_classification or dataset.targets.ndim != 1 or dataset.output_width > 256:
            raise InputError(
                f"Predictions: {dataset.name} has targets {list(dataset.targets.shape)} and {dataset.output_width} "
                "outputs: expected one of at most 256 classes for each example; leave predictions out of instruments"
            )
        self.check_outputs("predictions")

    def before_step(self, module: TrainingModule, step: int) -> None:
        if not module.batches.is_full:
            self.write(module, step, PREDICTION, _classes(self.risk.sample_losses().outputs))

    def after_step(self, module: TrainingModule, step: int) -> None:
        if module.batches.is_full:
            self.write(module, step, PREDICTION, _classes(module.forward_pass.outputs))


def _classes(outputs: Tensor) -> np.ndarray:
    return outputs.argmax(1).cpu().numpy().astype(np.uint8)
