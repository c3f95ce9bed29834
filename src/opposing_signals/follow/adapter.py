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
        train_dataset: The framework's training data set, without random transforms.
        per_sample_loss: (model, batch) ↦ ``[n]``, one loss per example. The batch is what the training step gets.
        folder: Where the record is written; a resumed run gets the folder of the interrupted one.
        settings: Further arguments of `Follower`.

    Raises:
        InputError: On construction: a setting that cannot work. When training begins: data or a loss function that
            cannot.
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
        """The record's folder."""
        return self.follower.folder

    @property
    def budget(self) -> Budget:
        """The time spent on measuring."""
        return self.follower.budget

    @property
    def record(self) -> Record:
        """The record that is written."""
        return self.follower.record
