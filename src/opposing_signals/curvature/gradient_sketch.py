"""Random projections of the gradients of single training points, from one backward pass a chunk.

A sketch S g_i of d numbers keeps inner products, (S g_i)·(S g_j) ≈ g_i·g_j, so it tells which points pull the weights
in opposite directions. For a weight matrix S is made of rank-one pieces r_k c_kᵀ of random signs: the gradient
Σ_l δ_l a_lᵀ is projected onto them as Σ_l (r_k·δ_l)(c_k·a_l), without being formed. The inner product is unbiased; its
standard deviation is at most 3/√d ‖g_i‖ ‖g_j‖ (and √(2/d) where all parameters are vectors).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opposing_signals.curvature.ghost_norms import BLOCK, LINEAR, NoRuleError, Rule, by_statistics
from opposing_signals.curvature.own_gradients import gradients_one_by_one, shapes_behind_examples, summed_over_uses
from opposing_signals.errors import InputError
from opposing_signals.risk import EmpiricalRisk


def gradient_sketch(risk: EmpiricalRisk, dimensions: int, seed: int = 0) -> Tensor:
    """S ∇ℓ_i(θ) of every training point, with the same S at every call.

    What ∇ℓ_i is under batch norm, and when the model must run more than once, see
    `opposing_signals.curvature.gradient_norms`.

    Args:
        risk: Evaluated at its θ, without a trace.
        dimensions: d, numbers that are kept of a gradient.
        seed: Of the signs.

    Returns:
        ``[N, d]``.

    Raises:
        InputError: d < 1; or a layer is random, or its gradient cannot be taken example by example.
    """
    if dimensions < 1:
        raise InputError(f"dimensions={dimensions}: expected at least 1 number of each gradient")
    projection = Projection(risk.parameters, dimensions, seed)
    try:
        shapes, rules = shapes_behind_examples(risk), projection.rules()
        return risk.assembled([summed_over_uses(risk, part, shapes, rules, (dimensions,)) for part in risk.parts()])
    except NoRuleError:
        return risk.assembled([_one_by_one(risk, part, projection) for part in risk.parts()])


def _one_by_one(risk: EmpiricalRisk, chunk: slice, projection: Projection) -> Tensor:
    pieces = [
        sum(projection(parameter, piece) for parameter, piece in zip(risk.parameters, gradients, strict=True))
        for gradients in gradients_one_by_one(risk, chunk)
    ]
    return torch.cat(pieces)  # type: ignore[arg-type]  # sums of tensors


class Projection:
    """S, tensor by tensor: signs for the first axis of a parameter, and signs for its other axes together.

    Args:
        parameters: θ.
        dimensions: d.
        seed: Of the signs; they do not depend on device and precision.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], dimensions: int, seed: int) -> None:
        self.dimensions = dimensions
        generator = torch.Generator().manual_seed(seed)
        self._signs: dict[int, tuple[Tensor, Tensor]] = {}
        for parameter in parameters:
            lengths = len(parameter) if parameter.ndim else 1, math.prod(parameter.shape[1:])
            rows, columns = (
                torch.randint(2, (length, dimensions), generator=generator, dtype=torch.int8).to(parameter) * 2 - 1
                for length in lengths
            )
            self._signs[id(parameter)] = (rows / math.sqrt(dimensions), columns)

    def signs(self, parameter: Tensor) -> tuple[Tensor, Tensor]:
        """``[p, d]`` r_k / √d and ``[P / p, d]`` c_k for a parameter of first axis p and P entries."""
        return self._signs[id(parameter)]

    def __call__(self, parameter: Tensor, gradients: Tensor) -> Tensor:
        """``[n, d]`` from ``[n, *parameter.shape]``."""
        rows, columns = self.signs(parameter)
        matrices = gradients.reshape(len(gradients), len(rows), len(columns))
        return ((matrices @ columns) * rows).sum(1)

    def rules(self) -> dict[Callable, Callable[..., Rule]]:
        """As `opposing_signals.curvature.ghost_norms.RULES`, with δ ``[n, ...]`` ↦ ``[n, d]``."""
        return {
            LINEAR: self._linear,
            torch.conv1d: partial(self._convolution, torch.conv1d),
            torch.conv2d: partial(self._convolution, torch.conv2d),
            torch.conv3d: partial(self._convolution, torch.conv3d),
            by_statistics: self._batch_norm,
            F.group_norm: self._group_norm,
            F.layer_norm: self._layer_norm,
            F.embedding: self._embedding,
            torch.add: self._sum,
            Tensor.add: self._sum,
            Tensor.expand: self._expansion,
        }

    def _linear(self, values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Rule:
        def sketch(slope: Tensor) -> Tensor:
            positions = slope[0].numel() // slope.shape[-1]
            return self._by_parts(of_part, values, slope, positions)

        def of_part(values: Tensor, slope: Tensor) -> Tensor:
            rows, columns = self.signs(weight)
            products = (values @ columns) * (slope @ rows)
            return products.flatten(1, -2).sum(1) if products.ndim > 2 else products

        return [(weight, sketch), (bias, partial(self._broadcast, bias))]

    def _convolution(
        self,
        function: Callable[..., Tensor],
        values: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Rule:
        """c_k·(patches of a) is a convolution of its own, with d channels a group."""

        def of_part(values: Tensor, slope: Tensor) -> Tensor:
            rows, columns = self.signs(weight)
            filters = columns.T.reshape(-1, *weight.shape[1:]).repeat(groups, *[1] * (weight.ndim - 1))
            patches = function(values, filters, None, stride, padding, dilation, groups).flatten(2)
            patches = patches.unflatten(1, (groups, -1))
            slopes = slope.flatten(2).unflatten(1, (groups, -1))
            return torch.einsum("ngdl,ngol,god->nd", patches, slopes, rows.unflatten(0, (groups, -1)))

        def sketch(slope: Tensor) -> Tensor:
            return self._by_parts(of_part, values, slope, groups * slope[0, 0].numel())

        def of_bias(slope: Tensor) -> Tensor:
            assert bias is not None
            return self(bias, slope.flatten(2).sum(2))

        return [(weight, sketch), (bias, of_bias)]

    def _batch_norm(
        self, values: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Rule:
        standardized = partial(by_statistics, mean=mean, inverse=inverse, weight=None, bias=None)
        return self._affine(slice(2, None), values, standardized, weight, bias)

    def _group_norm(
        self,
        values: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Rule:
        standardized = partial(F.group_norm, num_groups=num_groups, eps=eps)
        return self._affine(slice(2, None), values, standardized, weight, bias)

    def _layer_norm(
        self,
        values: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Rule:
        standardized = partial(F.layer_norm, normalized_shape=normalized_shape, eps=eps)
        return self._affine(slice(1, -len(normalized_shape)), values, standardized, weight, bias)

    def _affine(
        self,
        shared: slice,
        values: Tensor,
        standardized: Callable[[Tensor], Tensor],
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Rule:
        """y = weight x̂ + bias, where the entries along the axes ``shared`` have weight and bias in common."""

        def summed(parameter: Tensor, slope: Tensor) -> Tensor:
            axes = list(range(slope.ndim))[shared]
            return self(parameter, slope.sum(axes) if axes else slope)

        def of_weight(slope: Tensor) -> Tensor:
            assert weight is not None
            return summed(weight, slope * standardized(values.to(slope.dtype)))

        def of_bias(slope: Tensor) -> Tensor:
            assert bias is not None
            return summed(bias, slope)

        return [(weight, of_weight), (bias, of_bias)]

    def _embedding(
        self,
        rows: Tensor,
        weight: Tensor,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,  # noqa: ARG002  # of max_norm
        scale_grad_by_freq: bool = False,
        sparse: bool = False,  # noqa: ARG002  # the gradient's format
    ) -> Rule:
        if max_norm is not None or scale_grad_by_freq:
            raise NoRuleError

        def of_part(rows: Tensor, slope: Tensor) -> Tensor:
            of_row, columns = self.signs(weight)
            chosen = of_row[rows]
            if padding_idx is not None:
                chosen = chosen * (rows != padding_idx % len(weight))[..., None]
            return (chosen * (slope @ columns)).sum(1)

        def sketch(slope: Tensor) -> Tensor:
            positions = rows.reshape(len(rows), -1)
            return self._by_parts(of_part, positions, slope.reshape(*positions.shape, -1), positions.shape[1])

        return [(weight, sketch)]

    def _sum(self, values: Any, other: Any) -> Rule:
        return [(summand, partial(self._broadcast, summand)) for summand in (values, other)]

    def _expansion(self, values: Tensor, *sizes: Any) -> Rule:  # noqa: ARG002  # the slope has them
        return [(values, partial(self._broadcast, values))]

    def _broadcast(self, parameter: Any, slope: Tensor) -> Tensor:
        """For a parameter whose entries appear at several places of the output."""
        own = [1] * (slope.ndim - parameter.ndim) + list(parameter.shape)
        return self(parameter, slope.sum_to_size(len(slope), *own[1:]))

    def _by_parts(
        self, function: Callable[[Tensor, Tensor], Tensor], values: Tensor, slope: Tensor, positions: int
    ) -> Tensor:
        """``function`` of a few examples at a time, so that d numbers a position stay a small tensor."""
        part = max(1, BLOCK[values.device.type] // (positions * self.dimensions))
        pieces = zip(values.split(part), slope.split(part), strict=True)
        return torch.cat([function(v.to(slope.dtype) if v.is_floating_point() else v, s) for v, s in pieces])
