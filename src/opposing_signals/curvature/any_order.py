"""Layers built from functions that PyTorch differentiates correctly to any order.

A model whose forward pass takes a gradient of its own, such as a force field, a score network, or a loss with a
gradient penalty, needs third derivatives for a Hessian-vector product. PyTorch's third derivatives of layer norm,
weight norm, and batch and instance norm with the batch's own statistics are wrong (torch 2.13: by 20% to 90%), and
`opposing_signals.curvature.second_order` stops at the second. PyTorch itself differentiates all other layers correctly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from opposing_signals.curvature.normalization import BatchNorm, in_training


class AnyOrder(TorchFunctionMode):
    """Within this mode, normalizations can be differentiated any number of times.

    Values and first derivatives differ from PyTorch's kernels in rounding, and running statistics are not updated.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace what PyTorch cannot differentiate often enough."""
        return _WRITTEN_OUT.get(func, func)(*args, **(kwargs or {}))


class GradientWatch(TorchFunctionMode):
    """Detects whether a derivative is taken inside it, by autograd, `torch.func` or forward mode.

    Attributes:
        has_seen: Whether one was taken.
    """

    has_seen = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.has_seen = self.has_seen or func in DERIVATIVES
        return func(*args, **(kwargs or {}))


DERIVATIVES: set[Callable[..., Any]] = {
    torch.autograd.grad,
    torch.autograd.backward,
    Tensor.backward,
    torch._make_dual,  # where forward mode begins
}
"""Every derivative is taken by one of these calls."""


# -- activations --------------------------------------------------------------------------------------------------


def hard_sigmoid(input: Tensor) -> Tensor:  # noqa: A002
    """`F.hardsigmoid`, which PyTorch differentiates only once."""
    return F.relu6(input + 3) / 6


def silu(input: Tensor) -> Tensor:  # noqa: A002
    """`F.silu`, whose first derivative PyTorch rounds differently when it builds a graph."""
    return input * input.sigmoid()


def mish(input: Tensor) -> Tensor:  # noqa: A002
    """`F.mish`, likewise."""
    return input * F.softplus(input).tanh()


def prelu(input: Tensor, weight: Tensor) -> Tensor:  # noqa: A002
    """`F.prelu`, whose first and second derivatives in PyTorch disagree at 0; this follows the first."""
    slope = weight.reshape(-1, *[1] * (input.ndim - 2)) if input.ndim > 1 else weight
    return torch.where(input > 0, input, slope * input)


# -- normalizations -----------------------------------------------------------------------------------------------


def weight_norm(direction: Tensor, length: Tensor, dim: int = 0) -> Tensor:
    """`torch._weight_norm`, whose own second derivatives are wrong (torch 2.13)."""
    axes = [axis for axis in range(direction.ndim) if axis != dim]  # all for dim = -1
    return direction * (length / torch.linalg.vector_norm(direction, dim=axes, keepdim=True))


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """``[C]`` values, shaped to broadcast over ``[n, C, ...]``."""
    return values.view(1, -1, *[1] * (like.ndim - 2))


def _standardized(values: Tensor, axes: list[int], eps: float) -> Tensor:
    centred = values - values.mean(axes, keepdim=True)
    return centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()


def _affine(values: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        values = values * weight
    return values if bias is None else values + bias


def _layer_norm(
    input: Tensor,  # noqa: A002  # the names that callers of F.layer_norm use, here and below
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return _affine(_standardized(input, list(range(-len(normalized_shape), 0)), eps), weight, bias)


def _normalized_channels(
    values: Tensor, axes: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    weight, bias = (None if part is None else per_channel(part, values) for part in (weight, bias))
    return _affine(_standardized(values, axes, eps), weight, bias)


@in_training
def _batch_norm(call: BatchNorm) -> Tensor:
    axes = [axis for axis in range(call.input.ndim) if axis != 1]
    return _normalized_channels(call.input, axes, call.weight, call.bias, call.eps)


def _instance_norm(
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    return _normalized_channels(input, list(range(2, input.ndim)), weight, bias, eps)


def without_flag(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Adapt a rule for `F.layer_norm` or `F.group_norm` to `torch.layer_norm` or `torch.group_norm`.

    These take one more argument at the end, ``cudnn_enable`` or ``cudnn_enabled``.
    """

    def shortened(*args: Any, **named: Any) -> Any:
        return rule(*args[:5], **{name: value for name, value in named.items() if not name.startswith("cudnn")})

    return shortened


def as_in_torch(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Adapt a rule for `F.batch_norm` or `F.instance_norm` to the argument order of `torch.batch_norm`."""

    def reordered(
        input: Any,  # noqa: A002
        weight: Any,
        bias: Any,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        *options: Any,
    ) -> Any:
        return rule(input, running_mean, running_var, weight, bias, *options[:3])

    return reordered


_WRITTEN_OUT: dict[Callable[..., Any], Callable[..., Any]] = {
    F.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    torch.layer_norm: without_flag(_layer_norm),
    torch.batch_norm: as_in_torch(_batch_norm),
    torch.instance_norm: as_in_torch(_instance_norm),
    torch._weight_norm: weight_norm,
}
