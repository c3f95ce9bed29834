"""Per-example gradients of the parameters of each kind of layer.

A `Reading` is a quantity computed from such a gradient: its squared norm (`ghost_norms`), or a random projection
(`gradient_sketch`). Both are computed from a layer's inputs a and the loss's derivatives δ in its outputs, without
forming the gradient where it is large.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opposing_signals.curvature.normalization import by_statistics

BLOCK = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Size limit of temporary tensors, in numbers: small enough for a CPU's cache, large enough to fill a GPU."""

Rule = list[tuple[Any, Callable[[Tensor], Tensor]]]
"""The tensors that a call uses, each with δ ``[n, ...]`` ↦ ``[n, *width]``, the reading of its gradients."""

LINEAR = F.linear  # `F.linear` is patched while `nn.MultiheadAttention` runs


class NoRuleError(Exception):
    """A parameter is shared, or used in a way for which there is no rule here."""


@dataclass(frozen=True)
class Convolution:
    """``function(values, weight, None, *geometry)`` with a weight ``[O, K, ...]``.

    Attributes:
        function: `torch.conv1d`, `torch.conv2d` or `torch.conv3d`.
        stride: As torch takes it.
        padding: As torch takes it.
        dilation: As torch takes it.
        groups: Of channels.
    """

    function: Callable[..., Tensor]
    stride: Any
    padding: Any
    dilation: Any
    groups: int


class Reading(ABC):
    """A quantity of each example's own gradient, computed from the uses of parameters.

    Every method gives ``[n, *width]`` for n examples; results of several uses and parameters add up.
    """

    width: tuple[int, ...] = ()
    """Shape of the result for one example."""

    @abstractmethod
    def of_entries(self, parameter: Tensor, gradients: Tensor) -> Tensor:
        """From given gradients ``[n, *parameter.shape]``."""

    @abstractmethod
    def of_linear(self, weight: Tensor, values: Tensor, slope: Tensor) -> Tensor:
        """Σ_l δ_l a_lᵀ of a weight ``[O, K]``, from a ``[n, ..., K]`` and δ ``[n, ..., O]``."""

    @abstractmethod
    def of_convolution(self, weight: Tensor, values: Tensor, slope: Tensor, convolution: Convolution) -> Tensor:
        """Of a convolution's weight, from a ``[n, C, ...]`` and δ ``[n, O, ...]``."""

    @abstractmethod
    def of_embedding(self, weight: Tensor, rows: Tensor, slope: Tensor) -> Tensor:
        """Of a table of rows, from the rows used ``[n, L]`` and δ ``[n, L, E]``."""

    def rules(self) -> Mapping[Callable[..., Any], Callable[..., Rule]]:
        """Functions ↦ rules with the same arguments; the first axis of input and output is the example."""
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
        return [(weight, partial(self.of_linear, weight, values)), (bias, partial(self._broadcast, bias))]

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
        convolution = Convolution(function, stride, padding, dilation, groups)
        return [
            (weight, lambda slope: self.of_convolution(weight, values, slope, convolution)),
            (bias, partial(self._summed, bias, slice(2, None))),
        ]

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
        """y = weight x̂ + bias, where all entries along the axes ``shared`` have the same weight and bias."""

        def of_part(values: Tensor, slope: Tensor) -> Tensor:
            return self._summed(weight, shared, slope * standardized(values))

        def of_weight(slope: Tensor) -> Tensor:
            return by_parts(of_part, values, slope, size=values[0].numel())

        return [(weight, of_weight), (bias, partial(self._summed, bias, shared))]

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

        def of_weight(slope: Tensor) -> Tensor:
            positions = rows.reshape(len(rows), -1)
            slope = slope.reshape(*positions.shape, -1)
            if padding_idx is not None:
                slope = slope * (positions != padding_idx % len(weight))[..., None]
            return self.of_embedding(weight, positions, slope)

        return [(weight, of_weight)]

    def _sum(self, values: Any, other: Any) -> Rule:
        return [(summand, partial(self._broadcast, summand)) for summand in (values, other)]

    def _expansion(self, values: Tensor, *sizes: Any) -> Rule:  # noqa: ARG002  # the slope has them
        return [(values, partial(self._broadcast, values))]

    def _summed(self, parameter: Any, shared: slice, slope: Tensor) -> Tensor:
        """For a parameter whose gradient is Σ δ over the axes ``shared``."""
        axes = list(range(slope.ndim))[shared]
        return self.of_entries(parameter, slope.sum(axes) if axes else slope)

    def _broadcast(self, parameter: Any, slope: Tensor) -> Tensor:
        """For a parameter whose entries appear at several places of the output."""
        own = [1] * (slope.ndim - parameter.ndim) + list(parameter.shape)
        return self.of_entries(parameter, slope.sum_to_size(len(slope), *own[1:]))


def by_parts(function: Callable[[Tensor, Tensor], Tensor], values: Tensor, slope: Tensor, size: int) -> Tensor:
    """``function`` on a few examples at a time, which keeps temporary tensors of ``size`` numbers per example small."""
    part = max(1, BLOCK[values.device.type] // size)
    pieces = zip(values.split(part), slope.split(part), strict=True)
    return torch.cat([function(v.to(slope.dtype) if v.is_floating_point() else v, s) for v, s in pieces])
