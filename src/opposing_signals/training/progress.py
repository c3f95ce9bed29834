"""Progress with time left."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from opposing_signals._lightning import Callback, LightningModule, Trainer
from opposing_signals.training.module import TrainingModule


class Progress(Callback):
    """One bar over the run's steps: steps done, time left, loss, sharpness. In a log file, a line now and then."""

    def __init__(self, name: str, steps: int) -> None:
        self.name = name
        self.steps = steps
        self._shown: dict[str, str] = {}
        self._bar: tqdm | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin where the run begins, which is not at zero when it goes on from a checkpoint."""
        interactive = sys.stderr.isatty()
        self._bar = tqdm(
            total=self.steps,
            initial=trainer.global_step,
            desc=self.name,
            unit="step",
            dynamic_ncols=interactive,
            ncols=None if interactive else 110,
            mininterval=0.2 if interactive else 20,
            maxinterval=0.2 if interactive else 20,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the step."""
        assert isinstance(pl_module, TrainingModule)
        if self._bar is not None:
            for quantity in ("train_loss", "sharpness"):
                if quantity in pl_module.scalars:
                    self._shown[quantity] = f"{pl_module.scalars[quantity]:.3g}"
            self._bar.set_postfix(self._shown, refresh=False)
            self._bar.update()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar on the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the line free for the message."""
        self.on_train_end(trainer, pl_module)
