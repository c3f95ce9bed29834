"""Extreme eigenpairs of a symmetric operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Products = Callable[[Tensor], Tensor]
"""``[k, P]`` vectors ↦ ``[k, P]`` products with a symmetric matrix."""

Finish = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``[k, P]`` unit vectors ↦ more exact products, and ``[k]`` float64 estimates of their errors."""

Which = Literal["largest", "smallest", "magnitude"]


@dataclass(frozen=True)
class Eigenpairs:
    """Ritz pairs and their error bounds, in the order that was asked for.

    Attributes:
        values: ``[k]`` float64, eigenvalues λ_j: Rayleigh quotients, corrected by their residuals. The other fields are
            in this order too.
        quotients: ``[k]`` float64, Rayleigh quotients q_j = v_jᵀHv_j.
        vectors: ``[k, P]``, orthonormal.
        residuals: ``[k]`` float64, ‖Hv_j − q_j v_j‖; some eigenvalue of H lies within it of q_j.
        products: Matrix-vector products spent.
        bound: Bound that no eigenvalue exceeds (in absolute value; for the smallest: falls below), with 99% probability
            if this call has looked from a random vector. If not, what is not followed is assumed to have grown since
            the last look by a tenth, or like λ_1 with its latest rise once more, if that is more. NaN before a look.
        error: Further error of λ, from inexact products; included in the bound.
    """

    values: Tensor
    quotients: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int
    bound: float = math.nan
    error: float = 0.0

    @property
    def value(self) -> float:
        """λ of the first pair."""
        return float(self.values[0])

    @property
    def quotient(self) -> float:
        """vᵀHv of the first pair."""
        return float(self.quotients[0])

    @property
    def vector(self) -> Tensor:
        """``[P]``, v of the first pair."""
        return self.vectors[0]

    @property
    def residual(self) -> float:
        """‖Hv − qv‖ of the first pair."""
        return float(self.residuals[0])


def power_iteration(products: Products, start: Tensor, tolerance: float = 0.03, max_products: int = 100) -> Eigenpairs:
    """The eigenpair largest in absolute value by power iteration: the simple alternative, for comparison.

    Its convergence rate is the ratio of the two largest eigenvalues. It discards the Krylov space, and finds a negative
    eigenvalue where that is the larger in absolute value.

    Args:
        products: The operator.
        start: ``[P]``.
        tolerance: As in `EigenTracker`.
        max_products: Stop after this many.
    """
    vector = start / start.norm()
    for spent in range(1, max_products + 1):
        image = products(vector[None])[0]
        value = (vector @ image).double()
        residual = (image - value.to(image) * vector).norm().double()
        if residual <= tolerance * value.abs() or spent == max_products:
            break
        vector = image / image.norm()
    return Eigenpairs(value[None], value[None], vector[None], residual[None], spent)


def wanted(values: Tensor, which: Which) -> Tensor:
    """Sort key: larger is wanted more."""
    return {"largest": values, "smallest": -values, "magnitude": values.abs()}[which]


def ranked(values: Tensor, which: Which) -> Tensor:
    """Positions of the values, the most wanted first."""
    return wanted(values, which).argsort(descending=True)
