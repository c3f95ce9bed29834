"""The algebraically largest eigenpair of a symmetric operator that changes a little from call to call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Products = Callable[[Tensor], Tensor]
"""``[k, P]`` vectors ↦ ``[k, P]`` products with a symmetric matrix."""


@dataclass(frozen=True)
class Eigenpair:
    """A Ritz pair and how far to trust it.

    Attributes:
        value: Rayleigh quotient λ = vᵀHv.
        vector: ``[P]``, unit norm.
        residual: ‖Hv − λv‖; some eigenvalue of H lies within it of λ.
        products: Matrix-vector products spent.
    """

    value: float
    vector: Tensor
    residual: float
    products: int


class TopEigenpair:
    """Warm-started Lanczos: Rayleigh-Ritz on {u_{t-1}, u_{t-2}}, widened by residuals until one is small.

    At the edge of stability the Hessian alternates with period two, so the last eigenvector alone is a bad start and
    the last two are a good one. Widening the basis by the residual of the current Ritz pair spans, from one start
    vector, exactly the Krylov space, so a cold start is the Lanczos method with full reorthogonalization
    (Saad 2011, §6.3).

    Args:
        tolerance: Stop when the residual is at most ``tolerance`` x |λ|. The relative error of λ is then at most
            about tolerance² x |λ| / gap.
        max_products: Stop after this many products in any case.
        seed: Of the random vector of the cold start.
    """

    def __init__(self, tolerance: float = 0.03, max_products: int = 40, seed: int = 0) -> None:
        self.tolerance = tolerance
        self.max_products = max_products
        self._seed = seed
        self._recent: list[Tensor] = []

    def __call__(self, products: Products, like: Tensor) -> Eigenpair:
        """Find the pair of the operator as it is now.

        Args:
            products: The operator. It is called with a block first and with single vectors after.
            like: A ``[P]`` tensor whose length, dtype and device the vectors take.
        """
        start = self._start(like)
        basis = _extended(start[:0], start)
        images = products(basis)
        while True:
            value, vector, residual_vector = _largest_ritz_pair(basis, images)
            residual = float(residual_vector.norm())
            # A basis as large as the space is exact; its residual is rounding and must not be widened by.
            exhausted = len(basis) >= min(self.max_products, len(like))
            if exhausted or residual <= self.tolerance * abs(value):
                break
            widened = _extended(basis, residual_vector[None])
            if len(widened) == len(basis):  # the residual lies in the basis: nothing new to learn
                break
            images = torch.cat([images, products(widened[len(basis) :])])
            basis = widened
        if self._recent and vector @ self._recent[0] < 0:
            vector = -vector
        self._recent = [vector, *self._recent][:2]
        return Eigenpair(value, vector, residual, len(basis))

    def _start(self, like: Tensor) -> Tensor:
        if self._recent:
            return torch.stack(self._recent).to(like)
        generator = torch.Generator().manual_seed(self._seed)
        return torch.randn(1, len(like), generator=generator, dtype=torch.float64).to(like)

    def state_dict(self) -> dict[str, Tensor]:
        """The last two eigenvectors, so that a resumed run measures what an uninterrupted one would."""
        return {"recent": torch.stack(self._recent) if self._recent else torch.empty(0)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore `state_dict`."""
        self._recent = list(state["recent"].unbind(0)) if state["recent"].numel() else []


def _extended(basis: Tensor, vectors: Tensor) -> Tensor:
    """The orthonormal ``basis`` followed by what ``vectors`` add to it, orthonormalized.

    Gram-Schmidt, twice (Giraud et al. 2005: twice is enough). Vectors that nearly depend on earlier ones are left out.
    """
    for vector in vectors:
        unit = vector / vector.norm()
        remainder = unit
        for _ in range(2):
            remainder = remainder - basis.T @ (basis @ remainder)
        norm = remainder.norm()
        if norm > 1e-3:
            basis = torch.cat([basis, (remainder / norm)[None]])
    return basis


def _largest_ritz_pair(basis: Tensor, images: Tensor) -> tuple[float, Tensor, Tensor]:
    """Value, vector and residual vector of the largest Ritz pair in span(basis)."""
    small = (basis @ images.T).double()
    values, coefficients = torch.linalg.eigh((small + small.T) / 2)
    weights = coefficients[:, -1].to(basis)
    vector, image = weights @ basis, weights @ images
    value = float(values[-1])
    return value, vector / vector.norm(), image - value * vector
