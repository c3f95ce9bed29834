"""Upper bounds on eigenvalues, also of eigenvectors outside the span of a basis."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from opposing_signals.curvature.eigen import Which, wanted

_MISSED = 0.01  # probability with which a bound may be wrong


def of_complement(diagonal: Tensor, beside: Tensor, dimension: int, which: Which) -> float:
    """Bound on all eigenvalues of a space, as `wanted` orders them, from Lanczos steps started at a random vector.

    Args:
        diagonal: ``[m]`` α_j.
        beside: ``[m]`` β_j, the off-diagonal entries; the last belongs to the step that would come next.
        dimension: Of the space.
        which: Which eigenvalues are wanted.
    """
    signs = {"largest": (1,), "smallest": (-1,), "magnitude": (1, -1)}[which]
    return max(_exceeded_by_chance(sign * diagonal, beside, dimension) for sign in signs)


def of_operator(quotients: Tensor, residuals: Tensor, rest: float, which: Which) -> float:
    """The same for a whole space, from Ritz pairs, their residuals and the bound ``rest`` on their complement.

    For a vector with components x_j along the Ritz vectors and y beyond, xᵀHx <= Σ q_j x_j² + 2 Σ r_j |x_j||y| +
    rest y²: the largest eigenvalue of the matrix of this form bounds that of H.
    """
    if not math.isfinite(rest):
        return math.nan
    sizes = wanted(quotients, which)
    matrix = torch.diag(torch.cat([sizes, sizes.new_tensor([rest])]))
    matrix[-1, :-1] = matrix[:-1, -1] = residuals
    return float(torch.linalg.eigvalsh(matrix)[-1])


def _exceeded_by_chance(diagonal: Tensor, beside: Tensor, dimension: int) -> float:
    """The bound that the largest eigenvalue exceeds with probability `_MISSED`, by Lanczos from a random unit vector z.

    The characteristic polynomial p of the tridiagonal matrix has ‖p(H) z‖ = Π β_j, over all off-diagonal entries. For
    an eigenvector u with eigenvalue x, this norm is at least abs(p(x) u·z). Times the square root of the dimension, u·z
    is about standard normal: its absolute value is below 1.25 x probability with that probability (van Dorsselaer,
    Hochstenbach and van der Vorst 2000, §3).
    """
    nodes = torch.linalg.eigvalsh(diagonal.diag() + beside[:-1].diag(1) + beside[:-1].diag(-1))
    largest = float(nodes[-1])
    if not beside.min() > 4 * torch.finfo(beside.dtype).eps * max(abs(float(nodes[0])), abs(largest)):
        return largest  # the Krylov space is exhausted
    allowed = float(beside.log().sum()) - math.log(math.sqrt(math.pi / 2) * _MISSED / math.sqrt(dimension))
    low, high = largest, largest + math.exp(allowed / len(nodes))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float((middle - nodes).log().sum()) < allowed else (low, middle)
    return high
