"""What the callback OpposingSignals costs: its own account, and the time of the same training with and without it.

    python benchmarks/callback_overhead.py

A perceptron on 5,000 drawn examples of 3,072 numbers in minibatches of 128, every default of the callback. The two
trainings take turns, the one and the other first, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from opposing_signals import OpposingSignals
from opposing_signals.record import Record


class Perceptron(LightningModule):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(3072, 400), torch.nn.ReLU(), torch.nn.Linear(400, 10))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.layers(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def per_sample_loss(module: Perceptron, batch: list[torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(module.layers(batch[0]), batch[1], reduction="none")


def seconds(data: TensorDataset, steps: int, callbacks: list) -> float:
    torch.manual_seed(0)
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    began = time.perf_counter()
    trainer.fit(Perceptron(), DataLoader(data, batch_size=128, shuffle=True))
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    data = TensorDataset(torch.randn(5000, 3072), torch.randint(10, (5000,)))
    seconds(data, arguments.steps // 4, [])  # what the first training of a process does once
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(arguments.rounds):
            signals = OpposingSignals(data, per_sample_loss, folder=Path(scratch) / str(number))
            took: dict[bool, float] = {}
            for is_watched in (True, False) if number % 2 else (False, True):
                took[is_watched] = seconds(data, arguments.steps, [signals] if is_watched else [])
            watched, alone = took[True], took[False]
            measured = Record(signals.folder)["sample_loss"].steps
            ratios.append(watched / alone)
            print(
                f"with {watched:.1f} s, without {alone:.1f} s, ratio {ratios[-1]:.3f}; own account "
                f"{signals.budget.overhead:.3f} (budget {signals.budget.share}), {len(measured)} of {arguments.steps} "
                f"steps measured, the last windows {np.diff(measured[::2])[-3:].tolist()} steps apart"
            )
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    print(f"ratio {middle:.3f} [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
