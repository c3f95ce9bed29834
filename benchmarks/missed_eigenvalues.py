"""How far λ falls short of the largest eigenvalue along gradient descent above the edge of stability, and its cost.

The networks are small, so that the largest eigenvalue can be computed at every step: for `dense` from the whole
Hessian, for the others by a block Lanczos method that starts from the last step's three largest eigenvectors and a
random vector, and is itself checked against long Lanczos runs from random vectors. Trackers with the settings of all
runs at scale=cpu follow the same weights. The cost is that of a run with λ over one without, in gradients: products are
counted, and the CPU time of each is measured.

    python benchmarks/missed_eigenvalues.py [--data cifar10_5k.npz] [--steps 300] [--network dense mlp tanh resnet]

With ``--rows FOLDER`` each run writes an npz there with an array for each setting, whose columns are `COLUMNS`, so that
another λ can be computed from the same measurements.

With ``--differences float32 bfloat16`` a second tracker with each setting takes products by differences of gradients in
that precision, and an exact last product; its cost counts one gradient per product, plus the exact product.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from tracking import lanczos

from opposing_signals.choices import choices, composed
from opposing_signals.curvature import EigenTracker
from opposing_signals.curvature.differences import GradientDifferences
from opposing_signals.curvature.eigen import Products
from opposing_signals.curvature.risk import EmpiricalRisk, flatten
from opposing_signals.instruments.sharpness import calls_between_looks
from opposing_signals.models import vit

RUNS = {
    "dense": ((0, 0.5, 60), (1, 0.8, 40), (2, 0.3, 80)),
    "mlp": ((0, 0.3, 40), (1, 0.5, 20), (2, 0.2, 60)),
    "tanh": ((0, 0.3, 40), (1, 0.5, 20)),
    "vit": ((0, 0.1, 40), (1, 0.2, 20)),
    "resnet": ((1, 0.1, 10), (0, 0.05, 5), (2, 0.05, 5), (0, 0.02, 40)),
}
"""Seed, step size, and the first step that is measured."""
COLUMNS = ("step", "truth", "value", "quotient", "residual", "bound", "first", "further", "error")
"""Of a measurement: λ by the reference; λ, Rayleigh quotient q, residual and bound by the tracker; the products in the
training pass and after it; the error of q by differences."""
CHECKS = 6
"""Number of steps of each run at which the reference is checked against a long Lanczos run."""


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
    """An MLP on 1,000 images of 8 x 8 or 200 of 4 x 4, or a ResNet of width 8 or a ViT of width 32 on 64 of 16 x 16."""
    torch.manual_seed(seed)
    count, side = {"dense": (200, 4), "resnet": (64, 16), "vit": (64, 16)}.get(network, (1000, 8))
    archive, rows = np.load(data), slice(1000 * seed, 1000 * seed + count)
    images = torch.from_numpy(archive["train_images"][rows]).permute(0, 3, 1, 2).float()
    images = F.avg_pool2d(images, images.shape[-1] // side)
    images = (images - images.mean((0, 2, 3), keepdim=True)) / images.std((0, 2, 3), keepdim=True)
    labels = torch.from_numpy(archive["train_labels"][rows]).long()
    if network == "vit":
        model: nn.Module = vit((3, side, side), 10, patch=4, width=32, depth=2, heads=2)
    elif network == "resnet":
        model = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), Block(8, 8, 1))
        model.extend([Block(8, 16, 2), Block(16, 32, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)])
    else:
        kind, width = nn.Tanh if network == "tanh" else nn.ReLU, 16 if network == "dense" else 64
        layers = [nn.Flatten(), nn.Linear(3 * side**2, width), kind(), nn.Linear(width, width), kind()]
        model = nn.Sequential(*layers, nn.Linear(width, 10))
    loss = nn.CrossEntropyLoss(reduction="none")
    return EmpiricalRisk(model.train(), loss, images, labels, chunk=count)


def shipped() -> list[tuple[int, int, float]]:
    """``every``, ``consecutive`` and tolerance of λ in all runs at scale=cpu."""
    found = set()
    for name in choices("run"):
        config = composed("experiment=fig01_group_losses", f"run={name}", "scale=cpu")  # no run is composed alone
        for run in (config, config.get("reference")):
            fields = run and run.get("instruments", {}).get("sharpness")
            if fields:
                found.add((fields.every, fields.consecutive, fields.tolerance))
    return sorted(found)


@dataclass
class Lane:
    """A tracker with its settings, results and costs.

    Attributes:
        precision: Precision of the gradients whose differences are its products; empty for exact products.
        rows: One per measurement, see `COLUMNS`.
    """

    every: int
    consecutive: int
    tracker: EigenTracker
    precision: str = ""
    rows: list[tuple[float, ...]] = field(default_factory=list)

    def is_due(self, step: int) -> bool:
        return step % self.every < self.consecutive

    def measure(
        self, risk: EmpiricalRisk, products: Products, gradient: Tensor, theta: Tensor, step: int, truth: float
    ) -> None:
        directions = self.tracker.directions(theta)
        if self.precision:
            differences = GradientDifferences(in_precision(risk, self.precision))
            pairs = self.tracker.update(
                differences(directions),
                differences,
                differences.gradient,
                lambda vectors: (products(vectors), torch.zeros(len(vectors), dtype=torch.float64)),
            )
            spent = 0, pairs.products
        else:
            pairs = self.tracker.update(products(directions), products, gradient)
            spent = len(directions), pairs.products - len(directions)
        found = pairs.value, pairs.quotient, pairs.residual, pairs.bound
        self.rows.append((step, truth, *found, *spent, pairs.error / pairs.quotient))


def follow(
    risk: EmpiricalRisk,
    lr: float,
    begin: int,
    steps: int,
    settings: list[tuple[int, int, float]],
    is_dense: bool,
    precisions: list[str],
) -> tuple[np.ndarray, list[Lane], float]:
    """``[steps]`` λ (NaN where no tracker is due), the trackers, and the largest deviation of long Lanczos runs."""
    reference = EigenTracker(3, tolerance=3e-3, max_products=100, look=1)
    lanes = [
        Lane(
            every,
            consecutive,
            EigenTracker(tolerance=tolerance, look=calls_between_looks(every, consecutive)),
            precision,
        )
        for every, consecutive, tolerance in settings
        for precision in precisions
    ]
    truth, off = np.full(steps, np.nan), 0.0
    for step in range(-begin, steps):
        risk.model.zero_grad()
        theta = flatten([parameter.detach() for parameter in risk.parameters])
        if step < 0 or not any(lane.is_due(step) for lane in lanes):
            risk.backward()
        else:
            seen = risk.backward_with_products(torch.randn(1, len(theta)))
            products = seen.further
            truth[step] = dense(risk, theta) if is_dense else reference(products, theta).value
            for lane in lanes:
                if lane.is_due(step):
                    lane.measure(risk, products, seen.gradient, theta, step, truth[step])
            if step % (steps // CHECKS) == 0:
                value, _, _ = lanczos(lambda v: products(v[None])[0], torch.randn(len(theta)), 120)  # noqa: B023
                off = max(off, abs(truth[step] / value - 1))
        with torch.no_grad():
            for parameter in risk.parameters:
                parameter -= lr * parameter.grad
    return truth, lanes, off


def in_precision(risk: EmpiricalRisk, precision: Any) -> EmpiricalRisk:
    """The same weights, with a training pass in another precision."""
    other = EmpiricalRisk(risk.model, risk.loss, risk.inputs, risk.targets, chunk=risk.chunk, precision=precision)
    other.checked = None  # a check would free the graph of the pass that all trackers share
    return other


def dense(risk: EmpiricalRisk, theta: Tensor) -> float:
    """λ of the whole Hessian, by plain PyTorch."""
    names = [name for name, _ in risk.model.named_parameters()]

    def loss(theta: Tensor) -> Tensor:
        parameters = dict(zip(names, risk.unflatten(theta), strict=True))
        return risk.loss(functional_call(risk.model, parameters, risk.inputs), risk.targets).mean()

    return float(torch.linalg.eigvalsh(torch.func.hessian(loss)(theta).double())[-1])


def costs(risk: EmpiricalRisk) -> dict[int | str, float]:
    """CPU time, in gradients, of a training pass with 0 to 4 products, of a product alone, and of one by its graph."""
    vectors = torch.randn(4, sum(parameter.numel() for parameter in risk.parameters))
    passes: dict[int | str, Callable[[], object]] = {0: risk.backward}
    passes |= {m: lambda m=m: risk.backward_with_products(vectors[:m]) for m in (1, 2, 3, 4)}
    passes["alone"] = lambda: risk.hessian_products(vectors[:1])
    further = risk.backward_with_products(vectors[:1]).further
    passes["further"] = lambda: further(vectors[:1])
    seconds: dict[int | str, list[float]] = {name: [] for name in passes}
    for _ in range(9):
        for name, call in passes.items():
            risk.model.zero_grad()
            started = time.process_time()
            call()
            seconds[name].append(time.process_time() - started)
    return {name: float(np.median(np.divide(times, seconds[0]))) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("cifar10_5k.npz"), help="images, as `data=cifar10_5k` has them"
    )
    parser.add_argument("--network", nargs="+", choices=RUNS, default=[name for name in RUNS if name != "vit"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=1, help="leave out settings that measure more often")
    parser.add_argument("--differences", nargs="+", choices=("float32", "float16", "bfloat16"), default=[])
    parser.add_argument("--runs", type=int, default=4, help="of each network, at most")
    parser.add_argument("--tolerance", type=float, nargs="*", default=[], help="others of λ at every step")
    parser.add_argument("--rows", type=Path, help="folder for the measurements themselves")
    arguments = parser.parse_args()
    settings = shipped() + [(1, 1, tolerance) for tolerance in arguments.tolerance]
    settings = sorted(setting for setting in settings if arguments.every <= setting[0] < arguments.steps)
    for network in arguments.network:
        cost = costs(problem(network, 0, arguments.data))
        print(f"\n{network}: in gradients", ", ".join(f"{name} {value:.2f}" for name, value in cost.items()))
        for seed, lr, begin in RUNS[network][: arguments.runs]:
            risk = problem(network, seed, arguments.data)
            precisions = ["", *arguments.differences]
            truth, lanes, off = follow(risk, lr, begin, arguments.steps, settings, network == "dense", precisions)
            low, middle, high = np.nanpercentile(truth * lr / 2, [0, 50, 100])
            if arguments.rows:
                arguments.rows.mkdir(parents=True, exist_ok=True)
                rows = {f"{x.every} {x.consecutive} {x.tracker.tolerance} {x.precision}": x.rows for x in lanes}
                np.savez(arguments.rows / f"{network}_{seed}_{lr}.npz", **rows)
            print(f"\n{network}, seed {seed}, η = {lr}: λ is {low:.2f} to {high:.2f} times 2/η, median {middle:.2f}")
            print(f"the reference is at most {off:.0e} off long Lanczos runs")
            print(
                f"{'every, consecutive, tolerance':29}   {'products by':21}   median      95%  largest   "
                ">5% uncovered   covered   bound/λ   products   cost   error of differences"
            )
            for lane in lanes:
                _, exact, value, _, _, bound, first, further, apart = np.array(
                    lane.rows[1:]
                ).T  # without the cold start
                error = np.abs(value / exact - 1)
                if lane.precision:
                    beside = (further - 1).sum() + cost["alone"] * len(further)
                else:
                    beside = sum(cost[min(int(m), 4)] - 1 for m in first) + cost["further"] * further.sum()
                setting = lane.every, lane.consecutive, lane.tracker.tolerance
                by = f"differences, {lane.precision}" if lane.precision else "double backward"
                print(
                    f"{setting!s:29}   {by:21}   {np.median(error):6.1e} {np.quantile(error, 0.95):8.1e} "
                    f"{error.max():8.1e}   {((error > 0.05) & (bound < exact)).sum():13d}   "
                    f"{np.mean(bound >= exact):7.3f}   {np.nanmedian(bound / exact):7.2f}   "
                    f"{(first + further).mean():8.1f}   {1 + beside / arguments.steps:4.2f}   {np.median(apart):8.1e}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
