"""Which digits make the loss spike? A plain LightningModule, trained on minibatches of scikit-learn's digits.

python examples/digits.py
opposing-signals explain outputs/digits
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from opposing_signals import OpposingSignals

from lightning.pytorch import LightningModule, Trainer  # isort: skip  (last: see docs/own_model.md, "Imports")


class Classifier(LightningModule):
    """A small network on 8 x 8 pictures; it does not know of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(64, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The mean loss."""
        x, y = batch
        return F.cross_entropy(self.layers(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """A step size large enough that the loss spikes."""
        return torch.optim.SGD(self.parameters(), lr=0.7)


def per_sample_loss(module: Classifier, batch: list[torch.Tensor]) -> torch.Tensor:
    """``[n]``, one loss per example."""
    x, y = batch
    return F.cross_entropy(module.layers(x), y, reduction="none")


def picture(pixels: torch.Tensor) -> np.ndarray:
    """``[32, 32]``, dark on white and smooth: a digit of 8 x 8 squares is hard to read."""
    enlarged = F.interpolate(pixels.view(1, 1, 8, 8), scale_factor=4, mode="bicubic")[0, 0]
    return (255 * (1 - enlarged.clamp(0, 1))).byte().numpy()


def train(folder: str, epochs: int) -> None:
    """Train, and record into ``folder``."""
    torch.manual_seed(0)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
    signals = OpposingSignals(
        data,
        per_sample_loss,
        folder=folder,
        every=1,
        consecutive=1,
        budget=None,  # a step of so small a model costs less than a measurement: measure every step
        sharpness_every=10,
        show=lambda example: picture(example[0]),
        class_names=[f"digit {digit}" for digit in range(10)],
    )
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=[signals],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(), DataLoader(data, batch_size=256, shuffle=True, drop_last=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="outputs/digits", help="of the record")
    parser.add_argument("--epochs", type=int, default=20)
    arguments = parser.parse_args()
    train(arguments.folder, arguments.epochs)
