"""Checkpoints at time intervals, written so that a run killed at any moment can resume."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from opposing_signals import interruption
from opposing_signals.errors import DamagedError, first_line
from opposing_signals.files import replacing
from opposing_signals.record import Record


class TimedCheckpoint(Checkpoint):
    """Saves the training state every ``seconds``, when a signal tells the process to end, and at the end.

    The record is synced to disk first, so a checkpoint never claims a step that the record lacks. The file is replaced
    atomically, so a kill leaves the old one or the new one.

    Args:
        record: Its folder holds the checkpoint.
        seconds: Interval between checkpoints.
        saved: Called after each.
        extends: What the run takes over from another one (`training.extension`); None: nothing.
    """

    def __init__(
        self, record: Record, seconds: float, saved: Callable[[], None], extends: dict[str, Any] | None = None
    ) -> None:
        self.record = record
        self.seconds = seconds
        self.saved = saved
        self.extends = extends
        self._last = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits for the end of the step."""
        interruption.begin_steps()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Every step is a checkpoint boundary."""
        if time.monotonic() - self._last >= self.seconds or interruption.is_told_to_end():
            self.save(trainer)
        if interruption.is_told_to_end():
            interruption.end()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the final weights."""
        interruption.end_steps()
        self.save(trainer)
        if interruption.is_told_to_end():
            interruption.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """No step is left to wait for."""
        interruption.end_steps()

    def state_dict(self) -> dict[str, Any]:
        """The record's number of rows, which a resumed run must find, and what the run takes over."""
        return {"rows": self.record.rows, **({"extends": self.extends} if self.extends else {})}

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint of the step just taken."""
        self.record.sync()
        with replacing(self.record.checkpoint) as unfinished:
            trainer.save_checkpoint(unfinished)
        self.saved()
        self._last = time.monotonic()


@dataclass(frozen=True)
class Begun:
    """The state of a run: its checkpoint's, or nothing.

    Attributes:
        steps: Steps taken.
        rows: Rows of each quantity in its record; None: there is no checkpoint.
        extends: What it takes over from another run; empty: nothing.
    """

    steps: int = 0
    rows: dict[str, int] | None = None
    extends: dict[str, Any] = field(default_factory=dict)


def begun(path: Path) -> Begun:
    """The state of a run with the checkpoint ``path``.

    Raises:
        DamagedError: It is not a whole checkpoint, or holds anything but tensors and plain values.
    """
    if not path.is_file():
        raise DamagedError(f"{path} is damaged: it is no file")
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():  # PyTorch itself does not check the checksums that it writes
                raise DamagedError(f"{path} is damaged: the checksum of its part {damaged} is wrong")
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        noted = checkpoint["callbacks"][TimedCheckpoint.__qualname__]
        rows = {str(name): int(rows) for name, rows in noted["rows"].items()}
        return Begun(int(checkpoint["global_step"]), rows, dict(noted.get("extends") or {}))
    except (OSError, DamagedError):
        raise
    except Exception as error:  # of many kinds: a foreign file may hold anything
        raise DamagedError(f"{path} is damaged or no checkpoint: {first_line(error)}") from None
