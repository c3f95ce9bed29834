"""Sign SGD, of which Adam's largest steps are made (§4.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from opposing_signals.optim.groups import called, check_not_negative, check_share, momentum_buffers, with_gradient
from opposing_signals.values import Decay, Positive


class SignSGD(torch.optim.Optimizer):
    """m ← β m + (1 − β) g, θ ← θ − η sign(m): Signum of Bernstein et al. 2018 ("signSGD").

    It is not a descent method: every parameter moves by η until its m is exactly 0.

    Args:
        params: As for any torch optimizer.
        lr: η.
        momentum: β; 0 takes the sign of the gradient itself.

    Raises:
        InputError: η is negative, or β outside [0, 1).
        RuntimeError: In `step`, a gradient is sparse.
    """

    def __init__(self, params: ParamsT, lr: Positive = 0.001, momentum: Decay = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with settings of their own if they are given."""
        super().add_param_group(param_group)
        check_not_negative(self.param_groups[-1], "lr")
        check_share(self.param_groups[-1], "momentum")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; the loss of ``closure``, if there is one."""
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
