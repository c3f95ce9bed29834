"""Runs under several update rules: the settings of each rule, and the final values of its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from opposing_signals.record.quantities import TEST_ACCURACY, TRAIN_LOSS
from opposing_signals.signals.trajectory import Trajectory

Quantity: TypeAlias = str
"""`TRAIN_LOSS` or `TEST_ACCURACY`."""


@dataclass(frozen=True)
class Rule:
    """An update rule with its settings.

    Attributes:
        name: Name of its class, for instance ``"SGD"``, ``"Adam"`` or ``"SplitSGD"``.
        lr: Learning rate; for SplitSGD η2, the size of a signed step.
        sgd_lr: η1, SplitSGD's plain step size; None for other rules.
        momentum: β; None for rules that have none.
        dampening: τ; likewise.
    """

    name: str
    lr: float
    sgd_lr: float | None = None
    momentum: float | None = None
    dampening: float | None = None

    @classmethod
    def of(cls, trajectory: Trajectory) -> Rule:
        settings = trajectory.configuration["optimizer"]
        return cls(
            settings["_target_"].rpartition(".")[2],
            *(settings.get(name) for name in ("lr", "sgd_lr", "momentum", "dampening")),
        )

    def __str__(self) -> str:
        """For instance ``"SGD η = 0.1, β = 0.9, τ = 0"``."""
        if self.sgd_lr is not None:
            return f"{self.name} η₁ = {self.sgd_lr:g}, η₂ = {self.lr:g}, τ = {self.dampening:g}"
        settings = {"η": self.lr, "β": self.momentum, "τ": self.dampening}
        named = [f"{symbol} = {value:g}" for symbol, value in settings.items() if value is not None]
        return f"{self.name} {', '.join(named)}"


def under(trajectories: Mapping[str, Trajectory], name: str, dampening: float | None = None) -> dict[Rule, Trajectory]:
    """The runs under the rule ``name`` (with τ = ``dampening``), by η1 and learning rate."""
    runs = {Rule.of(trajectory): trajectory for trajectory in trajectories.values()}
    chosen = [rule for rule in runs if rule.name == name and (dampening is None or rule.dampening == dampening)]
    return {rule: runs[rule] for rule in sorted(chosen, key=lambda rule: (rule.sgd_lr or 0.0, rule.lr))}


def final(trajectory: Trajectory, quantity: Quantity = TRAIN_LOSS) -> np.ndarray:
    """Final values of a run: its batches' losses over the steps of the last epoch, or its last test accuracy.

    The mean of these losses is the final train loss. Runs of one seed and size end with the same batches.

    Returns:
        ``[T]``; a run that was stopped ends with an infinite loss, and with chance accuracy.
    """
    is_stopped = trajectory.record.state.startswith("stopped")
    if quantity == TEST_ACCURACY:
        if is_stopped:
            return np.array([1 / len(trajectory.dataset.class_names)])
        return np.asarray(trajectory.record[quantity].values[-1:], float)
    epoch = steps_of_epoch(trajectory)
    return np.full(epoch, np.inf) if is_stopped else np.asarray(trajectory.record[TRAIN_LOSS].values[-epoch:], float)


def steps_of_epoch(trajectory: Trajectory) -> int:
    """Steps in which minibatch training sees every example once."""
    return -(-trajectory.record.provenance["data"]["examples"] // trajectory.configuration["batch"])
