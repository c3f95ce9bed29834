"""What the adapters for frameworks have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opposing_signals.follow.budget import Budget
from opposing_signals.follow.follower import Follower
from opposing_signals.follow.per_sample import PerSampleLoss
from opposing_signals.record import Record


class Adapter:
    """A `Follower` in the form of a framework's callback.

    Args:
        train_dataset: That the framework trains on, without random transforms.
        per_sample_loss: (model, batch) ↦ ``[n]``, one loss an example. The batch is what the training step gets.
        folder: Where the record is written; the run that is resumed has left it.
        settings: Further fields of `Follower`.

    Raises:
        InputError: A setting that cannot work (when it is made); data or a loss function that cannot (when training
            begins).
    """

    def __init__(
        self,
        train_dataset: Any,
        per_sample_loss: PerSampleLoss,
        *,
        folder: str | Path = "outputs/own_model",
        **settings: Any,
    ) -> None:
        super().__init__()
        self.follower = Follower(train_dataset, per_sample_loss, folder=folder, **settings)
        self.wanted_folder = str(folder)

    @property
    def folder(self) -> Path:
        """Of the record."""
        return self.follower.folder

    @property
    def budget(self) -> Budget:
        """What measuring has taken."""
        return self.follower.budget

    @property
    def record(self) -> Record:
        """What is written."""
        return self.follower.record
