"""Accuracy on the test set."""

from __future__ import annotations

import torch

from opposing_signals.data import Dataset
from opposing_signals.errors import InputError
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.record.quantities import TEST_ACCURACY
from opposing_signals.training.module import TrainingModule


class TestAccuracy(Instrument):
    """Writes ``test_accuracy``: fraction of the test examples that the network classifies correctly at θ_t.

    The network is in evaluation mode: batch norm uses its running statistics.

    Raises:
        InputError: In `prepare`, the data set has no test set or is not a classification task.
    """

    __test__ = False  # not a pytest test
    needs_training = True

    _inputs: torch.Tensor
    _targets: torch.Tensor

    def prepare(self, dataset: Dataset) -> None:
        """Take the test set."""
        if dataset.test_inputs is None or dataset.test_targets is None or not dataset.is_classification:
            raise InputError(
                f"TestAccuracy: {dataset.name}: expected a classification with a test set; leave test_accuracy out of "
                "instruments"
            )
        self._inputs, self._targets = dataset.test_inputs, dataset.test_targets

    def before_step(self, module: TrainingModule, step: int) -> None:
        """Classify in chunks of training's size."""
        self._inputs = self._inputs.to(self.risk.inputs)
        self._targets = self._targets.to(self.risk.inputs.device)
        correct = 0
        with self.risk.probe():
            self.risk.model.eval()
            for inputs, targets in zip(
                self._inputs.split(self.risk.chunk), self._targets.split(self.risk.chunk), strict=True
            ):
                correct += int((self.risk.outputs(inputs).argmax(-1) == targets).sum())
        self.write(module, step, TEST_ACCURACY, correct / len(self._targets))
