"""Per-sample losses of all training points."""

from __future__ import annotations

from opposing_signals.instruments.instrument import Instrument
from opposing_signals.record.quantities import SAMPLE_LOSS
from opposing_signals.training.module import TrainingModule


class SampleLosses(Instrument):
    """Writes ``sample_loss`` ``[N]``: ℓ_i(θ_t) of every training point (§2).

    When the step uses the whole training set, its own forward pass has every ℓ_i(θ_t): no extra pass is needed. Under
    minibatch training a pass over the training set is made at the steps that ``every`` and ``consecutive`` name.
    """

    def before_step(self, module: TrainingModule, step: int) -> None:
        if not module.batches.is_full:
            self.write(module, step, SAMPLE_LOSS, self.risk.sample_losses().losses.float().cpu().numpy())

    def after_step(self, module: TrainingModule, step: int) -> None:
        if module.batches.is_full:
            self.write(module, step, SAMPLE_LOSS, module.forward_pass.losses.float().cpu().numpy())
