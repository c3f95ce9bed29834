"""What the update rules of this package share: checked settings, gradients of a group, a step of momentum SGD."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from opposing_signals.errors import InputError
from opposing_signals.values import Range

Group = dict[str, Any]
"""One of ``param_groups``."""
NOT_NEGATIVE, DECAY = Range(0), Range(0, 1, below=True)


class Rule(torch.optim.Optimizer):
    """An update rule whose settings are checked in each parameter group.

    Attributes:
        ranges: Name of a setting ↦ its range. A setting may be None, which leaves it to the rule.

    Raises:
        InputError: A setting is outside its range.
    """

    ranges: ClassVar[Mapping[str, Range]]

    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group(param_group)
        for name, allowed in self.ranges.items():
            value = self.param_groups[-1][name]
            if value is not None and value not in allowed:
                raise InputError(f"optimizer.{name}={value}: expected a number, {allowed}")


def called(closure: Callable[[], float] | None) -> float | None:
    """The loss of ``closure``, if there is one; it puts gradients into ``.grad``."""
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
    """m of each parameter, initially zero."""
    for parameter in parameters:
        state = optimizer.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return [optimizer.state[parameter]["momentum_buffer"] for parameter in parameters]


def descend(optimizer: torch.optim.Optimizer, group: Group, parameters: list[Tensor], gradients: list[Tensor]) -> None:
    """A step of SGD as in torch: m ← momentum m + g, θ ← θ − lr m."""
    if not parameters:
        return
    if group["momentum"]:
        momenta = momentum_buffers(optimizer, parameters)
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        gradients = momenta
    torch._foreach_add_(parameters, gradients, alpha=-group["lr"])
