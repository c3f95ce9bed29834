"""Sums and products of jets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from opposing_signals.curvature.taylor.jet import Jet, coefficients_of


def added(terms: Sequence[Tensor | None]) -> Tensor | None:
    """Sum of the terms that are not zero; the first may be overwritten."""
    present = [term for term in terms if term is not None]
    if not present:
        return None
    total = present[0]
    for term in present[1:]:
        total = total.add_(term) if total.shape == term.shape else total + term
    return total


def bilinear(product: Callable[[Tensor, Tensor], Tensor], first: Any, second: Any) -> Jet:
    """Cauchy product of two jets."""
    a, b = coefficients_of(first), coefficients_of(second)

    def term(i: int, j: int) -> Tensor | None:
        left, right = a[i], b[j]
        return None if left is None or right is None else product(left, right)

    rest = (added([term(i, order - i) for i in range(order + 1)]) for order in (1, 2))
    return Jet(product(a[0], b[0]), *rest)


def linear_map(function: Callable[[Tensor], Tensor], value: Any) -> Jet:
    """A linear function of one jet or tensor."""
    x0, *rest = coefficients_of(value)
    return Jet(function(x0), *(None if part is None else function(part) for part in rest))


def add(first: Any, second: Any, alpha: float = 1) -> Jet:
    """`torch.add`."""

    def total(a: Any, b: Any) -> Any:
        if a is None or b is None:
            return a if b is None else b * alpha
        return a + b * alpha if alpha != 1 else a + b

    x0, *rest = (total(a, b) for a, b in zip(coefficients_of(first), coefficients_of(second), strict=True))
    # Only the smaller of two broadcast operands may have a coefficient.
    return Jet(x0, *(part if part is None else part.expand(x0.shape) for part in rest))


def subtract(first: Any, second: Any, alpha: float = 1) -> Jet:
    """`torch.sub`."""
    return add(first, second, -alpha)


def multiply(first: Any, second: Any) -> Jet:
    """`torch.mul`."""
    return bilinear(lambda a, b: a * b, first, second)
