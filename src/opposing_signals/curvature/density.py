"""Spectral density of the Hessian by stochastic Lanczos quadrature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from opposing_signals.curvature.eigen import Products
from opposing_signals.curvature.lanczos import lanczos, tridiagonal
from opposing_signals.errors import InputError


@dataclass(frozen=True)
class SpectralQuadrature:
    """The density φ(λ) = (1/P) Σ_j δ(λ − λ_j) of an operator's eigenvalues as a quadrature rule.

    (1/P) tr f(H) is about Σ f(node) x weight.

    Attributes:
        nodes: ``[probes x steps]`` float64, those of each random vector in ascending order.
        weights: ``[probes x steps]`` float64; they sum to 1.
    """

    nodes: Tensor
    weights: Tensor


def spectral_density(
    products: Products, like: Tensor, probes: int = 1, steps: int = 80, seed: int = 0
) -> SpectralQuadrature:
    """Ghorbani, Krishnan and Xiao 2019, algorithm 1: Lanczos with full reorthogonalization from random vectors.

    With one vector, the rule is exact for polynomials up to degree 2 x steps − 1, on the spectrum weighted by that
    vector's squared components; averaging over more vectors approaches the density. Memory: probes x steps vectors.

    Args:
        products: The symmetric operator; it is called ``steps`` times with a block of ``probes`` vectors.
        like: A ``[P]`` tensor whose length, dtype and device the vectors take.
        probes: Random vectors (normal, of unit length).
        steps: Lanczos steps, at most P.
        seed: Of the random vectors.

    Raises:
        InputError: No probe, no step, or more steps than parameters.
    """
    if probes < 1:
        raise InputError(f"probes={probes}: expected at least one random vector")
    if not 1 <= steps <= len(like):
        raise InputError(f"steps={steps}: expected 1 to {len(like)}, the number of parameters")
    generator = torch.Generator().manual_seed(seed)
    starts = torch.stack([torch.randn(len(like), generator=generator, dtype=torch.float64) for _ in range(probes)])
    entries = [
        entry for _, entry in zip(range(steps), lanczos(products, starts.to(like), reorthogonalize=True), strict=False)
    ]
    matrices = tridiagonal([alpha for alpha, _ in entries], [beta for _, beta in entries]).cpu()
    nodes, vectors = torch.linalg.eigh(matrices)
    return SpectralQuadrature(nodes.flatten(), vectors[:, 0].square().flatten() / probes)
