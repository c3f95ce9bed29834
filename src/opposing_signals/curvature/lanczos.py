"""The Lanczos recurrence: a symmetric operator seen from one vector, as a tridiagonal matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from opposing_signals.curvature.eigen import Products


def lanczos(products: Products, starts: Tensor, reorthogonalize: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Entries of each start vector's tridiagonal matrix, one pair per product (Saad 2011, §6.3).

    Args:
        products: The operator; one product per start vector and step.
        starts: ``[k, P]``, the first vectors of k recurrences, not zero.
        reorthogonalize: Against all earlier vectors, which are then kept. Without it the matrix's extreme eigenvalues
            still converge, but appear more than once in the end (Paige 1980).

    Yields:
        ``[k]`` float64 diagonal entries α_j, and off-diagonal entries β_j. β_j is 0 once the Krylov space of a start
        vector is exhausted.
    """
    vectors = starts / starts.norm(dim=1, keepdim=True)
    last = torch.zeros_like(vectors)
    beta = vectors.new_zeros(len(vectors), 1)
    kept = [vectors]
    scale = torch.zeros_like(beta)
    while True:
        images = products(vectors)
        alpha = (images * vectors).sum(1, keepdim=True)
        images = images - alpha * vectors - beta * last
        if reorthogonalize:
            basis = torch.stack(kept, 1)
            for _ in range(2):  # twice is enough (Giraud et al. 2005)
                images = images - torch.bmm(torch.bmm(basis, images[..., None]).transpose(1, 2), basis)[:, 0]
        beta = images.norm(dim=1, keepdim=True)
        scale = torch.maximum(scale, torch.maximum(alpha.abs(), beta))
        beta = torch.where(beta > 4 * torch.finfo(beta.dtype).eps * scale, beta, 0)
        yield alpha[:, 0].double(), beta[:, 0].double()
        last, vectors = vectors, torch.where(beta > 0, images / beta, 0)
        if reorthogonalize:
            kept.append(vectors)


def tridiagonal(diagonal: list[Tensor], beside: list[Tensor]) -> Tensor:
    """``[k, m, m]`` from m diagonal entries and m − 1 (or more) off-diagonal ones, each ``[k]``."""
    count = len(diagonal)
    matrix = torch.diag_embed(torch.stack(diagonal, 1))
    if count > 1:
        off = torch.stack(beside[: count - 1], 1)
        matrix = matrix + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    return matrix
