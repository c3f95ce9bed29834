"""Rules for PyTorch's functions on jets, where nested forward mode is slow or wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opposing_signals.curvature.any_order import (
    as_in_torch,
    hard_sigmoid,
    mish,
    prelu,
    silu,
    weight_norm,
    without_flag,
)
from opposing_signals.curvature.taylor.arithmetic import add, bilinear, linear_map, multiply, subtract
from opposing_signals.curvature.taylor.jet import COMPOSED, RULES, Jet, constant
from opposing_signals.curvature.taylor.normalization import batch_norm, group_norm, instance_norm, layer_norm

aten = torch.ops.aten


def _affine(function: Callable[..., Tensor], axes: int) -> Callable[..., Jet]:
    """Linear layers and convolutions over ``axes`` spatial axes: bilinear in input and weight, plus a bias."""

    def rule(
        input: Any,  # noqa: A002  # the name that callers use
        weight: Any,
        bias: Any = None,
        *options: Any,
        **named: Any,
    ) -> Jet:
        result = bilinear(lambda x, w: function(x, w, None, *options, **named), input, weight)
        if bias is None:
            return result
        return add(result, linear_map(lambda b: b.view(-1, *[1] * axes), bias))

    return rule


def _relu(input: Jet, inplace: bool = False) -> Jet:  # noqa: A002, ARG001
    x0, *rest = input.coefficients
    # The derivative's own kernel is one pass; a product with a mask converts the mask first.
    return Jet(x0.clamp_min(0), *(None if part is None else aten.threshold_backward(part, x0, 0) for part in rest))


def _embedding(
    input: Tensor,  # noqa: A002
    weight: Any,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,  # noqa: ARG001  # like the next, affects only the gradient
    sparse: bool = False,  # noqa: ARG001
) -> Jet:
    if max_norm is not None:  # renormalizes the weights, but not a direction
        torch.embedding_renorm_(constant(weight), input, max_norm, norm_type)
    if padding_idx is not None and isinstance(weight, Jet):  # training never moves that row
        first, *rest = weight.coefficients
        row = torch.tensor([padding_idx % len(first)], device=first.device)
        weight = Jet(first, *(None if part is None else part.index_fill(0, row, 0) for part in rest))
    return linear_map(lambda rows: F.embedding(input, rows), weight)


def _max_pool(input: Jet, *options: Any, **named: Any) -> Jet:  # noqa: A002
    named.pop("return_indices", None)
    x0, *rest = input.coefficients
    largest, indices = F.max_pool2d(x0, *options, **named, return_indices=True)

    def chosen(part: Tensor) -> Tensor:
        return part.flatten(-2).gather(-1, indices.flatten(-2)).view_as(indices)

    return Jet(largest, *(None if part is None else chosen(part) for part in rest))


def _gated(values: Any, dim: int = -1) -> Any:
    first, second = values.chunk(2, dim)
    return first * second.sigmoid()


def _huber(
    input: Any,  # noqa: A002
    target: Any,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Any:
    losses = F.smooth_l1_loss(input, target, reduction="none", beta=delta) * delta
    return _reduced(losses if weight is None else losses * weight, reduction)


def _soft_margin(
    input: Any,  # noqa: A002
    target: Any,
    size_average: None = None,  # noqa: ARG001  # deprecated, like `reduce`
    reduce: None = None,  # noqa: ARG001
    reduction: str = "mean",
) -> Any:
    return _reduced(F.softplus(-input * target), reduction)


def _reduced(losses: Any, reduction: str) -> Any:
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


RULES.update(
    {
        torch.conv1d: _affine(torch.conv1d, 1),
        torch.conv2d: _affine(torch.conv2d, 2),
        torch.conv3d: _affine(torch.conv3d, 3),
        F.linear: _affine(F.linear, 0),
        torch.matmul: lambda a, b: bilinear(torch.matmul, a, b),
        Tensor.matmul: lambda a, b: bilinear(torch.matmul, a, b),
        torch.add: add,
        Tensor.add: add,
        torch.sub: subtract,
        Tensor.sub: subtract,
        torch.mul: multiply,
        Tensor.mul: multiply,
        torch.relu: _relu,
        F.relu: _relu,
        Tensor.relu: _relu,
        F.embedding: _embedding,
        F.max_pool2d: _max_pool,
        torch.max_pool2d: _max_pool,
        F.batch_norm: batch_norm,
        F.layer_norm: layer_norm,
        F.group_norm: group_norm,
        F.instance_norm: instance_norm,
        torch.batch_norm: as_in_torch(batch_norm),
        torch.layer_norm: without_flag(layer_norm),
        torch.group_norm: without_flag(group_norm),
        torch.instance_norm: as_in_torch(instance_norm),
    }
)
# Functions whose second derivatives PyTorch lacks in forward mode, or gets different, composed of others.
COMPOSED.update(
    {
        F.silu: lambda x, **_: silu(x),
        F.mish: lambda x, **_: mish(x),
        F.hardsigmoid: lambda x, **_: hard_sigmoid(x),
        F.prelu: prelu,
        F.glu: _gated,
        F.huber_loss: _huber,
        F.soft_margin_loss: _soft_margin,
        torch._weight_norm: weight_norm,
    }
)
