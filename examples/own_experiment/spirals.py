"""What your own experiment may add: a data set, a model, an instrument, a claim's statistic and a figure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from opposing_signals.data import Dataset
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.signals import Trajectory
from opposing_signals.studies import style
from opposing_signals.studies.claim import Estimate
from opposing_signals.training.module import TrainingModule


def spirals(points: int = 120, noise: float = 0.05, seed: int = 0) -> Dataset:
    """Points ``[N, 2]`` on two spirals, one per class."""
    random = np.random.default_rng(seed)
    targets = np.arange(points) % 2
    radius = np.sqrt(random.uniform(0.05, 1, points))
    angle = 4 * radius + np.pi * targets
    inputs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1) + random.normal(0, noise, (points, 2))
    inputs = inputs.astype("<f4")
    return Dataset(
        name=f"spirals ({points} points)",
        inputs=torch.from_numpy(inputs),
        targets=torch.from_numpy(targets),
        checksum=hashlib.sha256(inputs.tobytes() + targets.tobytes()).hexdigest(),
        class_names=("first", "second"),
    )


class Block(nn.Module):
    """x + W₂ tanh(W₁ x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))

    def forward(self, hidden: Tensor) -> Tensor:
        """``[n, width]`` ↦ the same shape."""
        return hidden + self.branch(hidden)


def residual_mlp(input_shape: tuple[int, ...], outputs: int, width: int, depth: int) -> nn.Sequential:
    """A fully connected residual network on inputs ``[n, d]``."""
    (dimensions,) = input_shape
    blocks = (Block(width) for _ in range(depth))
    return nn.Sequential(nn.Linear(dimensions, width), *blocks, nn.Linear(width, outputs))


class WeightNorm(Instrument):
    """Writes ``weight_norm`` ‖θ_t‖."""

    def before_step(self, module: TrainingModule, step: int) -> None:
        """At this point the weights are still those before the step."""
        squares = sum(float(parameter.detach().double().square().sum()) for parameter in self.risk.parameters)
        self.write(module, step, "weight_norm", squares**0.5)


def norm_growth(trajectories: Mapping[str, Trajectory]) -> Estimate:
    """Last measured norm of the weights over the first one."""
    (trajectory,) = trajectories.values()
    norms = trajectory.record["weight_norm"].values
    return Estimate(float(norms[-1] / norms[0]))


def losses(trajectories: Mapping[str, Trajectory]) -> Figure:
    """Loss of every point along the run."""
    (trajectory,) = trajectories.values()
    figure = style.figure(6, 4, trajectory.title)
    axes = figure.add_subplot()
    axes.plot(trajectory.record["sample_loss"].values, color=style.INK, linewidth=0.5, alpha=0.5)
    axes.set(xlabel="step", ylabel="loss of each point", yscale="log")
    return figure
