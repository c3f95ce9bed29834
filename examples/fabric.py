"""Lightning Fabric is a plain loop: the follower takes what `Fabric.setup` returns.

python examples/fabric.py
opposing-signals explain outputs/fabric
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from opposing_signals import Follower

from lightning.fabric import Fabric  # isort: skip  (last: see docs/own_model.md, "Imports")


def per_sample_loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """``[n]``, one loss per example."""
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none")


def main() -> None:
    """Train and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="outputs/fabric", help="of the record")
    parser.add_argument("--epochs", type=int, default=40)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
    fabric = Fabric(accelerator="cpu", devices=1)
    network = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=0.7))
    loader = DataLoader(data, batch_size=256, shuffle=True)
    follower = Follower(data, per_sample_loss, folder=arguments.folder, steps=arguments.epochs * len(loader))
    for _ in range(arguments.epochs):
        for x, y in follower.batches(loader):  # on a GPU also fabric.setup_dataloaders(loader)
            with follower.step(model, optimizer, batch=(x, y)):
                optimizer.zero_grad()
                fabric.backward(F.cross_entropy(model(x), y))
                optimizer.step()
    follower.close()


if __name__ == "__main__":
    main()
