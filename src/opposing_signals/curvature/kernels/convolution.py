"""Convolutions whose derivatives are convolutions of the same kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from opposing_signals.curvature.any_order import per_channel
from opposing_signals.curvature.kernels.batch_norm import slope_through_batch_norm

aten = torch.ops.aten


class _Geometry(NamedTuple):
    """Arguments of `aten.convolution` after input, weight and bias; never transposed."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def convolve(self, values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        origin = [0] * len(self.stride)
        return aten.convolution(
            values, weight, bias, self.stride, self.padding, self.dilation, False, origin, self.groups
        )

    def backward(
        self, slope: Tensor, values: Tensor, weight: Tensor, bias: list[int] | None, mask: list[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Derivatives in values, weight and bias, where ``mask`` asks for them; ``bias`` is its shape."""
        origin = [0] * len(self.stride)
        return aten.convolution_backward(
            slope, values, weight, bias, self.stride, self.padding, self.dilation, False, origin, self.groups, mask
        )


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.geometry, ctx.bias = geometry, None if bias is None else list(bias.shape)
        return geometry.convolve(values, weight, bias)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        mask = list(ctx.needs_input_grad[:3])
        return *_ConvolutionBackward.apply(slope, values, weight, ctx.bias, ctx.geometry, mask), None


class _ConvolutionBackward(Function):
    """(g, x, W) ↦ (∂x, ∂W, ∂b): each is bilinear, so its derivatives are convolutions of the same kind.

    A g that comes out of a batch norm is not stored but recomputed from what the batch norm stores: storing it would
    take a quarter of the graph's memory, and it is one linear combination.
    """

    @staticmethod
    def forward(
        ctx: Any, slope: Tensor, values: Tensor, weight: Tensor, bias: Any, geometry: _Geometry, mask: list[bool]
    ) -> Any:
        ctx.set_materialize_grads(False)
        origin = getattr(slope, "origin", None)
        ctx.geometry, ctx.is_normalized = geometry, origin is not None
        ctx.save_for_backward(values, weight, *([slope] if origin is None else origin))
        return geometry.backward(slope, values, weight, bias, mask)

    @staticmethod
    def backward(
        ctx: Any, values_dual: Tensor | None, weight_dual: Tensor | None, bias_dual: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        values, weight, *origin = ctx.saved_tensors
        slope = slope_through_batch_norm(*origin) if ctx.is_normalized else origin[0]
        needs_slope, needs_values, needs_weight = ctx.needs_input_grad[:3]
        in_slope = in_values = in_weight = None
        if values_dual is not None:
            if needs_slope:
                in_slope = ctx.geometry.convolve(values_dual, weight)
            if needs_weight:
                in_weight = ctx.geometry.backward(slope, values_dual, weight, None, [False, True, False])[1]
        if weight_dual is not None:
            if needs_slope:
                image = ctx.geometry.convolve(values, weight_dual)
                in_slope = image if in_slope is None else in_slope.add_(image)
            if needs_values:
                in_values = ctx.geometry.backward(slope, values, weight_dual, None, [True, False, False])[0]
        if bias_dual is not None and needs_slope:
            constant = per_channel(bias_dual, slope).expand_as(slope)
            in_slope = constant.clone() if in_slope is None else in_slope.add_(constant)
        return in_slope, in_values, in_weight, None, None, None


def of_each_axis(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    """Stride, padding or dilation with one number per axis, from one number for all axes or one for each."""
    return (value,) * dimensions if isinstance(value, int) else tuple(value) * (dimensions // len(value))


def convolution_of(native: Callable[..., Tensor], dimensions: int) -> Callable[..., Tensor]:
    """``native`` with these derivatives: `torch.conv1d`, `torch.conv2d` or `torch.conv3d`, by ``dimensions``."""

    def convolution(
        input: Tensor,  # noqa: A002  # the name that callers of F.conv2d use
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if isinstance(padding, str) or input.ndim != dimensions + 2:
            return native(input, weight, bias, stride, padding, dilation, groups)

        strides, paddings, dilations = (of_each_axis(value, dimensions) for value in (stride, padding, dilation))
        geometry = _Geometry(strides, paddings, dilations, groups)
        return _Convolution.apply(input, weight, bias, geometry)

    return convolution
