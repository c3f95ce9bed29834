"""SGD on gradients clipped entry by entry (§4.1)."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import torch
from torch.optim.optimizer import ParamsT

from opposing_signals.optim.groups import DECAY, NOT_NEGATIVE, Rule, called, descend, with_gradient
from opposing_signals.values import Decay, Positive, Range


class ClippedSGD(Rule):
    """g ← clamp(g, ± bound) entry by entry, and then SGD: m ← β m + g, θ ← θ − η m.

    Zhang et al. 2020 ("Why are adaptive methods good for attention models?") and Pan and Li 2023 study such clipping,
    the latter of a fixed fraction of the entries instead of those above a fixed bound. Unlike clipping the norm, it
    changes the gradient's direction. ``.grad`` is left unchanged, whereas `torch.nn.utils.clip_grad_value_` overwrites
    it: measurements after the step see the gradient itself.

    Args:
        params: As for any torch optimizer.
        lr: η.
        bound: Largest magnitude of an entry of the gradient; ``inf`` clips nothing.
        momentum: β.

    Raises:
        InputError: η is negative, β outside [0, 1), or the bound not positive.
        RuntimeError: In `step`, a gradient is sparse.
    """

    ranges = MappingProxyType({"lr": NOT_NEGATIVE, "bound": Range(0, above=True), "momentum": DECAY})

    def __init__(self, params: ParamsT, lr: Positive = 0.1, bound: Positive = 0.001, momentum: Decay = 0.0) -> None:
        super().__init__(params, {"lr": lr, "bound": bound, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = called(closure)
        for group in self.param_groups:
            parameters, gradients = with_gradient(group)
            bound = group["bound"]
            descend(self, group, parameters, [gradient.clamp(-bound, bound) for gradient in gradients])
        return loss
