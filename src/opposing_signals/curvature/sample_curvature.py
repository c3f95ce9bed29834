"""Slope and curvature of every training point's loss along one direction, and its change in a gradient step."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from opposing_signals.curvature.finite_differences import Claim, all_shares, check, gradient, losses
from opposing_signals.curvature.refusals import check_losses
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.curvature.taylor import Jet, orders, refusing_what_stops


@dataclass(frozen=True)
class AlongLine:
    """ℓ_i(θ + t v) to second order in t, for every training point.

    Attributes:
        losses: ``[N]`` ℓ_i(θ).
        slopes: ``[N]`` ∇ℓ_i·v; their mean, weighted where the risk has weights, is ∇L·v.
        curvatures: ``[N]`` vᵀ∇²ℓ_i v; their mean, likewise weighted, is vᵀ∇²L v.
    """

    losses: Tensor
    slopes: Tensor
    curvatures: Tensor


def sample_curvature(risk: EmpiricalRisk, vector: Tensor) -> AlongLine:
    """Slope and curvature of each ℓ_i along ``vector``, in one forward pass of Taylor arithmetic.

    Under batch norm in training mode ℓ_i also depends on θ through its chunk's statistics, so that the means over i are
    exactly those of L.

    Args:
        risk: Evaluated at its θ, and left unchanged.
        vector: ``[P]``, of any length ‖v‖.

    Raises:
        InputError: The vector has another length than θ, the loss is not one number per example, a layer is random, the
            model writes in place or transforms functions where Taylor arithmetic cannot follow, or calls a function
            without second derivatives in forward mode, or the first measurement disagrees with finite differences.
    """
    risk.check_vectors(vector[None])
    check(risk, "sample_curvature", _claims)
    with refusing_what_stops():
        return _along_line(risk, vector)


def _claims(few: EmpiricalRisk, v: Tensor) -> Generator[Claim]:
    along = _along_line(few, v)
    yield Claim("slope of each loss by Taylor arithmetic", along.slopes, partial(losses, few))
    mean = (all_shares(few) @ along.curvatures)[None]
    yield Claim("mean curvature by Taylor arithmetic", mean, lambda graph: (gradient(few, graph) @ v)[None])


def _along_line(risk: EmpiricalRisk, vector: Tensor) -> AlongLine:
    line = [Jet(p.detach(), v) for p, v in zip(risk.parameters, risk.unflatten(vector), strict=True)]
    chunks = []
    with risk.probe(), risk.deterministic(), torch.no_grad():
        for part, jet in zip(risk.parts(), risk.losses_at(line), strict=True):
            check_losses(jet, risk.inputs[part])
            chunks.append(orders(jet))
    values, slopes, halves = (risk.assembled([pieces[order] for pieces in chunks]) for order in range(3))
    return AlongLine(values, slopes, 2 * halves)


@dataclass(frozen=True)
class StepExpansion:
    """The change of each ℓ_i in a gradient step θ ↦ θ − η ∇L, to second order.

    Δ_i ≈ first + second; the part of it along the unit vector v is along_first + along_second.

    Attributes:
        first: ``[N]`` −η ∇ℓ_i·∇L.
        second: ``[N]`` ½ η² ∇Lᵀ∇²ℓ_i ∇L.
        along_first: ``[N]`` −η (∇L·v) ∇ℓ_i·v.
        along_second: ``[N]`` ½ η² (∇L·v)² vᵀ∇²ℓ_i v.
    """

    first: Tensor
    second: Tensor
    along_first: Tensor
    along_second: Tensor


def step_expansion(
    risk: EmpiricalRisk, gradient: Tensor, step_size: float, along: AlongLine, v: Tensor
) -> StepExpansion:
    """Expand a gradient step, and its part along v.

    Args:
        risk: Evaluated at its θ, and left unchanged.
        gradient: ``[P]`` ∇L.
        step_size: η.
        along: `sample_curvature` of ``v``.
        v: ``[P]``, a unit vector.

    Raises:
        InputError: As in `sample_curvature`.
    """
    whole = sample_curvature(risk, gradient)
    shift = -step_size * float(gradient @ v)
    return StepExpansion(
        -step_size * whole.slopes,
        step_size**2 / 2 * whole.curvatures,
        shift * along.slopes,
        shift**2 / 2 * along.curvatures,
    )
