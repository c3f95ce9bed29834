"""Norms of per-example gradients, from one backward pass per chunk."""

from __future__ import annotations

from collections.abc import Generator

from torch import Tensor

from opposing_signals.curvature.examples import check_independence
from opposing_signals.curvature.finite_differences import Claim, check
from opposing_signals.curvature.ghost_norms import SquaredNorm
from opposing_signals.curvature.own_gradients import gradients_by_plain_autograd, read_off
from opposing_signals.curvature.risk import EmpiricalRisk


def gradient_norms(risk: EmpiricalRisk) -> Tensor:
    """‖∇ℓ_i(θ)‖ of every training point.

    Under batch norm in training mode ∇ℓ_i is the gradient of the point's own loss with the mean and variance of its
    chunk held constant (see `opposing_signals.curvature.normalization`); these gradients do not add up to ∇L.

    The model runs once forward and once backward. This requires each parameter to be used once, by a linear map, a
    convolution, a normalization, an embedding, self-attention, or as a summand, on a tensor whose first axis is the
    example. Where a parameter is shared or used otherwise, gradients are taken example by example (`torch.func.vmap`),
    and where that fails, as for recurrent layers, one after another: equally exact, but slower.

    Returns:
        ``[N]``.

    Raises:
        InputError: A layer is random or couples examples, its gradient cannot be taken example by example, or the
            first measurement disagrees with gradients taken one by one.
    """
    check_independence(risk)
    check(risk, "gradient_norms", _claims)
    return _norms(risk)


def _norms(risk: EmpiricalRisk) -> Tensor:
    return read_off(risk, SquaredNorm()).clamp(min=0).sqrt()


def _claims(few: EmpiricalRisk, _: Tensor) -> Generator[Claim]:
    rows = gradients_by_plain_autograd(few)
    norms = _norms(few)[: len(rows)]
    yield Claim("gradient norm of each example", norms, lambda _: rows.norm(dim=1), is_derivative=False)
