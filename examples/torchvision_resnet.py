"""Which images make the loss of a torchvision ResNet spike? CIFAR-10 if it is there, synthetic images otherwise.

python examples/torchvision_resnet.py
opposing-signals explain outputs/torchvision_resnet
"""

import argparse
import os

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from opposing_signals import OpposingSignals
from opposing_signals.data import cifar10, planted

from lightning.pytorch import LightningModule, Trainer  # isort: skip  (last: see docs/own_model.md, "Imports")
from torchvision.models import resnet18  # isort: skip


class Classifier(LightningModule):
    """torchvision's ResNet-18, including batch norm."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.network = resnet18(num_classes=classes)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The mean loss."""
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


def per_sample_loss(module: Classifier, batch: list[torch.Tensor]) -> torch.Tensor:
    """``[n]``, one loss per image."""
    images, labels = batch
    return F.cross_entropy(module.network(images), labels, reduction="none")


def main() -> None:
    """Train and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="outputs/torchvision_resnet", help="of the record")
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--epochs", type=int, default=7)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    has_cifar = "OPPOSING_SIGNALS_DATA" in os.environ
    images = cifar10(images=arguments.images) if has_cifar else planted(images=arguments.images)
    data = TensorDataset(images.inputs, images.targets)
    signals = OpposingSignals(
        data,
        per_sample_loss,
        folder=arguments.folder,
        track=min(96, len(data)),  # a pass over these costs about half a step
        every=2,
        budget=1.0,  # the default, 5%, shows little in so short a training
        class_names=images.class_names,
    )
    trainer = Trainer(
        max_epochs=arguments.epochs,
        callbacks=[signals],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(len(images.class_names)), DataLoader(data, batch_size=64, shuffle=True, drop_last=True))


if __name__ == "__main__":
    main()
