"""Gradient flow: cost and error of the stabilized integrator, compared with gradient descent with a small step.

Both follow the flow θ' = −∇L(θ) in float64 over the same time, and are compared with a reference at the end of each
interval. The cost is the number of gradients; nothing is timed. The paper takes steps of 0.0005 for the flow.

    python benchmarks/gradient_flow.py [linear mlp] [--time 12] [--interval 0.1]

linear  the two-layer linear model of §3.3 with α = 200, which is stiff; reference: SciPy, relative tolerance 1e-11
mlp     MLP 192-48-48-10 of ReLUs, cross-entropy, 500 CIFAR-10 images (drawn ones without the data set) averaged to 8x8;
        reference: the classical Runge-Kutta method with steps of 0.0005 as well

error   largest distance from the reference over the intervals' ends, relative to the distance travelled until there
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from measuring import table, target
from torch import Tensor, nn
from torch.nn import functional as F

from opposing_signals.choices import composed
from opposing_signals.optim import GradientFlow
from opposing_signals.studies.theory.flow import full_gradient_flow
from opposing_signals.studies.theory.model import TwoLayerModel, gradient, population_loss, sample_initial_parameters

SMALL_STEP = 0.0005
TOLERANCES = (1e-2, 1e-3, 1e-4, 4e-5, 1e-5)

Loss = Callable[[Tensor], float]
"""Writes ∇L at θ ``[P]`` into θ.grad and returns L."""


class Counted:
    """A loss that counts its gradients."""

    def __init__(self, loss: Loss) -> None:
        self.loss, self.gradients = loss, 0

    def __call__(self, theta: Tensor) -> float:
        self.gradients += 1
        return self.loss(theta)


def descent(loss: Counted, start: Tensor, interval: float, intervals: int, step: float) -> Tensor:
    """``[intervals, P]`` θ at the interval's ends by steps −η∇L."""
    theta, ends = start.clone(), []
    for _ in range(intervals):
        for _ in range(round(interval / step)):
            loss(theta)
            theta = theta - step * theta.grad
        ends.append(theta.clone())
    return torch.stack(ends)


def runge_kutta(loss: Counted, start: Tensor, interval: float, intervals: int, step: float) -> Tensor:
    """The same by the classical method of order 4."""

    def slope(theta: Tensor) -> Tensor:
        loss(theta)
        return -theta.grad

    theta, ends = start.clone(), []
    for _ in range(intervals):
        for _ in range(round(interval / step)):
            a = slope(theta)
            b = slope(theta + step / 2 * a)
            c = slope(theta + step / 2 * b)
            theta = theta + step / 6 * (a + 2 * b + 2 * c + slope(theta + step * c))
        ends.append(theta.clone())
    return torch.stack(ends)


def stabilized(loss: Counted, start: Tensor, interval: float, intervals: int, tolerance: float) -> Tensor:
    """The same by `GradientFlow`."""
    theta = start.clone().requires_grad_()
    flow = GradientFlow([theta], interval, tolerance)
    ends = []
    for _ in range(intervals):
        flow.step(lambda: loss(theta))
        ends.append(theta.detach().clone())
    return torch.stack(ends)


# -- networks ---------------------------------------------------------------------------------------------------


def linear(interval: float, intervals: int) -> tuple[Loss, Tensor, Tensor]:
    model = TwoLayerModel(d1=20, d2=60, alpha=200.0, beta_norm=5.0)
    start = sample_initial_parameters(model, np.random.default_rng(0))

    def loss(theta: Tensor) -> float:
        theta.grad = torch.from_numpy(gradient(theta.detach().numpy(), model))
        return population_loss(theta.detach().numpy(), model)

    times = interval * np.arange(intervals + 1)
    return loss, torch.from_numpy(start), torch.from_numpy(full_gradient_flow(model, start, times)[1:])


def mlp(interval: float, intervals: int) -> tuple[Loss, Tensor, Tensor]:
    config = composed("experiment=fig38a_mlp", "logger=none", "data=cifar10_5k", "data.images=500")
    drawn = composed("experiment=fig38a_mlp", "logger=none", "data=planted", "data.images=500")
    try:
        dataset = instantiate(config.data)
    except InstantiationException as error:
        print(f"without real images: {error.__cause__}")
        dataset = instantiate(drawn.data)
    inputs, targets = F.avg_pool2d(dataset.inputs.double(), 4).flatten(1), dataset.targets
    torch.manual_seed(0)
    layers = [nn.Linear(inputs.shape[1], 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10)]
    network = nn.Sequential(*layers).double()
    sizes = [p.numel() for p in network.parameters()]
    start = torch.cat([p.detach().flatten() for p in network.parameters()])

    def loss(theta: Tensor) -> float:
        with torch.no_grad():
            for p, piece in zip(network.parameters(), theta.split(sizes), strict=True):
                p.copy_(piece.view_as(p))
        value = F.cross_entropy(network(inputs), targets)
        theta.grad = torch.cat([g.flatten() for g in torch.autograd.grad(value, list(network.parameters()))])
        return value.item()

    reference = runge_kutta(Counted(loss), start, interval, intervals, SMALL_STEP)
    return loss, start, reference


NETWORKS = {"linear": linear, "mlp": mlp}


def compare(title: str, interval: float, intervals: int) -> None:
    loss, start, reference = NETWORKS[title](interval, intervals)
    before = torch.cat([start[None], reference[:-1]])
    way = (reference - before).norm(dim=1).cumsum(0)

    def row(name: str, follow: Callable[..., Tensor], setting: float) -> tuple[dict[str, str], int, float]:
        counted = Counted(loss)
        ends = follow(counted, start, interval, intervals, setting)
        error = float(((ends - reference).norm(dim=1) / way).max())
        return {"method": name, "gradients": str(counted.gradients), "error": f"{error:.1e}"}, counted.gradients, error

    euler, most, allowed = row(f"gradient descent, η = {SMALL_STEP}", descent, SMALL_STEP)
    rows = [euler]
    for tolerance in TOLERANCES:
        cells, gradients, error = row(f"GradientFlow, tolerance {tolerance:g}", stabilized, tolerance)
        verdict = f"{target(most / gradients, '>=', 3, 'gradients')}; {target(error, '<', allowed, 'error')}"
        rows.append({**cells, "fewer gradients": f"{most / gradients:.1f}x", "target": verdict})
    table(f"{title}: time {interval * intervals:g}, {intervals} intervals, way {way[-1]:.3g}", tuple(rows[1]), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="network", help="which; default: all")
    parser.add_argument("--time", type=float, default=12.0)
    parser.add_argument("--interval", type=float, default=0.1, help="one recorded step of the run")
    arguments = parser.parse_args()
    names = arguments.networks or list(NETWORKS)
    if not set(names) <= set(NETWORKS):
        parser.error(f"no network {', '.join(sorted(set(names) - set(NETWORKS)))}; there are {', '.join(NETWORKS)}")
    for name in names:
        compare(name, arguments.interval, math.ceil(arguments.time / arguments.interval - 1e-9))


if __name__ == "__main__":
    main()
