"""Squared per-example gradient norms in the parameters of one layer, without forming the gradients.

The gradient of one example in the weight of a linear map is the outer product δ aᵀ of the map's input a and of the
loss's derivative δ in its output, so its norm is ‖δ‖ ‖a‖ (Goodfellow 2015). A map applied at several positions l
(tokens, or patches of an image) has the gradient Σ_l δ_l a_lᵀ, with the squared norm Σ_lm (δ_l·δ_m)(a_l·a_m), the
"ghost norm" of Li et al. (2022).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from opposing_signals.curvature.kernels.convolution import of_each_axis
from opposing_signals.curvature.layer_rules import Convolution, NoRuleError, Reading, by_parts

aten = torch.ops.aten


class SquaredNorm(Reading):
    """‖∇ℓ_i‖², one number per example."""

    def of_entries(self, parameter: Tensor, gradients: Tensor) -> Tensor:  # noqa: ARG002  # any parameter
        """The sum of squared entries."""
        return gradients.square().reshape(len(gradients), -1).sum(1)

    def of_linear(self, weight: Tensor, values: Tensor, slope: Tensor) -> Tensor:
        """The product of two norms, or the ghost norm."""
        if slope.ndim == 2:
            lengths = torch.linalg.vector_norm(values, dim=1, dtype=slope.dtype)
            return (lengths * torch.linalg.vector_norm(slope, dim=1)).square()
        return by_parts(_outer_squares, values.flatten(1, -2), slope.flatten(1, -2), size=weight.numel())

    def of_convolution(self, weight: Tensor, values: Tensor, slope: Tensor, convolution: Convolution) -> Tensor:
        """By one grouped convolution, or by Gram matrices of the patches.

        Measured on a CPU: a grouped convolution takes half the time of unfolding and multiplying patches, and as long
        as their Gram matrices where these need half the multiplications.
        """
        kernel = weight.shape[2:]
        stride, padding, dilation = _sizes(convolution, kernel)

        def unfolded(values: Tensor, slope: Tensor) -> Tensor:
            patches = F.unfold(values, kernel, dilation, padding, stride)
            return _outer_squares(patches.transpose(1, 2), slope.flatten(2).transpose(1, 2))

        def grouped(values: Tensor, slope: Tensor) -> Tensor:
            """Weight gradients of many examples as that of one convolution with one group per example."""
            examples, channels = slope.shape[:2]
            weights = values.new_empty(examples * channels, *weight.shape[1:])
            values, slope = values.reshape(1, -1, *values.shape[2:]), slope.reshape(1, -1, *slope.shape[2:])
            geometry = stride, padding, dilation, False, [0] * len(kernel), examples * convolution.groups
            gradient = aten.convolution_backward(slope, values, weights, None, *geometry, [False, True, False])[1]
            return gradient.view(examples, -1).square().sum(1)

        positions, outputs, inputs = slope[0, 0].numel(), len(weight), weight[0].numel()
        is_gram_cheaper = 2 * positions * (outputs + inputs) < outputs * inputs
        if len(kernel) == 2 and convolution.groups == 1 and (is_gram_cheaper or slope.device.type != "cpu"):
            return by_parts(unfolded, values, slope, size=positions * inputs)
        return by_parts(grouped, values, slope, size=weight.numel() + values[0].numel())

    def of_embedding(self, weight: Tensor, rows: Tensor, slope: Tensor) -> Tensor:  # noqa: ARG002  # any table
        """Gradients at positions with the same row are summed before they are squared."""

        def of_part(rows: Tensor, slope: Tensor) -> Tensor:
            is_same = rows[:, :, None] == rows[:, None, :]
            return (torch.bmm(slope, slope.transpose(1, 2)) * is_same).sum((1, 2))

        return by_parts(of_part, rows, slope, size=rows.shape[1] ** 2)


def _sizes(convolution: Convolution, kernel: torch.Size) -> tuple[tuple[int, ...], ...]:
    """Stride, padding and dilation, a number for each axis.

    Raises:
        NoRuleError: The padding is not the same on both sides.
    """

    axes = len(kernel)
    stride, dilation = of_each_axis(convolution.stride, axes), of_each_axis(convolution.dilation, axes)
    padding = convolution.padding
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        if any(both_sides % 2 for both_sides in total):
            raise NoRuleError
        padding = [both_sides // 2 for both_sides in total]
    return stride, of_each_axis(padding, axes), dilation


def _outer_squares(values: Tensor, slope: Tensor) -> Tensor:
    """‖Σ_l δ_l a_lᵀ‖² from a ``[n, L, K]`` and δ ``[n, L, O]``, by the matrix or by Gram matrices."""
    positions, inputs, outputs = values.shape[1], values.shape[2], slope.shape[2]
    if positions * (inputs + outputs) < inputs * outputs:
        products = torch.bmm(values, values.transpose(1, 2)) * torch.bmm(slope, slope.transpose(1, 2))
        return products.sum((1, 2))
    return torch.bmm(slope.transpose(1, 2), values).square().sum((1, 2))
