"""How far λ falls short of the largest eigenvalue along gradient descent above the edge of stability.

Small networks, so that a converged reference can be had at every step: a block Lanczos method that starts from the last
step's five largest eigenvectors and two random vectors. Trackers with the settings of runs follow the same weights.

    python benchmarks/missed_eigenvalues.py [--data cifar10_5k.npz] [--steps 300] [--network mlp resnet]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opposing_signals.curvature import EigenTracker
from opposing_signals.curvature.risk import EmpiricalRisk, flatten
from opposing_signals.instruments.sharpness import STEPS_BETWEEN_LOOKS

RUNS = {"mlp": ((0, 0.3, 40), (1, 0.5, 20)), "resnet": ((0, 0.05, 5), (1, 0.1, 10))}
"""Seed, step size, and the step at which measurements begin."""
SETTINGS = ((1, 1), (5, 1), (10, 2), (15, 1))
"""``every`` and ``consecutive`` of runs."""


class Block(nn.Module):
    """A residual block with batch norm."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(width, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.past = nn.Conv2d(width, out, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.inner(x) + self.past(x))


def problem(network: str, seed: int, data: Path) -> EmpiricalRisk:
    """An MLP on 1,000 images of 8 x 8, or a ResNet of width 8 with batch norm on 64 of 16 x 16."""
    torch.manual_seed(seed)
    count, side = (1000, 8) if network == "mlp" else (64, 16)
    archive, rows = np.load(data), slice(1000 * seed, 1000 * seed + count)
    images = torch.from_numpy(archive["train_images"][rows]).permute(0, 3, 1, 2).float()
    images = F.avg_pool2d(images, images.shape[-1] // side)
    images = (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True)
    labels = torch.from_numpy(archive["train_labels"][rows]).long()
    if network == "mlp":
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        model.append(nn.Linear(64, 10))
    else:
        model = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), Block(8, 8, 1))
        model.extend([Block(8, 16, 2), Block(16, 32, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)])
    chunk = 1000 if network == "mlp" else 32
    return EmpiricalRisk(
        model.train(), lambda o, t: F.cross_entropy(o, t, reduction="none"), images, labels, chunk=chunk
    )


def follow(risk: EmpiricalRisk, lr: float, begin: int, steps: int) -> tuple[np.ndarray, dict[tuple[int, int], Tensor]]:
    """``[steps]`` λ, and for each of `SETTINGS` rows of step, value, bound and products."""
    reference = EigenTracker(5, tolerance=1e-3, max_products=100, cold_products=100, look=1)
    trackers = {(e, c): EigenTracker(tolerance=0.05, look=max(1, STEPS_BETWEEN_LOOKS * c // e)) for e, c in SETTINGS}
    truth, rows = [], {setting: [] for setting in SETTINGS}

    def products(vectors: Tensor) -> Tensor:
        return risk.hessian_products(vectors).products

    for step in range(begin + steps):
        theta = flatten([parameter.detach() for parameter in risk.parameters])
        if step >= begin:
            truth.append(reference(products, theta).value)
            for (every, consecutive), tracker in trackers.items():
                if (step - begin) % every < consecutive:
                    pairs = tracker(products, theta)
                    rows[every, consecutive].append((step - begin, pairs.value, pairs.bound, pairs.products))
        risk.model.zero_grad()
        risk.backward()
        with torch.no_grad():
            for parameter in risk.parameters:
                parameter -= lr * parameter.grad
    return np.array(truth), {setting: torch.tensor(found, dtype=torch.float64) for setting, found in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("cifar10_5k.npz"), help="images, as `data=cifar10_5k` has them"
    )
    parser.add_argument("--network", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    for network in arguments.network:
        for seed, lr, begin in RUNS[network]:
            truth, found = follow(problem(network, seed, arguments.data), lr, begin, arguments.steps)
            low, middle, high = np.percentile(truth * lr / 2, [0, 50, 100])
            print(f"\n{network}, seed {seed}, η = {lr}: λ is {low:.2f} to {high:.2f} times 2/η, median {middle:.2f}")
            print(
                "every, consecutive   median error      95%  largest   above 5%, not covered   bound over λ   products"
            )
            for setting, rows in found.items():
                step, value, bound, products = rows[1:].numpy().T  # without the cold start
                exact = truth[step.astype(int)]
                error = np.abs(value / exact - 1)
                far = error > 0.05
                print(
                    f"{setting!s:18}   {np.median(error):12.1e} {np.quantile(error, 0.95):8.1e} {error.max():8.1e}   "
                    f"{far.sum():8d}, {(far & (bound < exact)).sum():11d}   {np.nanmedian(bound / exact):12.2f}   "
                    f"{products.mean():8.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
