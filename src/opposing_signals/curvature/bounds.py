"""Upper bounds on eigenvalues, also of eigenvectors outside the span of a basis."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from opposing_signals.curvature.eigen import Which, wanted

_MISSED = 0.01  # probability with which a bound may be wrong


def of_complement(diagonal: Tensor, beside: Tensor, dimension: int, which: Which) -> float:
    """What no eigenvalue of a space exceeds in what is wanted, after Lanczos steps from one random vector of it.

    Args:
        diagonal: ``[m]`` α_j.
        beside: ``[m]`` β_j, the last one that of the vector that would come next.
        dimension: Of the space.
        which: What is wanted.
    """
    signs = {"largest": (1,), "smallest": (-1,), "magnitude": (1, -1)}[which]
    return max(_exceeded_by_chance(sign * diagonal, beside, dimension) for sign in signs)


def of_operator(quotients: Tensor, residuals: Tensor, rest: float, which: Which) -> float:
    """Of a space, from its Ritz pairs, their residuals and the bound ``rest`` of what they leave; see `wanted`.

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

    The characteristic polynomial p of the tridiagonal matrix has ‖p(H) z‖ = Π β_j, over all entries beside its
    diagonal. Of an eigenvector u with eigenvalue x that is at least abs(p(x) u·z), where u·z, times the root of the
    dimension, is a normal number: below 1.25 x probability in size with that probability (van Dorsselaer,
    Hochstenbach and van der Vorst 2000, §3).
    """
    nodes = torch.linalg.eigvalsh(diagonal.diag() + beside[:-1].diag(1) + beside[:-1].diag(-1))
    largest = float(nodes[-1])
    if not beside.min() > 4 * torch.finfo(beside.dtype).eps * max(abs(float(nodes[0])), abs(largest)):
        return largest  # the vector has no more to show
    allowed = float(beside.log().sum()) - math.log(math.sqrt(math.pi / 2) * _MISSED / math.sqrt(dimension))
    low, high = largest, largest + math.exp(allowed / len(nodes))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float((middle - nodes).log().sum()) < allowed else (low, middle)
    return high
