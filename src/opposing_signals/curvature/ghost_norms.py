"""Squared norms of single examples' gradients in the parameters of one layer, without the gradients.

The gradient of one example in the weight of a linear map is the outer product δ aᵀ of the map's input a and of the
loss's derivative δ in its output, so its norm is ‖δ‖ ‖a‖ (Goodfellow 2015). A map that is used at several positions l,
tokens or patches of an image, has the gradient Σ_l δ_l a_lᵀ, with the squared norm Σ_lm (δ_l·δ_m)(a_l·a_m), the "ghost
norm" of Li et al. (2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten

BLOCK = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Numbers that a temporary tensor may hold: small enough for a CPU's cache, large enough to fill a GPU."""

Rule = list[tuple[Tensor | None, Callable[[Tensor], Tensor]]]
"""The tensors that a call uses, each with δ ``[n, ...]`` ↦ ``[n]`` squared norms of the examples' gradients in it."""


class NoRuleError(Exception):
    """A parameter is shared, or used in a way for which there is no rule here."""


def _linear(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Rule:
    def squares(slope: Tensor) -> Tensor:
        if slope.ndim == 2:
            lengths = torch.linalg.vector_norm(values, dim=1, dtype=slope.dtype)
            return (lengths * torch.linalg.vector_norm(slope, dim=1)).square()
        return _by_parts(_outer_squares, values.flatten(1, -2), slope.flatten(1, -2), size=weight.numel())

    return [(weight, squares), (bias, partial(_sum_squares, slice(1, -1)))]


def _convolution(
    values: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Rule:
    kernel = weight.shape[2:]

    def sizes(value: Any) -> list[int]:
        return [value] * len(kernel) if isinstance(value, int) else list(value) * (len(kernel) // len(value))

    stride, dilation = sizes(stride), sizes(dilation)
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        if any(both_sides % 2 for both_sides in total):
            raise NoRuleError
        padding = [both_sides // 2 for both_sides in total]
    padding = sizes(padding)

    def unfolded(values: Tensor, slope: Tensor) -> Tensor:
        patches = F.unfold(values, kernel, dilation, padding, stride)
        return _outer_squares(patches.transpose(1, 2), slope.flatten(2).transpose(1, 2))

    def grouped(values: Tensor, slope: Tensor) -> Tensor:
        """Weight gradients of many examples as that of one convolution with a group for each."""
        examples, channels = slope.shape[:2]
        weights = values.new_empty(examples * channels, *weight.shape[1:])
        values, slope = values.reshape(1, -1, *values.shape[2:]), slope.reshape(1, -1, *slope.shape[2:])
        geometry = stride, padding, dilation, False, [0] * len(kernel), examples * groups
        gradient = aten.convolution_backward(slope, values, weights, None, *geometry, [False, True, False])[1]
        return gradient.view(examples, -1).square().sum(1)

    def squares(slope: Tensor) -> Tensor:
        # Measured on a CPU: a grouped convolution takes half the time of unfolding and multiplying patches, and
        # that of their Gram matrices where these need half the multiplications.
        positions, outputs, inputs = slope[0, 0].numel(), len(weight), weight[0].numel()
        is_gram_cheaper = 2 * positions * (outputs + inputs) < outputs * inputs
        if len(kernel) == 2 and groups == 1 and (is_gram_cheaper or slope.device.type != "cpu"):
            return _by_parts(unfolded, values, slope, size=positions * inputs)
        return _by_parts(grouped, values, slope, size=weight.numel() + values[0].numel())

    return [(weight, squares), (bias, partial(_sum_squares, slice(2, None)))]


def by_statistics(values: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Batch norm: (x − mean) x inverse x weight + bias, a channel at a time."""
    scale = inverse if weight is None else inverse * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    channels = (1, -1, *[1] * (values.ndim - 2))
    return torch.addcmul(shift.view(channels), values, scale.view(channels))


def with_constant_statistics(
    values: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor | None, ...]:
    """Arguments of `F.batch_norm` as those of `by_statistics`."""
    if training:
        _, mean, inverse = torch.native_batch_norm(values.detach(), None, None, None, None, True, momentum, eps)
    else:
        assert running_mean is not None
        assert running_var is not None
        mean, inverse = running_mean, torch.rsqrt(running_var + eps)
    return values, mean, inverse, weight, bias


def _batch_norm(values: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None) -> Rule:
    standardized = partial(by_statistics, mean=mean, inverse=inverse, weight=None, bias=None)
    return _affine(slice(2, None), values, standardized, weight, bias)


def _group_norm(
    values: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Rule:
    standardized = partial(F.group_norm, num_groups=num_groups, eps=eps)
    return _affine(slice(2, None), values, standardized, weight, bias)


def _layer_norm(
    values: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Rule:
    standardized = partial(F.layer_norm, normalized_shape=normalized_shape, eps=eps)
    return _affine(slice(1, -len(normalized_shape)), values, standardized, weight, bias)


def _affine(
    shared: slice, values: Tensor, standardized: Callable[[Tensor], Tensor], weight: Tensor | None, bias: Tensor | None
) -> Rule:
    """y = weight x̂ + bias, where the entries along the axes ``shared`` have weight and bias in common."""

    def of_part(values: Tensor, slope: Tensor) -> Tensor:
        return _sum_squares(shared, slope * standardized(values))

    def squares(slope: Tensor) -> Tensor:
        return _by_parts(of_part, values, slope, size=values[0].numel())

    return [(weight, squares), (bias, partial(_sum_squares, shared))]


def _embedding(
    rows: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,  # noqa: ARG001  # of max_norm
    scale_grad_by_freq: bool = False,
    sparse: bool = False,  # noqa: ARG001  # the gradient's format
) -> Rule:
    if max_norm is not None or scale_grad_by_freq:
        raise NoRuleError

    def of_part(rows: Tensor, slope: Tensor) -> Tensor:
        """Positions with the same row add up before they are squared."""
        is_same = rows[:, :, None] == rows[:, None, :]
        if padding_idx is not None:
            is_same &= (rows != padding_idx % len(weight))[:, :, None]
        return (torch.bmm(slope, slope.transpose(1, 2)) * is_same).sum((1, 2))

    def squares(slope: Tensor) -> Tensor:
        positions = rows.reshape(len(rows), -1)
        return _by_parts(of_part, positions, slope.reshape(*positions.shape, -1), size=positions.shape[1] ** 2)

    return [(weight, squares)]


def _sum(values: Any, other: Any) -> Rule:
    return [(summand, partial(_broadcast_squares, summand)) for summand in (values, other)]


def _expansion(values: Tensor, *sizes: Any) -> Rule:  # noqa: ARG001  # the slope has them
    return [(values, partial(_broadcast_squares, values))]


LINEAR = F.linear  # `F.linear` is patched while `nn.MultiheadAttention` runs

RULES: dict[Callable, Callable[..., Rule]] = {
    LINEAR: _linear,
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    torch.conv3d: _convolution,
    by_statistics: _batch_norm,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
    F.embedding: _embedding,
    torch.add: _sum,
    Tensor.add: _sum,
    Tensor.expand: _expansion,
}
"""Functions with the rules that take their arguments; the first axis of input and output is the example."""


def _by_parts(function: Callable[[Tensor, Tensor], Tensor], values: Tensor, slope: Tensor, size: int) -> Tensor:
    """``function`` of a few examples at a time, so that temporary tensors of ``size`` numbers an example stay small."""
    part = max(1, BLOCK[values.device.type] // size)
    pieces = zip(values.split(part), slope.split(part), strict=True)
    return torch.cat([function(v.to(slope.dtype) if v.is_floating_point() else v, s) for v, s in pieces])


def _outer_squares(values: Tensor, slope: Tensor) -> Tensor:
    """‖Σ_l δ_l a_lᵀ‖² from a ``[n, L, K]`` and δ ``[n, L, O]``, by the matrix or by Gram matrices."""
    positions, inputs, outputs = values.shape[1], values.shape[2], slope.shape[2]
    if positions * (inputs + outputs) < inputs * outputs:
        products = torch.bmm(values, values.transpose(1, 2)) * torch.bmm(slope, slope.transpose(1, 2))
        return products.sum((1, 2))
    return torch.bmm(slope.transpose(1, 2), values).square().sum((1, 2))


def _sum_squares(shared: slice, slope: Tensor) -> Tensor:
    """‖Σ δ‖² of each example, the sum over the axes ``shared``."""
    axes = list(range(slope.ndim))[shared]
    sums = slope.sum(axes) if axes else slope
    return sums.square().flatten(1).sum(1)


def _broadcast_squares(parameter: Tensor, slope: Tensor) -> Tensor:
    """‖Σ δ‖² of each example for a parameter whose entries appear at several places of the output."""
    own = [1] * (slope.ndim - parameter.ndim) + list(parameter.shape)
    return slope.sum_to_size(len(slope), *own[1:]).square().flatten(1).sum(1)
