"""The sharpness of single training points: the largest eigenvalue of each point's own Hessian."""

from __future__ import annotations

import math
from collections.abc import Generator

import torch
from torch import Tensor

from opposing_signals.curvature.double_backward import ChunkPass
from opposing_signals.curvature.eigen import Products
from opposing_signals.curvature.examples import by_chunk, check_independence, independent_examples
from opposing_signals.curvature.finite_differences import Claim, check, flat_gradient, of_loss
from opposing_signals.curvature.lanczos import lanczos, tridiagonal
from opposing_signals.curvature.refusals import check_graph
from opposing_signals.curvature.risk import EmpiricalRisk


def sample_sharpness(
    risk: EmpiricalRisk, indices: Tensor, tolerance: float = 0.03, max_products: int = 20
) -> tuple[Tensor, Tensor]:
    """The algebraically largest eigenvalue of ∇²ℓ_i(θ) for chosen training points i.

    Under batch norm in training mode ℓ_i is the point's own loss with the mean and variance of its chunk held constant
    (see `opposing_signals.curvature.normalization`).

    Each point's gradient graph is built once, and products by double backward feed a three-vector Lanczos recurrence.
    Points are processed one at a time: batching products with different vectors needs convolutions with different
    weights for each point, which cost twice as much on a CPU. The recurrence starts from a random vector that depends
    only on the point's index. The point's gradient would usually be nearer to the wanted eigenvector, but sometimes so
    near to another one that the recurrence would end there.

    Args:
        risk: Evaluated with its model in its current mode.
        indices: ``[m]`` positions in the training set.
        tolerance: Stop at a point when its residual is at most ``tolerance`` x |λ|. The relative error of λ is then at
            most about tolerance² x |λ| / gap.
        max_products: Stop at a point after this many products in any case.

    Returns:
        ``[m]`` eigenvalues and ``[m]`` residuals ‖Hu − λu‖ of their unit eigenvectors, float64.

    Raises:
        InputError: An index outside the training set, or a model that couples examples, or whose second derivatives
            would be wrong or random.
    """
    check_independence(risk)
    check(risk, "sample_sharpness", _claims)
    values = torch.zeros(len(indices), dtype=torch.float64)
    residuals = torch.zeros_like(values)
    indices = indices.cpu()
    for chunk, positions in by_chunk(risk, indices):
        with independent_examples(risk, chunk):
            for position in positions.tolist():
                index = int(indices[position])
                generator = torch.Generator().manual_seed(index)
                like = risk.parameters[0]
                start = torch.randn(1, sum(p.numel() for p in risk.parameters), generator=generator).to(like)
                found = _largest_eigenvalue(_own_products(risk, index), start, tolerance, max_products)
                values[position], residuals[position] = found
    return values, residuals


def _claims(few: EmpiricalRisk, v: Tensor) -> Generator[Claim]:
    one = few.inputs[:1], few.targets[:1]

    def own_gradient(graph: bool) -> Tensor:
        with torch.enable_grad():
            return flat_gradient(few.evaluate(*one, autocast=False)[0].sum(), few, graph)

    with independent_examples(few, slice(0, few.chunk)):
        product = _own_products(few, 0)(v[None])[0]
        yield Claim("Hessian-vector product of a single example", product, own_gradient)
    yield of_loss(few, v)


def _own_products(risk: EmpiricalRisk, index: int) -> Products:
    """v ↦ ∇²ℓ_i v for one point."""
    one = slice(index, index + 1)
    seen = ChunkPass(risk, risk.inputs[one], risk.targets[one], torch.ones(1), is_twice=True)
    check_graph(seen.gradient, risk.model)
    return seen.products


def _largest_eigenvalue(products: Products, start: Tensor, tolerance: float, max_products: int) -> tuple[float, float]:
    diagonal, beside = [], []
    for alpha, beta in lanczos(products, start, reorthogonalize=False):
        if not (alpha + beta).isfinite():
            return math.nan, math.nan
        diagonal.append(alpha)
        beside.append(beta)
        values, vectors = torch.linalg.eigh(tridiagonal(diagonal, beside)[0].cpu())
        value, residual = float(values[-1]), float(beta) * abs(float(vectors[-1, -1]))
        if residual <= tolerance * abs(value) or len(diagonal) >= max_products:
            break
    return value, residual
