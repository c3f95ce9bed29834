"""Changes of gradients and step sizes between a step's pass and its update."""

from __future__ import annotations

import math

import torch

from opposing_signals.errors import InputError
from opposing_signals.values import Count, Fraction, Natural, Positive

STEP_SIZES = ("lr", "sgd_lr")
"""The fields of torch's optimizers, and of SplitSGD, that are step sizes."""


class WarmUpAndDecay:
    """Linear warm-up of the step sizes, then cosine decay, as in nanoGPT.

    At step t < ``warm_up`` the optimizer's step sizes are multiplied by (t + 1)/(warm_up + 1), and from there on by a
    factor that falls from 1 to ``floor`` at step ``decay_until``, where it stays.

    Args:
        warm_up: Number of warm-up steps.
        decay_until: Step at which the decay ends.
        floor: Smallest factor after the warm-up.

    Raises:
        InputError: The decay ends before the warm-up does.
    """

    def __init__(self, warm_up: Natural, decay_until: Count, floor: Fraction) -> None:
        if warm_up >= decay_until:
            raise InputError(f"warm_up={warm_up}, decay_until={decay_until}: expected warm_up < decay_until")
        self.warm_up = warm_up
        self.decay_until = decay_until
        self.floor = floor

    def factor(self, step: int) -> float:
        """Multiplier of the step sizes at ``step``."""
        if step < self.warm_up:
            return (step + 1) / (self.warm_up + 1)
        fallen = min(1.0, (step - self.warm_up) / (self.decay_until - self.warm_up))
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * fallen)) / 2

    def __call__(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set the step sizes of ``step``; the optimizer's groups keep the configured ones, also in checkpoints."""
        for group in optimizer.param_groups:
            for field in STEP_SIZES:
                if field in group:
                    group[field] = group.setdefault(f"initial_{field}", group[field]) * self.factor(step)


class GradientClipping:
    """Scale a gradient longer than ``norm`` to that length (Pascanu et al. 2013).

    Args:
        norm: Largest ‖∇L‖ used in an update.
    """

    def __init__(self, norm: Positive) -> None:
        self.norm = norm

    def __call__(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Scale the gradient of all parameters as one vector."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.norm)
