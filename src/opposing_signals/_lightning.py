"""What this package uses of Lightning."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.seed import isolate_rng

__all__ = ["Callback", "Checkpoint", "LightningModule", "Trainer", "WandbLogger", "isolate_rng"]
