"""The gate through which this package imports Lightning: torchvision must have been imported safely before it."""

from opposing_signals._torchvision import torchvision  # noqa: F401, I001  (first, see there)

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.seed import isolate_rng

__all__ = ["Callback", "Checkpoint", "LightningModule", "Logger", "Trainer", "WandbLogger", "isolate_rng"]
