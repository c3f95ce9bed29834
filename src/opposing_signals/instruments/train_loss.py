"""Loss and accuracy of the batch that a step uses."""

from __future__ import annotations

from opposing_signals.instruments.instrument import Instrument
from opposing_signals.record.quantities import TRAIN_ACCURACY, TRAIN_LOSS
from opposing_signals.training.module import TrainingModule


class TrainLoss(Instrument):
    """Writes ``train_loss`` and, for classification, ``train_accuracy`` of the step's batch at θ_t.

    The accuracy needs the batch's outputs: with ``risk.keep_outputs=false`` there is none.
    """

    def after_step(self, module: TrainingModule, step: int) -> None:
        """Both are in the step's own forward pass."""
        self.write(module, step, TRAIN_LOSS, module.loss)
        targets = self.risk.targets[module.batch]
        if self.risk.keep_outputs and not targets.is_floating_point():
            accuracy = (module.forward_pass.outputs.argmax(-1) == targets).double().mean().item()
            self.write(module, step, TRAIN_ACCURACY, accuracy)
