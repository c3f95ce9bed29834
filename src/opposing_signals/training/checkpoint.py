"""Checkpoints by time, written so that a run killed at any moment can go on."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from opposing_signals._lightning import Checkpoint, LightningModule, Trainer
from opposing_signals.record import Record


class TimedCheckpoint(Checkpoint):
    """Saves the training state every ``seconds`` and at the end, beside the record.

    The record is brought to the disk first, so a checkpoint never claims a step that the record lacks; the file is
    replaced as a whole, so a kill leaves the old one or the new one.

    Args:
        record: Beside which the checkpoint lies.
        seconds: Between checkpoints.
        saved: Called behind each.
    """

    def __init__(self, record: Record, seconds: float, saved: Callable[[], None]) -> None:
        self.record = record
        self.seconds = seconds
        self.saved = saved
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Every step is a checkpoint boundary."""
        if time.monotonic() - self._last >= self.seconds:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the final weights."""
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint of the step just taken."""
        self.record.sync()
        temporary = self.record.checkpoint.with_name(self.record.checkpoint.name + ".part")
        trainer.save_checkpoint(temporary)
        temporary.replace(self.record.checkpoint)
        self.saved()
        self._last = time.monotonic()
