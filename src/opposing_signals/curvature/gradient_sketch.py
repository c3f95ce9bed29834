"""Random projections of per-example gradients, from one backward pass per chunk.

A sketch S g_i of d numbers preserves inner products, (S g_i)·(S g_j) ≈ g_i·g_j, so it shows which points pull the
weights in opposite directions. For a weight matrix, S consists of rank-one pieces r_k c_kᵀ of random signs: the
gradient Σ_l δ_l a_lᵀ is projected onto them as Σ_l (r_k·δ_l)(c_k·a_l), without being formed. The inner product is
unbiased; its standard deviation is at most 3/√d ‖g_i‖ ‖g_j‖ (and √(2/d) where all parameters are vectors).
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from opposing_signals.curvature.examples import check_independence
from opposing_signals.curvature.finite_differences import Claim, check
from opposing_signals.curvature.layer_rules import Convolution, Reading, by_parts
from opposing_signals.curvature.own_gradients import gradients_by_plain_autograd, read_off
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError


def gradient_sketch(risk: EmpiricalRisk, dimensions: int, seed: int = 0) -> Tensor:
    """S ∇ℓ_i(θ) of every training point, with the same S at every call.

    See `opposing_signals.curvature.gradient_norms` for what ∇ℓ_i is under batch norm, and for when the model must run
    more than once.

    Args:
        risk: Evaluated at its θ, and left unchanged.
        dimensions: d, the length of a sketch.
        seed: Of the signs.

    Returns:
        ``[N, d]``.

    Raises:
        InputError: d < 1; or as in `gradient_norms`.
    """
    if dimensions < 1:
        raise InputError(f"dimensions={dimensions}: expected at least 1 number of each gradient")
    check_independence(risk)
    check(risk, "gradient_sketch", partial(_claims, dimensions=dimensions, seed=seed))
    return read_off(risk, Projection(risk.parameters, dimensions, seed))


def _claims(few: EmpiricalRisk, _: Tensor, dimensions: int, seed: int) -> Generator[Claim]:
    projection = Projection(few.parameters, dimensions, seed)
    rows = zip(*(few.unflatten(row) for row in gradients_by_plain_autograd(few)), strict=True)
    pieces = [projection.of_entries(p, torch.stack(own)) for p, own in zip(few.parameters, rows, strict=True)]
    sketch = torch.stack(pieces).sum(0)
    measured = read_off(few, projection)[: len(sketch)]
    yield Claim("gradient sketch", measured, lambda _: sketch, is_derivative=False)


class Projection(Reading):
    """S, tensor by tensor: signs for the first axis of a parameter, and signs for its other axes together.

    Args:
        parameters: θ.
        dimensions: d.
        seed: Of the signs; they do not depend on device and precision.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], dimensions: int, seed: int) -> None:
        self.width = (dimensions,)
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

    def of_entries(self, parameter: Tensor, gradients: Tensor) -> Tensor:
        """Σ of the gradient's entries, each with the signs of its row and of its column."""
        rows, columns = self.signs(parameter)
        matrices = gradients.reshape(len(gradients), len(rows), len(columns))
        return ((matrices @ columns) * rows).sum(1)

    def of_linear(self, weight: Tensor, values: Tensor, slope: Tensor) -> Tensor:
        """Σ_l (r_k·δ_l)(c_k·a_l)."""
        rows, columns = self.signs(weight)

        def of_part(values: Tensor, slope: Tensor) -> Tensor:
            products = (values @ columns) * (slope @ rows)
            return products.flatten(1, -2).sum(1) if products.ndim > 2 else products

        return by_parts(of_part, values, slope, self._size(slope[0].numel() // slope.shape[-1]))

    def of_convolution(self, weight: Tensor, values: Tensor, slope: Tensor, convolution: Convolution) -> Tensor:
        """c_k·(patches of a) is a convolution of its own, with d channels per group."""
        rows, columns = self.signs(weight)
        groups = convolution.groups
        filters = columns.T.reshape(-1, *weight.shape[1:]).repeat(groups, *[1] * (weight.ndim - 1))
        geometry = convolution.stride, convolution.padding, convolution.dilation, groups

        def of_part(values: Tensor, slope: Tensor) -> Tensor:
            patches = convolution.function(values, filters, None, *geometry).flatten(2).unflatten(1, (groups, -1))
            slopes = slope.flatten(2).unflatten(1, (groups, -1))
            return torch.einsum("ngdl,ngol,god->nd", patches, slopes, rows.unflatten(0, (groups, -1)))

        return by_parts(of_part, values, slope, self._size(groups * slope[0, 0].numel()))

    def of_embedding(self, weight: Tensor, rows: Tensor, slope: Tensor) -> Tensor:
        """As for a linear map with one-hot inputs."""
        of_row, columns = self.signs(weight)

        def of_part(rows: Tensor, slope: Tensor) -> Tensor:
            return (of_row[rows] * (slope @ columns)).sum(1)

        return by_parts(of_part, rows, slope, self._size(rows.shape[1]))

    def _size(self, positions: int) -> int:
        """d numbers per position."""
        return positions * self.width[0]
