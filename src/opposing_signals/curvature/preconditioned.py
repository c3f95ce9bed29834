"""Sharpness in the geometry of Adam, whose step is preconditioned gradient descent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from opposing_signals.curvature.eigen import Products
from opposing_signals.curvature.risk import flatten
from opposing_signals.errors import InputError


def adam_preconditioner(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> Tensor:
    """The diagonal of P = (1 − β1^t) (√v̂ + ε), of Adam's last step θ ← θ − η P⁻¹ m.

    m is the moving average of gradients; its bias correction is in P, and v̂ = v/(1 − β2^t) (Cohen et al. 2022,
    "Adaptive gradient methods at the edge of stability", §2). Momentum gradient descent in this geometry is at the edge
    of stability where the largest eigenvalue of P⁻¹H is (2 + 2β1)/((1 − β1) η): 38/η for β1 = 0.9.

    Args:
        optimizer: `torch.optim.Adam` or a subclass; it has taken a step.
        parameters: θ, tensor by tensor.

    Returns:
        ``[P]``, positive.

    Raises:
        InputError: Another optimizer, one without a step, or one that does not hold all of θ.
    """
    if not isinstance(optimizer, torch.optim.Adam):
        raise InputError(
            f"preconditioned sharpness: the optimizer is {type(optimizer).__name__}: expected torch.optim.Adam; leave "
            "preconditioned_sharpness out of instruments"
        )
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    pieces = []
    for parameter in parameters:
        state = optimizer.state.get(parameter)
        if not state:
            raise InputError("preconditioned sharpness: Adam has taken no step with a parameter: expected one at least")
        group, taken = groups[id(parameter)], float(state["step"])
        first, second = group["betas"]
        moment = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        pieces.append((1 - first**taken) * ((moment / (1 - second**taken)).sqrt() + group["eps"]))
    return flatten(pieces)


def preconditioned(products: Products, preconditioner: Tensor) -> Products:
    """v ↦ P^(-1/2) H P^(-1/2) v: symmetric, with the eigenvalues of P⁻¹H.

    Args:
        products: v ↦ Hv.
        preconditioner: ``[P]``, the positive diagonal of P.
    """
    root = preconditioner.sqrt()
    return lambda vectors: products(vectors / root) / root
