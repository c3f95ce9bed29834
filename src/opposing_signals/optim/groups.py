"""What the update rules of this package share: checked settings, gradients of a group, the step of momentum SGD."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from opposing_signals.errors import InputError

Group = dict[str, Any]
"""One of ``param_groups``."""


def check_not_negative(group: Group, *names: str) -> None:
    """Refuse a negative or undefined setting.

    Raises:
        InputError: One of ``names`` is such.
    """
    for name in names:
        if not group[name] >= 0:
            raise InputError(f"optimizer.{name}={group[name]}: expected a number, at least 0")


def check_share(group: Group, *names: str) -> None:
    """Refuse a factor of a moving average that is none.

    Raises:
        InputError: One of ``names`` is outside [0, 1).
    """
    for name in names:
        if not 0 <= group[name] < 1:
            raise InputError(f"optimizer.{name}={group[name]}: expected a number from 0 to below 1, as 0.9")


def called(closure: Callable[[], float] | None) -> float | None:
    """The loss of ``closure``, which puts gradients into ``.grad``, if there is one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def with_gradient(group: Group) -> tuple[list[Tensor], list[Tensor]]:
    """The parameters of a group that have a gradient, and their gradients; the others stay as they are.

    Raises:
        RuntimeError: A gradient is sparse.
    """
    parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
    for parameter in parameters:
        if parameter.grad.is_sparse:
            raise RuntimeError(
                f"the gradient of a parameter of shape {list(parameter.shape)} is sparse: expected a dense one; make "
                "the layer with sparse=False"
            )
    return parameters, [parameter.grad for parameter in parameters]


def momentum_buffers(optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> list[Tensor]:
    """m of each parameter, zero to begin with."""
    for parameter in parameters:
        state = optimizer.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return [optimizer.state[parameter]["momentum_buffer"] for parameter in parameters]


def descend(optimizer: torch.optim.Optimizer, group: Group, parameters: list[Tensor], gradients: list[Tensor]) -> None:
    """A step of SGD as torch takes it: m ← momentum m + g, θ ← θ − lr m."""
    if not parameters:
        return
    if group["momentum"]:
        momenta = momentum_buffers(optimizer, parameters)
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        gradients = momenta
    torch._foreach_add_(parameters, gradients, alpha=-group["lr"])
