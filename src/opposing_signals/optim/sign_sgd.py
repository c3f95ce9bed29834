"""Sign SGD, which Adam's largest steps resemble (§4.1)."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import torch
from torch.optim.optimizer import ParamsT

from opposing_signals.optim.groups import DECAY, NOT_NEGATIVE, Rule, called, momentum_buffers, with_gradient
from opposing_signals.values import Decay, Positive


class SignSGD(Rule):
    """m ← β m + (1 − β) g, θ ← θ − η sign(m): Signum of Bernstein et al. 2018 ("signSGD").

    It is not a descent method: every parameter moves by η unless its m is exactly 0.

    Args:
        params: As for any torch optimizer.
        lr: η.
        momentum: β; 0 takes the sign of the gradient itself.

    Raises:
        InputError: η is negative, or β outside [0, 1).
        RuntimeError: In `step`, a gradient is sparse.
    """

    ranges = MappingProxyType({"lr": NOT_NEGATIVE, "momentum": DECAY})

    def __init__(self, params: ParamsT, lr: Positive = 0.001, momentum: Decay = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = called(closure)
        for group in self.param_groups:
            parameters, directions = with_gradient(group)
            if not parameters:
                continue
            if group["momentum"]:
                momenta = momentum_buffers(self, parameters)
                torch._foreach_lerp_(momenta, directions, 1 - group["momentum"])
                directions = momenta
            torch._foreach_add_(parameters, torch._foreach_sign(directions), alpha=-group["lr"])
        return loss
