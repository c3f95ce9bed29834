"""Rayleigh-Ritz on a growing basis, in memory that is allocated once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from opposing_signals.curvature.eigen import Which, ranked

_COLUMNS = 2**20  # vector entries processed at once in float64
_REST = 0.4  # assumed Rayleigh quotient of a residual, over q: see docs/curvature.md
_MOST_REST = 0.8  # its limit: nine in ten are smaller, and λ stays near q where other Ritz vectors are inexact


class Subspace:
    """Orthonormal vectors, their images, and the operator's matrix in this basis, in memory that is allocated once.

    Args:
        like: A ``[P]`` tensor whose length, dtype and device the vectors take.
        most: Largest number of vectors.

    Attributes:
        size: Number of vectors.
        is_unbroken: Whether every vector ever added is still in it.
    """

    def __init__(self, like: Tensor, most: int) -> None:
        self.most, self.size, self.is_unbroken = most, 0, True
        self._vectors = like.new_empty(most, len(like))
        self._images = like.new_empty(most, len(like))
        self._operator = torch.zeros(most, most, dtype=torch.float64)
        self._known = 0  # number of vectors with known images

    def extended(self, vectors: Iterable[Tensor], most: int) -> Tensor:
        """Extend the basis by the span of ``vectors``, up to ``most`` vectors in all; returns the new ones."""
        vectors = (vector.to(self._vectors) for vector in vectors)
        before, self.size = self.size, append(self._vectors, self.size, vectors, min(most, self.most))
        return self._vectors[before : self.size]

    def know(self, images: Tensor) -> None:
        """Store the images of the vectors that were added last."""
        known, self._known = self._known, self.size
        self._images[known : self.size] = images
        inner = _inner(self._vectors[: self.size], self._images[known : self.size]).cpu()
        self._operator[: self.size, known : self.size] = inner
        self._operator[known : self.size, : self.size] = inner.T
        square = self._operator[known : self.size, known : self.size]
        square.copy_((inner[known:] + inner[known:].T) / 2)

    def ritz_pairs(self, k: int, which: Which) -> tuple[Tensor, Tensor, Tensor]:
        """Values ``[k]``, vectors and their images of the k wanted Ritz pairs, the most wanted first.

        With fewer basis vectors than k there are fewer pairs.
        """
        if not torch.isfinite(self._operator[: self.size, : self.size]).all():
            return torch.full((k,), torch.nan, dtype=torch.float64), self._vectors[:k], self._images[:k]
        values, weights = self._eigh(k, which)
        weights = weights.to(self._vectors)
        vectors, images = weights @ self._vectors[: self.size], weights @ self._images[: self.size]
        lengths = norms(vectors)[:, None].to(vectors)
        return values, vectors / lengths, images / lengths

    def _eigh(self, k: int, which: Which) -> tuple[Tensor, Tensor]:
        """Values ``[k]`` and weights ``[k, size]`` of the wanted Ritz vectors."""
        values, coefficients = torch.linalg.eigh(self._operator[: self.size, : self.size])
        chosen = ranked(values, which)[:k]
        return values[chosen], coefficients[:, chosen].T

    def missing(self, quotient: Tensor, residual: Tensor, vector: Tensor) -> Tensor:
        """The leading-order increase of a Ritz value q > 0 when its residual r joins the basis.

        r is ``vector`` ``[P]``, of norm ``residual``. The increase is the larger eigenvalue, minus q, of the 2 x 2
        matrix with q and μ on the diagonal and ‖r‖ off it. μ is 0.4 q + Σ b_j²/(q − θ_j), at most 0.8 q, over the Ritz
        values θ_j < q, with b_j the inner product of their residuals and r/‖r‖.
        """
        values, weights = self._eigh(self.size, "largest")
        is_less = values < quotient
        shared = weights[is_less] @ (self._images[: self.size] @ vector).double().cpu() / residual.clamp(min=1e-300)
        rest = _REST * quotient + (shared.square() / (quotient - values[is_less])).sum()
        half_gap = (quotient - rest.clamp(max=_MOST_REST * quotient)) / 2
        return torch.hypot(half_gap, residual) - half_gap

    def restart(self, kept: int, which: Which, most: int = 0) -> None:
        """Keep the ``kept`` most wanted Ritz vectors, in the same memory unless ``most`` vectors need more."""
        values, weights = self._eigh(kept, which)
        before = self._vectors, self._images
        if most > self.most:
            self.most = most
            self._vectors, self._images = (rows.new_empty(most, self.length) for rows in before)
            self._operator = torch.zeros(most, most, dtype=torch.float64)
        for rows, old in zip((self._vectors, self._images), before, strict=True):
            for columns, mixed in zip(rows.split(_COLUMNS, 1), old.split(_COLUMNS, 1), strict=True):
                columns[:kept] = weights.to(columns) @ mixed[: self.size]
        self.size, self._known, self.is_unbroken = kept, kept, False
        self._operator[:kept, :kept] = values.diag()

    @property
    def length(self) -> int:
        """P."""
        return self._vectors.shape[1]

    def tridiagonal(self, first: int) -> tuple[Tensor, Tensor]:
        """``[m]`` diagonal and off-diagonal entries (the last: of the next step) of Lanczos steps from ``first`` on.

        The vectors from ``first`` on must come from Lanczos steps started at one vector orthogonal to those before.
        """
        basis, last = self._vectors[: self.size], self._images[self.size - 1 : self.size]
        for _ in range(2):
            last = last - (last @ basis.T) @ basis
        matrix = self._operator[first : self.size, first : self.size]
        return matrix.diagonal(), torch.cat([matrix.diagonal(1).abs(), norms(last).cpu()])


def append(rows: Tensor, size: int, vectors: Iterable[Tensor], most: int) -> int:
    """Orthonormalize ``vectors`` against ``rows[:size]`` and append them, up to ``most`` rows; returns the new size.

    Gram-Schmidt, twice (Giraud et al. 2005: twice is enough). Vectors that are nearly linear combinations of earlier
    ones are left out.
    """
    for vector in vectors:
        if size >= most:
            break
        basis, remainder = rows[:size], _normalized(vector[None])
        for _ in range(2):
            remainder = remainder - (remainder @ basis.T) @ basis
        if remainder.norm() > 1e-3:
            rows[size] = _normalized(remainder)[0]
            size += 1
    return size


def share(vector: Tensor, others: Tensor) -> Tensor:
    """Norm of the projection of ``vector`` on the span of ``others``, up to a common factor."""
    basis = torch.empty_like(others)
    return (basis[: append(basis, 0, others, len(basis))] @ vector).norm()


def _inner(vectors: Tensor, others: Tensor) -> Tensor:
    """``[m, n]`` inner products, summed in float64."""
    pieces = zip(vectors.split(_COLUMNS, 1), others.split(_COLUMNS, 1), strict=True)
    return torch.stack([a.double() @ b.double().T for a, b in pieces]).sum(0)


def _normalized(vectors: Tensor) -> Tensor:
    """Rows divided by their norms, summed in float64.

    Where few entries hold nearly all of a vector, a float32 sum loses the many small ones: 1e-4 of its value.
    """
    return vectors / norms(vectors)[:, None].to(vectors)


def norms(vectors: Tensor) -> Tensor:
    """``[k]`` float64 norms of the rows; in float32 a sum over many entries is not exact enough."""
    return torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)
